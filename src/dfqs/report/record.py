"""Makes the report of a run out of its stored results: the same results give the same report.

Nothing but the run's own directory is read: what the model was stands in the run's record.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten
from typing import Any

from dfqs import __version__
from dfqs.errors import DfqsError, FormatError, UsageError, printable
from dfqs.evaluate.conditions import SpeedConditions
from dfqs.evaluate.scores import NOTHING_SAID, Verdict
from dfqs.evaluate.speed import (
    BATCH,
    FLASH_ATTENTION,
    UBATCH,
    DecodeRun,
    SpeedSummary,
    summarise,
    used_memory,
)
from dfqs.evaluate.stages import BOUNDARY, CODE, CONTEXT, FLOOR, LIKELIHOOD, NOTES, PROFILE, REASONING, SPEED, TOOLS
from dfqs.evaluate.statistics import Count, wilson_interval
from dfqs.evaluate.store import RunRecord, Subject, read_lines, read_run, runs_of
from dfqs.hardware import Machine
from dfqs.records import is_document, write_json
from dfqs.report.capability import profile_rows, tool_detail
from dfqs.report.context import boundary_detail, context_detail
from dfqs.report.markdown import render_markdown
from dfqs.report.preference import likelihood_detail, text_floor
from dfqs.report.schema import (
    SCHEMA_ID,
    Artifact,
    Conditions,
    Details,
    Metrics,
    Report,
    ScoreDetail,
    ToolDetail,
)
from dfqs.storage.atomic import check_output_path, write_bytes_atomic

REFERENCE_PARAMETERS = 284_300_000_000
"""Of DeepSeek-V4-Flash, the model of the specification's reference artifact."""

REPORT_NAMES = ("report.json", "report.md", "report.html")
PAGE_MARK = b'<meta name="generator" content="dfqs '

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run of a directory."""

    number: int
    directory: Path
    model: str
    measured: int
    """How many of the five metrics it has."""


def list_runs(out: Path) -> tuple[RunSummary, ...]:
    """The runs in `out`, oldest first; one that cannot be read has measured nothing."""
    found = []
    for directory in runs_of(out):
        if (directory / "run.json").exists():
            name, measured = "not readable", 0
            try:
                name = read_run(directory).subject.name
                measured = sum(value is not None for value in build_report(directory).metrics.model_dump().values())
            except DfqsError:
                pass
            found.append(RunSummary(int(directory.name[4:]), directory, name, measured))
    return tuple(found)


def find_run(out: Path, number: int | None = None) -> Path:
    """The directory of a run.

    Args:
        out: where evaluations were written to, or one run's own directory.
        number: None: the newest in which something was measured, else the newest.

    Raises:
        UsageError: there is none.
    """
    if (out / "run.json").exists():
        if number is not None:
            raise UsageError(f"{out} is one run itself; give --run with the directory above it")
        return out
    numbers = {int(directory.name[4:]): directory for directory in runs_of(out) if (directory / "run.json").exists()}
    if not numbers:
        raise UsageError(f"no evaluation in {out}; make one with dfqs eval MODEL -o {out}")
    if number is None:
        measured = [run.directory for run in list_runs(out) if run.measured] if len(numbers) > 1 else []
        return measured[-1] if measured else numbers[max(numbers)]
    if number not in numbers:
        raise UsageError(f"no run {number} in {out}; there are {', '.join(map(str, sorted(numbers)))}")
    return numbers[number]


def build_report(out: Path) -> Report:
    """The report of a run's directory, or of the run in `out` that `find_run` finds.

    Raises:
        UsageError: there is no run.
        FormatError: the stored run is damaged.
    """
    directory = find_run(out)
    record = read_run(directory)
    lines, _ = read_lines(directory / "results.jsonl")
    stages: dict[str, dict[str, Any]] = defaultdict(dict)
    for (stage, key), data in lines.items():
        stages[stage][key] = data
    try:
        return _report(record, stages)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        # Each line was checked by itself; what they add up to is checked by the report.
        why = printable(shorten(str(error), 200, placeholder=" ..."), 200)
        raise FormatError(f"results that make no report ({why})", path=directory / "results.jsonl") from error


def write_report(report: Report, page: str, directory: Path) -> tuple[Path, ...]:
    """Write `report.json`, `report.md` and `report.html`; an older report there is replaced.

    Args:
        page: see `dfqs.report.page.render_page`.

    Raises:
        UsageError: other files stand under these names.
    """
    paths = check_report_place(directory)
    write_json(paths[0], report, overwrite=True)
    write_bytes_atomic(paths[1], render_markdown(report).encode(), overwrite=True)
    write_bytes_atomic(paths[2], page.encode(), overwrite=True)
    return paths


def check_report_place(directory: Path) -> tuple[Path, ...]:
    """Where a directory's report goes, refused before work is spent on it where other files are in the way.

    Raises:
        UsageError: it is a file, or one of the three is there and is no report of dfqs.
    """
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; name a directory, which is made where there is none")
    paths = tuple(directory / name for name in REPORT_NAMES)
    for path in paths:
        if path.exists() or path.is_symlink():
            check_output_path(path, overwrite=_is_own(path))
    return paths


def is_page(path: Path) -> bool:
    """Whether a file is a page of ours, of whatever version: then it may be written again."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return PAGE_MARK in file.read(1000)


def _is_own(path: Path) -> bool:
    if path.suffix == ".html":
        return is_page(path)
    return _is_report_text(path) if path.suffix == ".md" else is_document(path, SCHEMA_ID)


def _is_report_text(path: Path) -> bool:
    """By its heading, which every report has had."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline(10_000).strip().endswith(b": DFQS evaluation")


def _report(record: RunRecord, stages: dict[str, dict[str, Any]]) -> Report:
    notes = stages[NOTES]
    machine = Machine.model_validate(notes["machine"])
    score = record.conditions
    reasons: dict[str, str] = {}
    expected = score.items
    reasoning = _score_detail("reasoning_score", stages[REASONING], _expected(expected, REASONING, "gym"), reasons)
    code = _score_detail("code_score", stages[CODE], _expected(expected, CODE, "humaneval"), reasons)
    tools, no_tools = _tools(stages.get(TOOLS, {}), expected)
    missing: dict[str, str] = {}
    given = likelihood_detail(stages, expected.get(LIKELIHOOD), missing)
    refusal = notes.get("code_unavailable", {}).get("reason")
    if code is None and refusal:
        reasons["code_score"] = refusal
    context = context_detail(record.curve_lengths, stages[CONTEXT], reasons)
    speed = _speed(stages[SPEED], notes, record, reasons)
    boundary = stages[BOUNDARY].get("boundary")
    if boundary is None:
        reasons["failure_boundary_tokens"] = "not measured"
    elif boundary["tokens"] is None:
        reasons["failure_boundary_tokens"] = boundary["reason"]
    at_speed = _speed_conditions(record, machine, speed)
    return Report(
        dfqs_version=__version__,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        artifact=_artifact(record.subject),
        statement=_statement(record.subject),
        machine=machine,
        conditions=Conditions(
            score=score,
            score_fingerprint=score.fingerprint,
            speed=at_speed,
            speed_fingerprint=at_speed.fingerprint if at_speed is not None else None,
        ),
        metrics=Metrics(
            reasoning_score=_value(reasoning),
            code_score=_value(code),
            context_stability_curve=[right / n for right, n in zip(context.right, context.n, strict=True)]
            if context is not None and context.lengths_tokens
            else None,
            cpu_tokens_per_sec=speed.decode_tokens_per_s if speed is not None else None,
            failure_boundary_tokens=boundary["tokens"] if boundary is not None else None,
        ),
        reasons=reasons,
        details=Details(
            reasoning=reasoning,
            code=code,
            context=context,
            speed=speed,
            boundary=boundary_detail(boundary) if boundary is not None else None,
            tools=tools,
            likelihood=given,
            noise_floor=text_floor(stages.get(FLOOR, {}), missing),
            profile=profile_rows(stages.get(PROFILE, {}), expected.get(PROFILE), code, context),
        ),
        notices=_notices(notes, no_tools, missing, record.began_anew),
    )


def _notices(
    notes: Results, no_tools: Iterable[str], missing: Mapping[str, str], began_anew: Iterable[str]
) -> list[str]:
    """What the answerer told, what is missing though it was begun, and why the run began anew."""
    return [
        *notes.get("target", {}).get("notices", []),
        *(f"tool calls: {why}" for why in no_tools),
        *(f"{name}: {why}" for name, why in missing.items()),
        *(f"began anew: {why}" for why in began_anew),
    ]


def _tools(items: Results, expected: Mapping[str, int]) -> tuple[ToolDetail | None, tuple[str, ...]]:
    """What is known of tool calls, and why nothing is: no metric, and so among the notes."""
    why: dict[str, str] = {}
    if TOOLS not in expected or not items:
        return None, ()
    return tool_detail(items, _score_detail(TOOLS, items, expected[TOOLS], why)), tuple(why.values())


def _expected(items: Mapping[str, int], *sets: str) -> int | None:
    """How many items a stage has, over its sets; None: none of them."""
    counts = [items[name] for name in sets if name in items]
    return sum(counts) if counts else None


def _groups(place: Mapping[str, Any]) -> list[str]:
    """Family and difficulty, apart from each other."""
    family = [str(place["family"])] if "family" in place else []
    return [*family, f"level {place['level']}"] if "level" in place else family


def _value(detail: ScoreDetail | None) -> float | None:
    return detail.right / detail.n if detail is not None else None


def _score_detail(metric: str, items: Results, expected: int | None, reasons: dict[str, str]) -> ScoreDetail | None:
    """None, with the reason, when the stage was not run to its end or gave no usable answer at all."""
    if expected is None or len(items) < expected:
        done = f"{len(items)} of {expected} items measured; run the same command again" if items else "not measured"
        reasons[metric] = done
        return None
    verdicts = Counter(Verdict(item["verdict"]) for item in items.values())
    if verdicts[Verdict.UNUSABLE] == len(items):
        reasons[metric] = f"no usable answer; the last: {list(items.values())[-1]['completion']['text']}"
        return None
    judged = {key: item for key, item in items.items() if item["verdict"] != Verdict.UNJUDGED}
    if not judged:
        reasons[metric] = f"no answer could be judged here; the last: {list(items.values())[-1]['detail']}"
        return None
    if verdicts[Verdict.NO_ANSWER] == len(judged):
        reasons[metric] = NOTHING_SAID
        return None
    groups: dict[str, tuple[int, int]] = {}
    for item in judged.values():
        for name in _groups(item["place"]):
            right, total = groups.get(name, (0, 0))
            groups[name] = (right + (item["verdict"] == Verdict.RIGHT), total + 1)
    return ScoreDetail(
        n=len(judged),
        right=verdicts[Verdict.RIGHT],
        wrong=verdicts[Verdict.WRONG],
        truncated=verdicts[Verdict.TRUNCATED],
        empty=verdicts[Verdict.EMPTY],
        unusable=verdicts[Verdict.UNUSABLE],
        no_answer=verdicts[Verdict.NO_ANSWER],
        unjudged=verdicts[Verdict.UNJUDGED],
        thought=sum(bool(item["completion"].get("reasoning")) for item in items.values()),
        interval_95=wilson_interval(Count(verdicts[Verdict.RIGHT], len(judged))),
        groups=dict(sorted(groups.items())),
    )


def _speed(items: Results, notes: Results, record: RunRecord, reasons: dict[str, str]) -> SpeedSummary | None:
    wanted = record.decode_repeats
    machine = Machine.model_validate(notes["machine"])
    here = {**machine.speed_conditions(), **used_memory(record.load_mode, record.memory_bytes)}
    repeats = [data for data in items.values() if data["machine"] == here]
    if record.subject.kind == "endpoint":
        reasons["cpu_tokens_per_sec"] = "an endpoint's machine and settings are not known; measure the file itself"
    elif len(repeats) < wanted:
        done = f"{len(repeats)} of {wanted} repeats measured on this machine; run the same command again"
        reasons["cpu_tokens_per_sec"] = done if items else "not measured"
    else:
        fields = DecodeRun.__dataclass_fields__
        runs = [DecodeRun(**{name: data[name] for name in fields if name in data}) for data in repeats]
        bandwidth = notes.get("bandwidth", {}).get("bytes_per_s")
        model = record.subject.model
        return summarise(runs, bandwidth, model.bytes_per_token if model is not None else None)
    return None


def _speed_conditions(record: RunRecord, machine: Machine, speed: SpeedSummary | None) -> SpeedConditions | None:
    if speed is None:
        return None
    limits = [bytes_ for bytes_ in (machine.memory_limit_bytes, record.memory_bytes) if bytes_ is not None]
    return SpeedConditions(
        score_fingerprint=record.conditions.fingerprint,
        cpu_model=machine.cpu_model,
        cpu_flags=machine.cpu_flags,
        allowed_cpus=machine.allowed_cpus,
        cpu_quota=machine.cpu_quota,
        memory_bytes=machine.memory_bytes,
        memory_limit_bytes=min(limits, default=None),
        threads=speed.threads,
        omp_wait_policy=speed.omp_wait_policy,
        load_mode=record.load_mode,
        flash_attention=FLASH_ATTENTION,
        batch=BATCH,
        ubatch=UBATCH,
        decode_tokens=speed.decode_tokens,
        repeats=speed.repeats,
    )


def _artifact(subject: Subject) -> Artifact:
    return Artifact(
        kind=subject.kind,
        name=subject.name,
        file_bytes=subject.file_bytes,
        file_sha256=subject.file_sha256,
        content_sha256=subject.content_sha256,
        model=subject.model,
    )


def _statement(subject: Subject) -> str:
    if subject.kind == "endpoint":
        return f"Measured on what the endpoint answered under the name {subject.name}; its file was not seen."
    reference = f"the DFQS reference model, which has {REFERENCE_PARAMETERS / 1e9:.1f} billion"
    if subject.model is None:
        return (
            "Measured on a file whose parameters the run does not tell. Nothing shows that these are scores of "
            f"{reference}."
        )
    parameters = subject.model.parameters
    if abs(parameters - REFERENCE_PARAMETERS) < 0.02 * REFERENCE_PARAMETERS:
        return "Measured on this file, under the conditions below."
    return (
        f"Measured on this file of {parameters:,} parameters. These are not scores of {reference}, and say nothing "
        "about it."
    )
