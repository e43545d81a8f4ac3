"""A model held against the specification: every clause and every claim, by what was found out about it."""

from dfqs.report.claims import judge_claims
from dfqs.report.clauses import Clause
from dfqs.report.clauses_behaviour import BEHAVIOUR
from dfqs.report.clauses_requirements import REQUIREMENTS
from dfqs.report.conform_facts import Facts
from dfqs.report.conformance import ConformanceDocument, Judgement

CLAUSES: tuple[Clause, ...] = (*REQUIREMENTS, *BEHAVIOUR)


def judge(facts: Facts) -> ConformanceDocument:
    """Every verdict. Pure."""
    clauses = tuple(clause.rule(facts) for clause in CLAUSES)
    shall = [clause for clause in clauses if clause.level == "SHALL"]
    return ConformanceDocument(
        model=str(facts.model),
        name=facts.report.artifact.name,
        content_sha256=facts.hashes.content_sha256 if facts.hashes is not None else None,
        report=str(facts.report_place),
        clauses=clauses,
        claims=judge_claims(facts),
        conforms=all(clause.verdict is Judgement.PASS for clause in shall),
        failed=tuple(clause.id for clause in clauses if clause.verdict is Judgement.FAIL),
        untested=tuple(clause.id for clause in clauses if clause.verdict is Judgement.NOT_TESTED),
    )
