"""The report as one HTML file: opens from disk, needs no network, and lets nothing in it run but its own few lines.

Jinja2 escapes every word; what an HTML reader would hide or obey (control characters, marks that reorder a line) is
shown as its number; a content security policy names the hashes of the one style sheet and the one script.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dfqs import __version__
from dfqs.errors import UsageError
from dfqs.evaluate.scores import ScoredItem, Verdict
from dfqs.report.depths import DepthGrid, depth_grid
from dfqs.report.evidence import Evidence
from dfqs.report.extras import describe_extras
from dfqs.report.facts import (
    CONTEXT_HEADER,
    KINDS_HEADER,
    SCORES,
    Code,
    artifact_rows,
    condition_rows,
    context_rows,
    context_words,
    describe_others,
    format_interval,
    kind_rows,
    speed_rows,
    was_busy,
)
from dfqs.report.lead import describe_lead, describe_tiles
from dfqs.report.schema import Report
from dfqs.report.shown import Shown, shown

PAGES = Path(__file__).with_name("pages")
ANSWERS_BYTES = 3_500_000
"""Of all questions and answers together, so that the page stays below 5 MB."""
ANSWER_BYTES = 16_000
"""Of one question or answer."""


def render_page(report: Report, evidence: Evidence | None = None) -> str:
    """The page. Without matplotlib it has every table, and says where its pictures would come from."""
    evidence = evidence or Evidence()
    drawing, no_plots = find_drawing()
    grid = depth_grid(report.details.context, evidence.items)
    plots = _plots(drawing, report, grid)
    extras = describe_extras(report, evidence.companions, drawing)
    items, items_cut = _items(evidence)
    fields: dict[str, Any] = {
        "title": f"{report.artifact.name}: DFQS evaluation",
        "lead": describe_lead(report),
        "statement": report.statement,
        "tiles": describe_tiles(report),
        "notices": report.notices[:100],
        "no_plots": no_plots,
        "plots": plots,
        "scores": _score_rows(report),
        "groups": _group_rows(report),
        "context": context_rows(report.details.context) if report.details.context is not None else [],
        "context_header": CONTEXT_HEADER,
        "boundary": _boundary_words(report),
        "looks": _look_rows(report),
        "kinds": kind_rows(report.details.context) if report.details.context is not None else [],
        "kinds_header": KINDS_HEADER,
        "context_words": context_words(report.details.context) if report.details.context is not None else [],
        "depths": _depth_rows(grid),
        "depths_header": ("tokens", *(grid.depths if grid is not None else ())),
        "speed": speed_rows(report.details.speed) if report.details.speed is not None else [],
        "speed_words": _speed_words(report),
        "extras": extras,
        "artifact": artifact_rows(report),
        "conditions": condition_rows(report),
        "items": items,
        "items_cut": items_cut,
        "no_items": "This page was made of a report alone; the answers stand in the evaluation's own directory.",
        "stages": sorted({item["stage"] for item in items}),
        "verdicts": [verdict.value for verdict in Verdict if any(item["verdict"] == verdict for item in items)],
        "made": f"Made {report.measured_at} by dfqs {report.dfqs_version}, schema {report.schema_}.",
    }
    fields["sections"] = _sections(fields)
    return render_template("report.html", fields, script=(PAGES / "page.js").read_text(encoding="utf-8"))


def render_template(name: str, fields: Mapping[str, Any], *, script: str = "") -> str:
    """A page of ours with its style sheet and, where it has one, its script; both are named by their hashes."""
    style = (PAGES / "page.css").read_text(encoding="utf-8")
    return _environment().get_template(name).render(
        **fields,
        version=__version__,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script) if script else "",
    )  # fmt: skip


def find_drawing() -> tuple[ModuleType | None, str | None]:
    """What draws, or the sentence that says why there are no pictures."""
    try:
        from dfqs.report import figures  # noqa: PLC0415
    except UsageError as error:
        return None, str(error).capitalize()
    return figures, None


def parts_of(cell: Any) -> list[dict[str, Any]]:
    """A cell's words and hashes, one after the other."""
    if isinstance(cell, str | Code | int | float):
        return [{"code": isinstance(cell, Code), "text": cell.value if isinstance(cell, Code) else str(cell)}]
    return [part for each in cell for part in parts_of(each)]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.globals["parts_of"] = parts_of
    return environment


def _finalize(value: Any) -> Any:
    """Every word that a template prints passes here; markup of ours and what was made fit before stay as they are."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup | Shown) else value


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _sections(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("metrics", "The five metrics"),
        *([("scores", "Reasoning and code")] if fields["scores"] else []),
        *([("context", "Long contexts")] if fields["context"] else []),
        *([("speed", "Speed")] if fields["speed"] else []),
        *((extra.id, extra.title) for extra in fields["extras"]),
        ("measured", "What was measured"),
        ("conditions", "Conditions"),
        ("items", "Every answer"),
    ]


def _plots(drawing: ModuleType | None, report: Report, grid: DepthGrid | None) -> dict[str, Any]:
    names = ("groups", "curve", "depths", "speed", "latency")
    if drawing is None:
        return dict.fromkeys(names)
    context = report.details.context
    return {
        "groups": drawing.plot_groups(report),
        "curve": drawing.plot_curve(report, context) if context is not None else None,
        "depths": drawing.plot_depths(grid) if grid is not None else None,
        "speed": drawing.plot_speed(report),
        "latency": drawing.plot_latency(report),
    }


def _score_rows(report: Report) -> list[tuple[str, ...]]:
    rows = []
    for name, stage in SCORES:
        detail = getattr(report.details, stage)
        if detail is not None:
            counts = (detail.n, detail.right, detail.wrong, detail.truncated, detail.empty, detail.unusable)
            score = f"{detail.right / detail.n:.3f}"
            rows.append((name, score, format_interval(detail.interval_95), *(f"{count:,}" for count in counts)))
    return rows


def _group_rows(report: Report) -> Sequence[tuple[str, ...]]:
    return [
        (f"{stage}: {group}", f"{right:,}", f"{total:,}")
        for _, stage in SCORES
        if (detail := getattr(report.details, stage)) is not None
        for group, (right, total) in detail.groups.items()
    ][:100]


def _boundary_words(report: Report) -> str:
    boundary, tokens = report.details.boundary, report.metrics.failure_boundary_tokens
    if boundary is None or tokens is None:
        return f"Failure boundary: {report.reasons.get('failure_boundary_tokens', 'not measured')}."
    found = f"at least {tokens:,} tokens" if boundary.censored else f"{tokens:,} tokens"
    return f"Failure boundary: {found}. {boundary.reason[:1].upper()}{boundary.reason[1:]}."


def _look_rows(report: Report) -> Sequence[tuple[str, ...]]:
    boundary = report.details.boundary
    looks = boundary.lengths[:100] if boundary is not None else []
    return [(f"{look.length_tokens:,}", f"{look.right:,}", f"{look.n:,}", look.failure or "") for look in looks]


def _depth_rows(grid: DepthGrid | None) -> list[tuple[str, ...]]:
    if grid is None:
        return []
    return [
        (f"{length:,}", *(f"{cell.right} of {cell.total}" for cell in row))
        for length, row in zip(grid.lengths, grid.cells, strict=True)
    ]


def _speed_words(report: Report) -> str:
    speed = report.details.speed
    if speed is None:
        return ""
    words = f"{speed.threads} threads. {describe_others(speed)}"
    if was_busy(speed):
        words += ": this rate tells more about them than about the model"
    return words + "."


def _items(evidence: Evidence) -> tuple[list[dict[str, Any]], str | None]:
    """What a page shows of each question, and a sentence where some of it was cut."""
    count = len(evidence.items)
    room = min(ANSWER_BYTES, max(200, ANSWERS_BYTES // max(1, 2 * count)))
    prompts = evidence.prompts or {}
    found = [_item(item, prompts, room) for item in evidence.items[: ANSWERS_BYTES // 800]]
    cut = any(str(item[key]).endswith(" characters in all]") for item in found for key in ("prompt", "answer"))
    words = []
    if cut:
        words.append(f"Long texts are cut at {room:,} bytes; results.jsonl has them whole.")
    if len(found) < count:
        words.append(f"The first {len(found):,} of {count:,} questions are shown.")
    return found, " ".join(words) or None


def _item(item: ScoredItem, prompts: Mapping[tuple[str, str], str], room: int) -> dict[str, Any]:
    prompt = prompts.get((item.stage, item.item))
    completion = item.completion
    judged = [f"Verdict: {item.verdict.value}"]
    if item.answer is not None:
        judged.append(f"taken as the answer: {shown(item.answer, 200)}")
    if item.detail:
        judged.append(shown(item.detail, 300))
    if completion.generated_tokens is not None:
        judged.append(f"{completion.generated_tokens:,} tokens, ended by {shown(completion.finish_reason, 40)}")
    place = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in list(item.place.items())[:6])
    return {
        "stage": shown(item.stage, 40),
        "name": shown(item.item, 80),
        "place": shown(place, 160),
        "verdict": item.verdict.value,
        "prompt": shown(prompt, room, lines=True) if prompt is not None else None,
        "no_prompt": "Its prompt set is not the one that this version of dfqs has.",
        "answer": shown(completion.text, room, lines=True) if completion.text else "nothing",
        "judged": Shown("; ".join(judged) + "."),
    }
