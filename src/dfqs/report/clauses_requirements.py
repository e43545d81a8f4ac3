"""Requirements (section 3), sizes (9), integrity, the hardware envelope (14) and validation (15)."""

from collections.abc import Callable

from dfqs.report.clauses import (
    CHECK,
    EVAL,
    MANIFEST,
    PLAN,
    VERIFY,
    Clause,
    Ruling,
    answered,
    errors_of,
    foreign_report,
    passes,
    runtime_failure,
    untested,
)
from dfqs.report.conform_facts import Facts
from dfqs.report.conformance import Judgement
from dfqs.units import format_bytes

ENVELOPE_BYTES = 70_000_000_000
LONG_TOKENS = 65_536


def single_file(facts: Facts) -> Ruling:
    """One file of sound form, and not a shard of several."""
    if facts.description is None:
        return passes(False, "it cannot be read as a model", facts.model)
    if facts.files > 1:
        return passes(False, f"it lies in {facts.files} shards; dfqs merge makes one file of them", facts.model)
    found = errors_of(facts.findings)
    if found:
        return passes(False, f"one file, whose form is wrong: {found[0].message}", facts.model)
    return passes(True, f"one file of {facts.description.file_bytes:,} bytes, its form is right", facts.model)


def runs_on_cpu(facts: Facts) -> Ruling:
    """It decoded on the CPU alone, and answered."""
    other = foreign_report(facts)
    if other is not None:
        return other
    rate, count, failure = facts.report.metrics.cpu_tokens_per_sec, answered(facts), runtime_failure(facts)
    if failure is not None:
        return passes(False, f"the runtime failed {failure}", facts.report_place)
    if rate is None:
        why = facts.report.reasons.get("cpu_tokens_per_sec", "not measured")
        return untested(f"cpu_tokens_per_sec is null: {why}", facts.report_place)
    if count == 0:
        # A rate alone is also had from a model whose logits are no numbers.
        return untested(f"{rate:.2f} tokens/s, and not one answer that could be judged", facts.report_place)
    memory = facts.report.machine.memory_limit_bytes or facts.report.machine.memory_bytes
    words = f"{rate:.2f} tokens/s on the CPU alone with {format_bytes(memory)} of memory, {count:,} answers judged"
    return passes(True, words, facts.report_place)


def routing_deterministic(facts: Facts) -> Ruling:
    """The standard load routes each request as it does alone; judged by its rows, not by the sentence at their end."""
    check = facts.check
    if facts.description is not None and not facts.description.is_moe:
        return untested("a dense model routes nothing", facts.model)
    if check is None:
        return untested("no check of routing of this model is here", "")
    failure = runtime_failure(facts)
    if failure is not None and facts.same_file is not False:
        return passes(False, f"what was compared are no numbers: the runtime failed {failure}", facts.report_place)
    rows = check.load.requests
    compared = sum(row.compared_tokens for row in rows if row.same_set_share is not None)
    if not rows or any(row.same_set_share is None or row.compared_tokens == 0 for row in rows):
        return passes(False, f"{compared:,} tokens were compared; nothing compared is no agreement", facts.check_place)
    other = [row for row in rows if row.same_set_share != 1.0 or not row.routing_identical or not row.same_answer]
    words = f"{len(rows) - len(other)} of {len(rows)} requests routed as when alone, {compared:,} tokens compared"
    return passes(not other and check.holds and check.load.holds, words, facts.check_place)


def llama_cpp(facts: Facts) -> Ruling:
    """llama.cpp loads it, and answered."""
    own = [row for row in facts.plan.loaders if row.asked] if facts.plan is not None else []
    refused = next((row for row in own if row.verdict == "FAILED"), None)
    if refused is not None:
        return passes(False, f"{refused.loader}: {refused.evidence}", facts.plan_place)
    other = foreign_report(facts)
    runtime, failure = facts.report.conditions.score.runtime, runtime_failure(facts)
    if other is None and failure is not None:
        return passes(False, f"it failed {failure}", facts.report_place)
    if other is None and runtime is not None and answered(facts):
        is_it = runtime.startswith("llama.cpp")
        return passes(is_it, f"{answered(facts):,} answers judged, by {runtime}", facts.report_place)
    if own and own[0].verdict == "PASSED":
        return untested(f"{own[0].loader} loads its header, and no answer of it is here", facts.plan_place)
    return other or untested("no answer of it is here", facts.report_place)


def long_context_analysed(facts: Facts) -> Ruling:
    """The curve has several lengths, and a boundary was looked for."""
    metrics, context = facts.report.metrics, facts.report.details.context
    lengths = len(context.lengths_tokens) if context is not None else 0
    if not metrics.context_stability_curve or lengths < 2:
        return passes(False, f"a curve of {lengths} lengths; degradation takes two", facts.report_place)
    looked = "a boundary was looked for" if facts.report.details.boundary is not None else "no boundary was looked for"
    return passes(facts.report.details.boundary is not None, f"{lengths} lengths, and {looked}", facts.report_place)


def gpu_may_be_used(facts: Facts) -> Ruling:
    """Computed by a plan; no GPU is used here, so it never passes."""
    split = facts.plan.split if facts.plan is not None else None
    if split is None:
        return untested("everything here runs on the CPU; dfqs plan --vram computes a split", facts.plan_place)
    words = f"{split.gpu_layers} layers on a GPU of {format_bytes(split.vram_bytes)}: {split.basis}"
    if not split.fits:
        return passes(False, f"{words}; it does not fit", facts.plan_place)
    return untested(words, facts.plan_place)


def beyond_64k(facts: Facts) -> Ruling:
    """A length above 65,536 tokens answered, or a model that was never trained for one."""
    trained = facts.description.context_tokens if facts.description is not None else None
    if trained is not None and trained <= LONG_TOKENS:
        return passes(False, f"trained for {trained:,} tokens", facts.model)
    other = foreign_report(facts)
    if other is not None:
        return other
    boundary = facts.report.details.boundary
    looked = [entry for entry in boundary.lengths if entry.length_tokens > LONG_TOKENS] if boundary is not None else []
    if not looked:
        return untested("no context above 65,536 tokens was measured", facts.report_place)
    worked = [entry for entry in looked if entry.failure is None and entry.right > 0]
    if worked:
        longest = max(entry.length_tokens for entry in worked)
        return passes(True, f"answers right at {longest:,} tokens", facts.report_place)
    words = looked[0].failure or "no answer was right"
    return passes(False, f"at {looked[0].length_tokens:,} tokens: {words}", facts.report_place)


def below_70_gb(facts: Facts) -> Ruling:
    """The file, and what the shortest planned context takes."""
    if facts.description is None:
        return passes(False, "it cannot be read as a model", facts.model)
    size = facts.description.file_bytes
    totals = [row.total_bytes for row in facts.plan.contexts if row.total_bytes is not None] if facts.plan else []
    words = f"a file of {format_bytes(size)}"
    if not totals:
        return passes(False, words, facts.model) if size >= ENVELOPE_BYTES else untested(f"{words}; memory not known")
    words += f", {format_bytes(min(totals))} of memory at the shortest planned context"
    return passes(max(size, min(totals)) < ENVELOPE_BYTES, words, facts.plan_place)


def cpu_moe(facts: Facts) -> Ruling:
    """A Mixture-of-Experts that ran on the CPU."""
    if facts.description is not None and not facts.description.is_moe:
        return passes(False, "it is dense: it has no routed experts", facts.model)
    return runs_on_cpu(facts)


def sound_form(facts: Facts) -> Ruling:
    """No error in its header, layout and size."""
    found = errors_of(facts.findings)
    if found:
        return passes(False, f"{len(found)} errors; the first: {found[0].message}", facts.model)
    return passes(True, "header, layout and length are right", facts.model)


def report_of_this_file(facts: Facts) -> Ruling:
    """The content hash of the report is that of the file."""
    if facts.hashes is None:
        return untested("the file was not hashed", facts.model)
    theirs = facts.report.artifact.content_sha256
    if theirs is None:
        return untested("the report tells no content hash", facts.report_place)
    words = f"content {facts.hashes.content_sha256[:16]}, the report's {theirs[:16]}"
    return passes(facts.same_file is True, words, facts.report_place)


def as_recorded(facts: Facts) -> Ruling:
    """Every tensor has the hash that the manifest beside the file records."""
    if facts.manifest is None:
        return untested("no manifest lies beside it, or the file was not hashed", facts.model)
    found = errors_of(facts.manifest_findings)
    if found:
        return passes(False, f"{len(found)} errors; the first: {found[0].message}", facts.manifest)
    return passes(True, "every tensor has its recorded hash", facts.manifest)


def envelope_row(component: str, level: str) -> Callable[[Facts], Ruling]:
    """One number of the table against the plan."""

    def judge(facts: Facts) -> Ruling:
        rows = facts.plan.envelope if facts.plan is not None else ()
        row = next((row for row in rows if (row.component, row.level) == (component, level)), None)
        if row is None or row.holds is None or row.needed_bytes is None:
            return untested("the runtime did not tell what it takes", facts.plan_place)
        words = f"computed: {format_bytes(row.needed_bytes)} of {format_bytes(row.given_bytes)}, for {row.needed_for}"
        return passes(row.holds and row.needed_bytes <= row.given_bytes, words, facts.plan_place)

    return judge


def validated_at_load(facts: Facts) -> Ruling:
    """Its form is right and the runtime loads it."""
    form = sound_form(facts)
    if form.verdict is Judgement.FAIL:
        return form
    return llama_cpp(facts)


_ENVELOPE = (("RAM", "80GB", "128GB"), ("GPU VRAM", "22GB", "24GB+"), ("storage", "60GB", "150GB"))

REQUIREMENTS = (
    Clause("3.1", "SHALL", "3", "support single-file GGUF execution", VERIFY, single_file),
    Clause("3.2", "SHALL", "3", "operate in CPU-constrained environments", EVAL, runs_on_cpu),
    Clause(
        "3.3",
        "SHALL",
        "3",
        "routing remains deterministic under standard inference loads",
        CHECK,
        routing_deterministic,
    ),
    Clause("3.4", "SHOULD", "3", "support llama.cpp runtime compatibility", EVAL, llama_cpp),
    Clause("3.5", "SHOULD", "3", "evaluation includes long-context degradation analysis", EVAL, long_context_analysed),
    Clause("3.6", "MAY", "3", "GPU acceleration be used for optimization", PLAN, gpu_may_be_used),
    Clause("3.7", "MAY", "3", "extended context beyond 64K be supported", f"{EVAL} --context 128k", beyond_64k),
    Clause("9.1", "states", "9", "sub-70GB operational envelope", PLAN, below_70_gb),
    Clause("9.2", "states", "9", "CPU-accessible MoE inference", EVAL, cpu_moe),
    Clause("I.1", "states", "integrity", "file integrity", VERIFY, sound_form),
    Clause("I.2", "states", "integrity", "the report is of this artifact", VERIFY, report_of_this_file),
    Clause(
        "I.3", "states", "integrity", "deterministic reconstruction: as its manifest records", MANIFEST, as_recorded
    ),
    *(
        Clause(
            f"14.{2 * place + half}",
            "states",
            "14",
            f"{level} {component}: {given}",
            PLAN,
            envelope_row(component, level),
        )
        for place, (component, *amounts) in enumerate(_ENVELOPE)
        for half, (level, given) in enumerate(zip(("minimum", "recommended"), amounts, strict=True), start=1)
    ),
    Clause("15.1", "states", "15", "GGUF integrity: validated at load-time", VERIFY, validated_at_load),
    Clause("15.2", "states", "15", "single-file structure: confirmed", VERIFY, single_file),
    Clause("15.3", "states", "15", "llama.cpp compatibility: tested", EVAL, llama_cpp),
    Clause("15.4", "states", "15", "CPU inference: operational", EVAL, runs_on_cpu),
)
