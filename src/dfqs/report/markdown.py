"""A report for reading."""

from collections.abc import Iterable

from dfqs.errors import printable
from dfqs.report.facts import (
    CONTEXT_HEADER,
    FLOOR_HEADER,
    FLOOR_WORDS,
    LIKELIHOOD_WORDS,
    PROFILE_HEADER,
    PROFILE_WORDS,
    SCORES,
    artifact_rows,
    condition_rows,
    context_rows,
    describe_others,
    floor_rows,
    likelihood_rows,
    metric_rows,
    profile_rows,
    speed_rows,
    tool_rows,
)
from dfqs.report.markup import escape_words, table
from dfqs.report.schema import ContextDetail, Report, ScoreDetail


def render_markdown(report: Report) -> str:
    """The report as Markdown. Texts from outside are escaped; what was not measured says so."""
    parts = [
        f"# {escape_words(report.artifact.name)}: DFQS evaluation",
        escape_words(report.statement),
        _metrics(report),
        "## Behind the numbers",
        *_score_sections(report),
        _context(report.details.context),
        _boundary(report),
        _likelihood(report),
        _floor(report),
        _tools(report),
        _profile(report),
        _speed(report),
        "## What was measured",
        table(("", ""), artifact_rows(report)),
        "## Under which conditions",
        _conditions(report),
    ]
    if report.notices:
        parts += ["## Notes", "\n".join(f"- {escape_words(notice)}" for notice in report.notices)]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_summary(report: Report) -> str:
    """The five metrics, a line each, for a terminal."""
    plain = [(name, printable(value, 400), printable(beside, 400)) for name, value, beside in metric_rows(report)]
    lines = [f"{name:<26}{value}" + (f"  ({beside})" if beside else "") for name, value, beside in plain]
    return "\n".join([*lines, "", printable(report.statement, 600)])


def _metrics(report: Report) -> str:
    return table(("metric", "value", ""), metric_rows(report))


def _score_sections(report: Report) -> Iterable[str]:
    for name, stage in SCORES:
        detail: ScoreDetail | None = getattr(report.details, stage)
        if detail is None:
            continue
        wrong = (
            f"{detail.right} of {detail.n} right; {detail.wrong} wrong, {detail.truncated} cut off at the token cap, "
            f"{detail.empty} empty, {detail.unusable} without a usable answer (all of these count as wrong)."
        )
        if detail.thought or detail.unjudged:
            wrong += (
                f" {detail.thought} thought first, {detail.no_answer} of all said nothing outside of thoughts (wrong, "
                f"too); {detail.unjudged} could not be judged here and are left out."
            )
        groups = ", ".join(f"{escape_words(group)} {right}/{total}" for group, (right, total) in detail.groups.items())
        yield f"**{name}**: {wrong} By group: {groups}."


def _context(context: ContextDetail | None) -> str:
    if context is None:
        return ""
    told = "**Context.** What was cut off, empty or no usable answer counts as wrong.\n\n"
    return told + table(CONTEXT_HEADER, context_rows(context))


def _boundary(report: Report) -> str:
    boundary = report.details.boundary
    if boundary is None or not boundary.lengths:
        return ""
    looked = ", ".join(
        f"{entry.length_tokens:,} ({'runtime failed' if entry.failure else f'{entry.right}/{entry.n}'})"
        for entry in boundary.lengths
    )
    return f"**Failure boundary.** {_sentence(escape_words(boundary.reason))} Lengths looked at: {looked}."


def _likelihood(report: Report) -> str:
    detail = report.details.likelihood
    if detail is None:
        return ""
    return f"**Given answers.** {LIKELIHOOD_WORDS}\n\n{table(('', '', ''), likelihood_rows(detail))}"


def _floor(report: Report) -> str:
    floor = report.details.noise_floor
    if floor is None:
        return ""
    told = f"**Noise floor.** {FLOOR_WORDS} {floor.tokens:,} tokens; the reference: {escape_words(floor.reference)}."
    return f"{told}\n\n{table(FLOOR_HEADER, floor_rows(floor))}"


def _tools(report: Report) -> str:
    tools = report.details.tools
    return "" if tools is None else f"**Tool calls.**\n\n{table(('', '', ''), tool_rows(tools))}"


def _profile(report: Report) -> str:
    rows = report.details.profile
    if rows is None:
        return ""
    told = f"**Capability profile.** {PROFILE_WORDS}"
    return f"{told}\n\n{table(PROFILE_HEADER, profile_rows(rows))}"


def _speed(report: Report) -> str:
    speed = report.details.speed
    if speed is None:
        return ""
    rows = table(("", "", ""), speed_rows(speed))
    return f"**Speed.**\n\n{rows}\n\n{describe_others(speed)}."


def _conditions(report: Report) -> str:
    version = escape_words(report.dfqs_version)
    made = f"Made {escape_words(report.measured_at)} by dfqs {version}, schema {report.schema_}."
    return (
        table(("", ""), condition_rows(report))
        + f"\n\nScores compare when score fingerprints are equal, speeds when speed fingerprints are. {made}"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
