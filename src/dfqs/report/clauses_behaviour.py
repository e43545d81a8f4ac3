"""Behaviour (section 10), required metrics and the measurement convention (section 11)."""

from collections.abc import Callable
from itertools import pairwise

from dfqs.evaluate.items import frozen_hashes
from dfqs.evaluate.stages import CODE, CONTEXT, REASONING
from dfqs.report.clauses import (
    CHECK,
    DIFF,
    EVAL,
    Clause,
    Ruling,
    foreign_report,
    passes,
    untested,
)
from dfqs.report.clauses_requirements import runs_on_cpu
from dfqs.report.conform_facts import Facts
from dfqs.report.conformance import Judgement

STABLE_SHARE = 0.95
"""Of a run's decisions that choose the same experts, under the worst condition of the matrix."""
COHERENT_SHARE = 0.5
"""Of the way from chance to full agreement that expert choices keep of the reference's."""
FEASIBLE_TOKENS_PER_S = 1.0
METRICS = {
    "reasoning_score": "float",
    "code_score": "float",
    "context_stability_curve": "list[float]",
    "cpu_tokens_per_sec": "float",
    "failure_boundary_tokens": "int",
}


def routing_stable(facts: Facts) -> Ruling:
    """No condition of the matrix changes more than one decision in twenty."""
    check = facts.check
    if check is None:
        return untested("no check of routing of this model is here")
    tried = [row for row in check.matrix if row.refused is None]
    if not tried:
        return untested("its matrix was left out", facts.check_place)
    empty = [row for row in tried if row.same_set_share is None]
    if empty or check.matrix_tokens == 0:
        return passes(False, "nothing was compared, which is no agreement", facts.check_place)
    worst = min(tried, key=lambda row: row.same_set_share or 0.0)
    share = worst.same_set_share or 0.0
    words = f"the same experts in {share:.4f} of decisions at worst ({worst.condition}), of {len(tried)} conditions"
    return passes(share >= STABLE_SHARE, words, facts.check_place)


def execution_deterministic(facts: Facts) -> Ruling:
    """A repeat and a restarted process give the same logits, bit for bit."""
    check = facts.check
    if check is None:
        return untested("no check of routing of this model is here")
    rows = [row for row in check.matrix if row.condition in ("repeat", "process restart")]
    if not rows:
        return untested("its matrix was left out", facts.check_place)
    if any(row.logits_identical is None or row.same_set_share is None for row in rows) or check.matrix_tokens == 0:
        return passes(False, "nothing was compared, which is no agreement", facts.check_place)
    other = [row.condition for row in rows if not row.logits_identical or row.same_set_share != 1.0]
    words = f"{check.matrix_tokens:,} tokens: " + (f"other logits after {other[0]}" if other else "the same logits")
    return passes(not other, words, facts.check_place)


def degrades_gradually(facts: Facts) -> Ruling:
    """No adjacent drop of the curve is above half of its first score."""
    other = foreign_report(facts)
    if other is not None:
        return other
    curve = facts.report.metrics.context_stability_curve
    if curve is None or len(curve) < 2:
        return untested(f"a curve of {len(curve or ())} lengths", facts.report_place)
    if curve[0] == 0:
        return untested("nothing was right at the shortest length, so nothing could degrade", facts.report_place)
    drop = max(before - after for before, after in pairwise(curve))
    words = f"the largest drop between two lengths is {max(drop, 0):.3f}, half of the first score {curve[0] / 2:.3f}"
    return passes(drop <= curve[0] / 2, words, facts.report_place)


def cpu_feasible(facts: Facts) -> Ruling:
    """At least one token a second."""
    ran = runs_on_cpu(facts)
    rate = facts.report.metrics.cpu_tokens_per_sec
    if ran.verdict is not Judgement.PASS or rate is None:
        return ran
    return passes(rate >= FEASIBLE_TOKENS_PER_S, f"{rate:.2f} tokens/s, of at least 1", facts.report_place)


def experts_coherent(facts: Facts) -> Ruling:
    """Its experts are chosen as the reference's are, half of the way from chance to full agreement or more."""
    diff = facts.diff
    if diff is None:
        return untested("no difference of its routing from a reference's is here")
    overall = diff.overall
    if diff.tokens == 0 or overall.decisions == 0:
        return passes(False, "no decision was compared, which is no agreement", facts.diff_place)
    chance = overall.chance_jaccard if overall.chance_jaccard is not None else diff.uniform_chance_jaccard
    kept = (overall.jaccard - chance) / (1 - chance) if chance < 1 else 0.0
    words = f"Jaccard {overall.jaccard:.4f} over {overall.decisions:,} decisions, chance {chance:.4f}: {kept:.2f} of it"
    return passes(kept >= COHERENT_SHARE, words, facts.diff_place)


def metric_reported(name: str) -> Callable[[Facts], Ruling]:
    """It is a number of its type, and of this file."""

    def judge(facts: Facts) -> Ruling:
        if facts.same_file is False:
            return untested("the report is of another file: their content hashes differ", facts.report_place)
        value = getattr(facts.report.metrics, name)
        if value is None or value == []:
            return passes(False, f"null: {facts.report.reasons.get(name, 'not measured')}", facts.report_place)
        shown = ", ".join(f"{each:.3f}" for each in value) if isinstance(value, list) else f"{value:,.6g}"
        return passes(True, f"{shown} ({METRICS[name]})", facts.report_place)

    return judge


def on_the_cpu(facts: Facts) -> Ruling:
    """dfqs evaluates files with no layer on a GPU; an endpoint does not tell, and nothing specifies it."""
    if facts.report.artifact.kind == "endpoint":
        return passes(False, "an endpoint: neither CPU only nor specified", facts.report_place)
    speed = facts.report.conditions.speed
    words = f"{speed.threads} threads, no layer on a GPU" if speed is not None else "no layer on a GPU"
    return passes(True, words, facts.report_place)


def by_llama_cpp(facts: Facts) -> Ruling:
    """The runtime that the conditions name."""
    runtime = facts.report.conditions.score.runtime
    if runtime is None:
        return untested("the conditions do not tell the runtime", facts.report_place)
    return passes(runtime.startswith("llama.cpp"), runtime, facts.report_place)


def standard_prompts(facts: Facts) -> Ruling:
    """Every set is a frozen one of this version, and those of the metrics are among them."""
    frozen = frozen_hashes()
    told = facts.report.conditions.score.prompt_sets
    other = [name for name, digest in told.items() if frozen.get(name) != digest]
    missing = [name for name in (REASONING, CODE, CONTEXT) if name not in told]
    if other or missing:
        return passes(False, f"not the frozen set: {', '.join([*other, *missing])}", facts.report_place)
    return passes(True, ", ".join(f"{name} {digest[:12]}" for name, digest in told.items()), facts.report_place)


def identical_conditions(facts: Facts) -> Ruling:
    """All metrics are of one run, whose conditions have the fingerprints that the report gives."""
    conditions = facts.report.conditions
    score = conditions.score.fingerprint
    if conditions.score_fingerprint != score:
        return passes(False, "the score fingerprint is not that of the conditions", facts.report_place)
    speed = conditions.speed
    if speed is not None and speed.score_fingerprint != score:
        return passes(False, "speed was measured under other score conditions", facts.report_place)
    if speed is not None and conditions.speed_fingerprint != speed.fingerprint:
        return passes(False, "the speed fingerprint is not that of the conditions", facts.report_place)
    return passes(True, f"one run; score fingerprint {score[:16]}", facts.report_place)


BEHAVIOUR = (
    Clause("10.1", "states", "10", "routing consistency: stable", CHECK, routing_stable),
    Clause("10.2", "states", "10", "deterministic execution: maintained", CHECK, execution_deterministic),
    Clause("10.3", "states", "10", "long-context stability: gradual degradation", EVAL, degrades_gradually),
    Clause("10.4", "states", "10", "CPU feasibility: supported", EVAL, cpu_feasible),
    Clause("10.5", "states", "10", "expert coherence: preserved", DIFF, experts_coherent),
    *(
        Clause(f"11.{number}", "SHALL", "11", f"report {name}: {type_}", EVAL, metric_reported(name))
        for number, (name, type_) in enumerate(METRICS.items(), start=1)
    ),
    Clause("11.6", "states", "11", "CPU-only baseline unless specified", EVAL, on_the_cpu),
    Clause("11.7", "states", "11", "llama.cpp runtime", EVAL, by_llama_cpp),
    Clause("11.8", "states", "11", "standardized prompt sets", EVAL, standard_prompts),
    Clause("11.9", "SHALL", "11", "identical prompt and runtime conditions", EVAL, identical_conditions),
)
