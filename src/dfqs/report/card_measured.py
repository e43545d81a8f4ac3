"""Those sections of a model card that a report, a plan and a conformance statement fill. Pure."""

from dfqs.report.conform_facts import Facts
from dfqs.report.conformance import ConformanceDocument, Judgement
from dfqs.report.facts import (
    CONTEXT_HEADER,
    PROFILE_HEADER,
    PROFILE_WORDS,
    Row,
    artifact_rows,
    condition_rows,
    context_rows,
    profile_rows,
    speed_rows,
    tool_rows,
)
from dfqs.report.markup import escape_words, table
from dfqs.report.schema import Report
from dfqs.units import format_bytes

NOTICES_LIMIT = 40
"""Of a report's notes; one of ours has a handful."""
CLAUSE_HEADER = ("", "", "clause", "verdict", "evidence")
_MACHINE_ROWS = frozenset({"processor", "memory", "system", "machine"})


def requirements(conformance: ConformanceDocument, *sections: str) -> str:
    """Clauses of sections, each with its verdict and what it rests on."""
    rows: list[Row] = [
        (clause.id, clause.level, clause.clause, clause.verdict.value, clause.evidence)
        for clause in conformance.clauses
        if clause.section in sections
    ]
    return table(CLAUSE_HEADER, rows) if rows else "Not measured: the specification asks for nothing here."


def validation(conformance: ConformanceDocument) -> str:
    """Sections 15 and integrity, and how it all adds up."""
    passed = sum(clause.verdict is Judgement.PASS for clause in conformance.clauses)
    summary = (
        f"{passed} of {len(conformance.clauses)} clauses pass, {len(conformance.failed)} fail, "
        f"{len(conformance.untested)} not tested; every SHALL passes: {'yes' if conformance.conforms else 'no'}."
    )
    return f"{requirements(conformance, 'integrity', '15')}\n\n{summary}"


def capabilities(report: Report) -> str:
    """Section 6, measured beside claimed."""
    rows = report.details.profile
    if not rows or all(row.level is None for row in rows):
        return "Not measured: the capability profile was not part of this evaluation (`dfqs eval --suite standard`)."
    said = [PROFILE_WORDS, table(PROFILE_HEADER, profile_rows(rows))]
    tools = report.details.tools
    if tools is not None:
        said += ["Tool calls:", table(("", "", ""), tool_rows(tools))]
    return "\n\n".join(said)


def behaviour(conformance: ConformanceDocument, report: Report) -> str:
    """Section 10, and what limits the file as far as this evaluation shows."""
    metrics = {f"11.{number}" for number in range(1, 6)}
    limits = [
        f"- {clause.id} fails ({clause.clause}): {escape_words(clause.evidence)}"
        for clause in conformance.clauses
        # Of a metric that is null the reason stands below.
        if clause.verdict is Judgement.FAIL and clause.id not in metrics
    ]
    reasons = [*report.reasons.items()][:NOTICES_LIMIT]
    limits += [f"- {escape_words(name, 60)} is null: {escape_words(why)}" for name, why in reasons]
    shown = "\n".join(limits) or "- Nothing that was measured fails."
    return f"{requirements(conformance, '10')}\n\n### Limitations\n\n{shown}"


def evaluation(report: Report) -> str:
    """Section 11: what is behind the five metrics, and under which conditions they were measured."""
    parts = ["The five required metrics stand at the top of this card."]
    context = report.details.context
    if context is not None:
        parts += ["### By context length", table(CONTEXT_HEADER, context_rows(context))]
    parts += ["### Conditions", table(("", ""), condition_rows(report))]
    parts.append(f"Measured {escape_words(report.measured_at, 40)} by dfqs {escape_words(report.dfqs_version)}.")
    parts += [f"- {escape_words(notice)}" for notice in report.notices[:NOTICES_LIMIT]]
    return "\n\n".join(parts)


def envelope(facts: Facts) -> str:
    """Section 14: where it was measured and how fast, and what the runtime says that it takes."""
    report, parts = facts.report, []
    speed = report.details.speed
    machine: list[Row] = [row for row in artifact_rows(report) if row[0] in _MACHINE_ROWS]
    if speed is None:
        why = report.reasons.get("cpu_tokens_per_sec", "not measured")
        parts.append(f"Not measured: no speed ({escape_words(why)}).")
    else:
        parts += ["Measured here:", table(("", ""), machine), table(("", "", ""), speed_rows(speed))]
    plan = facts.plan
    needs: list[Row] = []
    for context in plan.contexts if plan is not None else ():
        if context.total_bytes is not None:
            needs.append(
                (
                    f"{context.context_tokens:,}",
                    context.profile,
                    format_bytes(context.total_bytes),
                    context.verdict.value,
                )
            )
    if plan is None or not needs:
        parts.append("Memory by context: not computed, for the runtime did not tell.")
    else:
        parts += [
            f"Computed by {escape_words(plan.runtime)}, held against {format_bytes(plan.memory_bytes)} of memory:",
            table(("context in tokens", "settings", "memory", ""), needs),
        ]
    return "\n\n".join(parts)


def energy(report: Report) -> str:
    """Section 18, where the machine could tell."""
    speed = report.details.speed
    joules = speed.energy_joules_per_token if speed is not None else None
    if joules is None:
        return "Not measured: the machine's energy counters (RAPL) could not be read. No offset is claimed."
    return (
        f"{joules:.2f} J for each token that was decoded, {joules / 3.6:.2f} Wh for a thousand, by the counters of the "
        f"processors (RAPL), with everything else that ran on them. No offset is claimed."
    )
