"""What a clause is judged with: the words that its verdict is made of, and what several clauses ask for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dfqs.integrity.findings import Finding, Severity
from dfqs.report.conform_facts import Facts
from dfqs.report.conformance import ClauseVerdict, Judgement

EVAL = "dfqs eval MODEL -o DIRECTORY"
PLAN = "dfqs plan MODEL --json > DIRECTORY/plan.json"
CHECK = "dfqs route check MODEL --json > DIRECTORY/route-check.json"
DIFF = "dfqs route diff REFERENCE.route MODEL.route --json > DIRECTORY/route-diff.json"
VERIFY = "dfqs verify MODEL"
MANIFEST = "dfqs verify MODEL --manifest MODEL.manifest.json"


@dataclass(frozen=True, slots=True)
class Ruling:
    """A verdict, what it rests on, and the file that this stands in."""

    verdict: Judgement
    evidence: str
    source: str


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause of the specification, and how it is judged. The procedure stands in docs/specification.md."""

    id: str
    level: Literal["SHALL", "SHOULD", "MAY", "states"]
    section: str
    words: str
    command: str
    judge: Callable[[Facts], Ruling]

    def rule(self, facts: Facts) -> ClauseVerdict:
        """Its verdict."""
        ruling = self.judge(facts)
        return ClauseVerdict(
            id=self.id,
            level=self.level,
            section=self.section,
            clause=self.words,
            verdict=ruling.verdict,
            evidence=ruling.evidence,
            source=ruling.source,
            command=self.command,
        )


def passes(holds: bool, evidence: str, source: object) -> Ruling:
    """PASS or FAIL."""
    return Ruling(Judgement.PASS if holds else Judgement.FAIL, evidence, str(source))


def untested(why: str, source: object = "") -> Ruling:
    """Nothing here tells."""
    return Ruling(Judgement.NOT_TESTED, why, str(source))


def errors_of(findings: tuple[Finding, ...]) -> list[Finding]:
    """Those that make a check fail."""
    return [finding for finding in findings if finding.severity is Severity.ERROR]


def foreign_report(facts: Facts) -> Ruling | None:
    """Numbers of another file say nothing about this one; None: they are of this file, or nothing speaks against it."""
    if facts.same_file is False:
        return untested("the report is of another file: their content hashes differ", facts.report_place)
    if facts.report.artifact.kind == "endpoint":
        return untested("the report is of an endpoint, whose file was not seen", facts.report_place)
    return None


def answered(facts: Facts) -> int:
    """How many questions got an answer that could be judged."""
    details = facts.report.details
    scores = [detail for detail in (details.reasoning, details.code) if detail is not None]
    count = sum(detail.n - detail.unusable - detail.empty for detail in scores)
    context = details.context
    if context is None:
        return count
    if context.unusable is None or context.empty is None:
        # The oldest reports do not tell them apart; only what was right is known to be an answer.
        return count + sum(context.right)
    return count + sum(n - u - e for n, u, e in zip(context.n, context.unusable, context.empty, strict=True))


def runtime_failure(facts: Facts) -> str | None:
    """Why the runtime failed: at the shortest length that was tried, or at every question; None: it did not."""
    if facts.refusal is not None:
        return f"at each of {facts.questions:,} questions: {facts.refusal[:300]}"
    boundary = facts.report.details.boundary
    lengths = sorted(boundary.lengths, key=lambda entry: entry.length_tokens) if boundary is not None else []
    return f"at {lengths[0].length_tokens:,} tokens: {lengths[0].failure}" if lengths and lengths[0].failure else None
