"""What a report says, as rows of plain words and numbers: whoever renders it puts them into a form.

Nothing here is escaped; who renders escapes everything but a row's first cell, which is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dfqs.evaluate.conditions import Numerics, ScoreConditions
from dfqs.evaluate.speed import SpeedSummary
from dfqs.model.description import ModelDescription
from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.noise_floor import NoiseFloor
from dfqs.report.schema import ContextDetail, LikelihoodDetail, ProfileRow, Report, ScoreDetail, ToolDetail
from dfqs.units import format_bytes, format_count

QUIET_CPUS = 0.1
"""More than this, kept busy by others, and a rate tells more about them than about the model."""

SCORES = (("reasoning_score", "reasoning"), ("code_score", "code"))


@dataclass(frozen=True, slots=True)
class Code:
    """A hash, to be shown as code."""

    value: str


Part = str | Code
Cell = Part | Sequence[Part]
"""Words, a hash, or several of them one after the other."""
Row = tuple[Cell, ...]


def metric_rows(report: Report) -> list[tuple[str, str, str]]:
    """Name, value (or null and why), and what stands beside it."""
    metrics, rows = report.metrics, []
    for name, stage in SCORES:
        value: float | None = getattr(metrics, name)
        detail: ScoreDetail | None = getattr(report.details, stage)
        beside = f"{format_interval(detail.interval_95)}, n = {detail.n}" if detail is not None else ""
        rows.append((name, _missing(report, name) if value is None else f"{value:.3f}", beside))
    curve, context = metrics.context_stability_curve, report.details.context
    shown = (
        _missing(report, "context_stability_curve") if curve is None else ", ".join(f"{value:.3f}" for value in curve)
    )
    at = f"at {', '.join(f'{n:,}' for n in context.lengths_tokens)} tokens" if curve is not None and context else ""
    rows.append(("context_stability_curve", shown, at))
    rate = metrics.cpu_tokens_per_sec
    shown = _missing(report, "cpu_tokens_per_sec") if rate is None else f"{rate:.2f}"
    rows.append(("cpu_tokens_per_sec", shown, _beside_speed(report.details.speed)))
    boundary, tokens = report.details.boundary, metrics.failure_boundary_tokens
    shown = _missing(report, "failure_boundary_tokens") if tokens is None else f"{tokens:,}"
    if boundary is not None and boundary.censored:
        shown += " (censored)"
    why = boundary.reason if boundary is not None and tokens is not None else ""
    rows.append(("failure_boundary_tokens", shown, why))
    return rows


CONTEXT_HEADER = ("tokens", "score", "95 % interval", "n", "right", "cut off", "empty", "no usable answer")


def context_rows(context: ContextDetail) -> list[Row]:
    """A row a length, in the columns of `CONTEXT_HEADER`."""
    rows: list[Row] = [
        (f"{length:,}", f"{right / n:.3f}", format_interval(interval), *map(str, (n, right, *not_judged)))
        for length, n, right, interval, *not_judged in zip(
            context.lengths_tokens,
            context.n,
            context.right,
            context.intervals_95,
            *(["not told"] * len(context.n) if column is None else column for column in context.not_judged),
            strict=True,
        )
    ]
    missing = [(f"{int(length):,}", f"not measured: {why}", *("",) * 6) for length, why in context.not_measured.items()]
    return [*rows, *missing]


KINDS_HEADER = ("questions", "tokens", "right", "of", "likeliest of those given")


def kind_rows(context: ContextDetail) -> list[Row]:
    """Questions by kind and length, in the columns of `KINDS_HEADER`."""
    rows: list[Row] = []
    for kind in context.kinds:
        likeliest: Sequence[int | None] = kind.likelihood_right or [None] * len(kind.n)
        for length, n, right, likely in zip(context.lengths_tokens, kind.n, kind.right, likeliest, strict=False):
            rows.append((kind.kind, f"{length:,}", f"{right:,}", f"{n:,}", "" if likely is None else f"{likely:,}"))
    return rows


def context_words(context: ContextDetail) -> list[str]:
    """How the curve was made, where it tells."""
    words = []
    if context.scored_by == "likelihood":
        words.append("The curve counts answers that were the likeliest of those given; written ones were too few.")
    if context.documents > 1:
        words.append(f"Asked about {context.documents:,} documents at each length.")
    tokens = context.tokens
    if tokens is not None and tokens.unshared:
        words.append(
            f"{tokens.unshared - tokens.saved:,} tokens were computed in place of {tokens.unshared:,}: questions share "
            f"their documents, which saves {tokens.saved / tokens.unshared:.0%}."
        )
    return words


def tool_rows(tools: ToolDetail) -> list[Row]:
    """Trigger, schema, and the whole call."""
    score = tools.score
    shares = f"precision {_share(tools.trigger_precision)}, recall {_share(tools.trigger_recall)}"
    return [
        (
            "called where needed (F1)",
            _share(tools.trigger_f1),
            f"needed {tools.needed}, called {tools.called}, rightly {tools.called_rightly}; {shares}",
        ),
        (
            "valid by the schema",
            _share(tools.schema_accuracy),
            f"{tools.valid} of {tools.called} calls, {format_interval(tools.schema_interval_95)}",
        ),
        (
            "right altogether",
            f"{score.right / score.n:.3f}",
            f"{score.right} of {score.n}, {format_interval(score.interval_95)}",
        ),
    ]


LIKELIHOOD_WORDS = (
    "Right answers beside near misses (wrong answers of the same kind and length), scored behind the question by how "
    "likely the model finds them; nothing is written."
)


def likelihood_rows(detail: LikelihoodDetail) -> list[Row]:
    """Preference, margins, and the written score beside them."""
    above = {True: "above chance", False: "not distinguishable from chance", None: "too few items to tell"}
    written = detail.written
    rows: list[Row] = [
        (
            "right answer preferred",
            f"{detail.right / detail.n:.3f}",
            f"{detail.right} of {detail.n}, {format_interval(detail.interval_95)}; guessing {detail.chance:.3f}: "
            f"{above[detail.above_chance]}",
        ),
        ("margin over the likeliest near miss", f"{detail.margin.mean:+.3f} nats", _between(detail.margin)),
        ("log-likelihood of the right answer", f"{detail.gold.mean:.3f} nats", _between(detail.gold)),
    ]
    if written is not None:
        told = "at floor: not distinguishable from guessing" if written.at_floor else "above guessing"
        rows.append(
            (
                "written answers to the same questions",
                f"{written.right / written.n:.3f}",
                f"{written.right} of {written.n}, {format_interval(written.interval_95)}; "
                f"guessing {written.guess:.3f}: {told}",
            )
        )
    for each in detail.floor:
        name = f"against itself: {each.numerics}"
        if each.same_choice is None or each.gold is None or each.margin is None:
            rows.append((name, "not measured", each.reason or ""))
            continue
        beside = f"right answers {each.gold.mean:+.3f} nats, {_between(each.gold)}; margins {each.margin.mean:+.3f}, "
        beside += _between(each.margin)
        rows.append((name, f"{each.same_choice:.3f} the same choice", f"of {each.n}; {beside}"))
    return rows


FLOOR_WORDS = (
    "The same file on the same text under other numerics, none of which is the right one. A difference from another "
    "model that is no larger is not resolvable."
)
FLOOR_HEADER = ("against itself", "divergence, nats a token", "same most probable token", "perplexity, ratio")


def floor_rows(floor: NoiseFloor) -> list[Row]:
    """The noise floor, in the columns of `FLOOR_HEADER`."""
    rows: list[Row] = []
    for other in floor.others:
        if other.kl is None or other.same_top is None or other.perplexity_ratio is None:
            rows.append((other.numerics, f"not measured: {other.reason}", "", ""))
            continue
        cells = [f"{each.mean:.4f} ({_between(each)})" for each in (other.kl, other.same_top, other.perplexity_ratio)]
        rows.append((other.numerics, *cells))
    return rows


def _between(estimate: Estimate) -> str:
    low, high = estimate.low, estimate.high
    return "no interval" if low is None or high is None else f"{low:.4g} to {high:.4g}"


PROFILE_WORDS = (
    "Beside what the specification claims for its reference artifact: full from 0.9, limited from 0.5, little below, "
    "of small sets whose answers a program can check."
)
PROFILE_HEADER = ("task", "claimed for the reference", "measured here", "score", "95 % interval", "n", "by")


def profile_rows(rows: Sequence[ProfileRow]) -> list[Row]:
    """The capability profile, in the columns of `PROFILE_HEADER`."""
    return [
        (
            row.row,
            row.claimed,
            row.level or f"not measured: {row.reason}",
            _share(row.score),
            format_interval(row.interval_95),
            str(row.n),
            row.measured_by,
        )
        for row in rows
    ]


def _share(value: float | None) -> str:
    return "null" if value is None else f"{value:.3f}"


def speed_rows(speed: SpeedSummary) -> list[Row]:
    """Rates and latencies."""
    rows: list[Row] = [
        (
            "decode, empty context",
            f"{speed.decode_tokens_per_s:.2f} tokens/s",
            f"{_range(speed.decode_spread)} over {speed.repeats} repeats of {speed.decode_tokens}",
        ),
        (
            "latency of a token",
            f"{speed.latency_p50_s * 1000:.1f} ms",
            f"p95 {speed.latency_p95_s * 1000:.1f} ms, p99 {speed.latency_p99_s * 1000:.1f} ms",
        ),
        ("prefill", f"{speed.prefill_tokens_per_s:.1f} tokens/s", f"{speed.prefill_tokens} tokens"),
    ]
    if speed.depth_tokens_per_s is not None and speed.depth_tokens is not None:
        rows.append(
            ("decode at depth", f"{speed.depth_tokens_per_s:.2f} tokens/s", f"behind {speed.depth_tokens:,} tokens")
        )
    if speed.energy_joules_per_token is not None:
        rows.append(("energy of a token", f"{speed.energy_joules_per_token:.2f} J", "by the processors' own counters"))
    if speed.copy_bandwidth_bytes_per_s is not None:
        share = f"{speed.bandwidth_fraction:.0%} of it used by weights" if speed.bandwidth_fraction is not None else ""
        rows.append(("memory, copying", f"{format_bytes(speed.copy_bandwidth_bytes_per_s)}/s", share))
    return rows


def artifact_rows(report: Report) -> list[Row]:
    """What was measured, and on which machine."""
    artifact, machine = report.artifact, report.machine
    rows: list[tuple[str, Cell | None]] = [
        ("name", artifact.name),
        ("says of itself", (artifact.model.description or None) if artifact.model is not None else None),
        ("size", format_bytes(artifact.file_bytes) if artifact.file_bytes is not None else None),
        ("file SHA-256", Code(artifact.file_sha256) if artifact.file_sha256 else None),
        ("content SHA-256", Code(artifact.content_sha256) if artifact.content_sha256 else None),
        *(_model_rows(artifact.model) if artifact.model is not None else ()),
    ]
    if artifact.kind == "endpoint":
        # Ours, from which it was asked; it says nothing about the answers.
        rows.append(("machine", "the endpoint's own, not known"))
    else:
        here = f"{machine.cpu_model or 'unknown'}, {machine.allowed_cpus} CPUs, {' '.join(machine.cpu_flags)}"
        system = f"{machine.system}, Linux {machine.kernel}"
        rows += [("processor", here), ("memory", _memory(report)), ("system", system)]
    return [(name, value) for name, value in rows if value is not None]


def condition_rows(report: Report) -> list[Row]:
    """Under which conditions."""
    score, speed = report.conditions.score, report.conditions.speed
    sets: list[Part] = []
    for name, digest in score.prompt_sets.items():
        sets += [f"{', ' if sets else ''}{name} ", Code(digest[:12])]
    caps = ", ".join(f"{cap} ({name})" for name, cap in score.max_tokens.items())
    rows: list[Row] = [
        ("suite", f"{score.suite}: {_amounts(score)}"),
        ("prompt sets", sets),
        ("sampling", f"{score.sampling}; at most {caps} tokens"),
        ("thinking", _thinking(score)),
        ("chat template", Code(score.template_sha256[:12]) if score.template_sha256 else "none, or not known"),
        ("numerics", _numerics(score.numerics)),
        ("runtime", score.runtime or "not known"),
        ("Python in the sandbox", score.code_python or "code was not run"),
        ("score fingerprint", Code(report.conditions.score_fingerprint)),
    ]
    if score.tools is not None:
        rows.insert(4, ("tools", f"offered by the {score.tools}"))
    if speed is not None:
        settings = (
            f"{speed.threads} threads, OpenMP wait policy {speed.omp_wait_policy}, "
            f"flash attention {speed.flash_attention}, batch {speed.batch}/{speed.ubatch}, load mode {speed.load_mode}"
        )
        rows += [
            ("speed settings", settings),
            ("speed fingerprint", Code(report.conditions.speed_fingerprint or "not known")),
        ]
    return rows


def was_busy(*speeds: SpeedSummary) -> bool:
    """Whether others are known to have taken so much of a machine that a rate tells more about them."""
    return any(speed.other_cpus is not None and speed.other_cpus > QUIET_CPUS for speed in speeds)


def describe_others(speed: SpeedSummary) -> str:
    """What else ran meanwhile."""
    if speed.other_cpus is None:
        return "Nothing tells whether other processes were busy meanwhile"
    return f"Other processes kept {speed.other_cpus:.2f} CPUs busy meanwhile"


def format_interval(interval: tuple[float, float] | None) -> str:
    """`0.100 to 0.300`."""
    return "no interval" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _missing(report: Report, metric: str) -> str:
    return f"null: {report.reasons.get(metric, 'not measured')}"


def _beside_speed(speed: SpeedSummary | None) -> str:
    if speed is None:
        return ""
    busy = "; the machine was busy with something else" if was_busy(speed) else ""
    return f"{_range(speed.decode_spread)}, median of {speed.repeats}{busy}"


def _model_rows(model: ModelDescription) -> list[tuple[str, Cell | None]]:
    parameters = f"{format_count(model.parameters)}, {format_count(model.parameters_active)} active"
    return [
        ("architecture", model.architecture),
        ("parameters", parameters),
        ("bits per weight", f"{model.bits_per_weight:.2f}" if model.bits_per_weight is not None else None),
        ("class, tier", f"{model.class_ or 'no deployment class'}, {model.tier}" if model.tier else None),
    ]


def _memory(report: Report) -> str:
    machine = report.machine
    limit = f", limited to {format_bytes(machine.memory_limit_bytes)}" if machine.memory_limit_bytes is not None else ""
    return format_bytes(machine.memory_bytes) + limit


def _amounts(score: ScoreConditions) -> str:
    """`16 reasoning, 12 code, 40 context questions at each of 1,024 2,048 tokens`."""
    amounts = [f"{count} {name}" for name, count in score.items.items()]
    return ", ".join(amounts) + f" questions at each of {' '.join(f'{n:,}' for n in score.context_lengths)} tokens"


def _thinking(score: ScoreConditions) -> str:
    budget = f", at most {score.thinking_tokens:,} tokens of it" if score.thinking_tokens is not None else ""
    return (score.thinking or "the prompt shows nothing of it") + budget


def _numerics(numerics: Numerics | None) -> str:
    if numerics is None:
        return "not known (endpoint)"
    documents = f" ({numerics.document_ubatch} of documents)" if numerics.document_ubatch is not None else ""
    return (
        f"flash attention {numerics.flash_attention}, KV {numerics.type_k}/{numerics.type_v}, "
        f"batch {numerics.batch}/{numerics.ubatch}{documents}, {numerics.parallel} at a time"
    )


def _range(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f} to {pair[1]:.2f}"
