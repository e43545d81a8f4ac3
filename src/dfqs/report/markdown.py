"""A report for reading."""

from collections.abc import Iterable, Sequence

from dfqs.errors import printable
from dfqs.evaluate.conditions import Numerics, ScoreConditions
from dfqs.evaluate.speed import SpeedSummary
from dfqs.model.description import ModelDescription
from dfqs.report.schema import ContextDetail, Report, ScoreDetail
from dfqs.units import format_bytes, format_count

QUIET_CPUS = 0.1
"""More than this, kept busy by others, and a rate tells more about them than about the model."""

SCORES = (("reasoning_score", "reasoning"), ("code_score", "code"))


def render_markdown(report: Report) -> str:
    """The report as Markdown. Texts from outside are escaped; what was not measured says so."""
    parts = [
        f"# {_text(report.artifact.name)}: DFQS evaluation",
        _text(report.statement),
        _metrics(report),
        "## Behind the numbers",
        *_score_sections(report),
        _context(report.details.context),
        _boundary(report),
        _speed(report),
        "## What was measured",
        _artifact(report),
        "## Under which conditions",
        _conditions(report),
    ]
    if report.notices:
        parts += ["## Notes", "\n".join(f"- {_text(notice)}" for notice in report.notices)]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_summary(report: Report) -> str:
    """The five metrics, a line each, for a terminal."""
    lines = [f"{name:<26}{value}" + (f"  ({beside})" if beside else "") for name, value, beside in _metric_rows(report)]
    return "\n".join([*lines, "", printable(report.statement, 600)])


def _metrics(report: Report) -> str:
    return _table(("metric", "value", ""), _metric_rows(report))


def _metric_rows(report: Report) -> list[tuple[str, str, str]]:
    metrics, rows = report.metrics, []
    for name, stage in SCORES:
        value: float | None = getattr(metrics, name)
        detail: ScoreDetail | None = getattr(report.details, stage)
        beside = f"{_interval(detail.interval_95)}, n = {detail.n}" if detail is not None else ""
        rows.append((name, _missing(report, name) if value is None else f"{value:.3f}", beside))
    curve, context = metrics.context_stability_curve, report.details.context
    shown = (
        _missing(report, "context_stability_curve") if curve is None else ", ".join(f"{value:.3f}" for value in curve)
    )
    at = f"at {', '.join(f'{n:,}' for n in context.lengths_tokens)} tokens" if curve is not None and context else ""
    rows.append(("context_stability_curve", shown, at))
    shown = (
        _missing(report, "cpu_tokens_per_sec")
        if metrics.cpu_tokens_per_sec is None
        else f"{metrics.cpu_tokens_per_sec:.2f}"
    )
    rows.append(("cpu_tokens_per_sec", shown, _beside_speed(report.details.speed)))
    boundary = report.details.boundary
    tokens = metrics.failure_boundary_tokens
    shown = _missing(report, "failure_boundary_tokens") if tokens is None else f"{tokens:,}"
    if boundary is not None and boundary.censored:
        shown += " (censored)"
    rows.append(
        (
            "failure_boundary_tokens",
            shown,
            _text(boundary.reason) if boundary is not None and tokens is not None else "",
        )
    )
    return rows


def _beside_speed(speed: SpeedSummary | None) -> str:
    if speed is None:
        return ""
    busy = "; the machine was busy with something else" if speed.other_cpus > QUIET_CPUS else ""
    return f"{_range(speed.decode_spread)}, median of {speed.repeats}{busy}"


def _score_sections(report: Report) -> Iterable[str]:
    for name, stage in SCORES:
        detail: ScoreDetail | None = getattr(report.details, stage)
        if detail is None:
            continue
        wrong = (
            f"{detail.right} of {detail.n} right; {detail.wrong} wrong, {detail.truncated} cut off at the token cap, "
            f"{detail.empty} empty, {detail.unusable} without a usable answer (all of these count as wrong)."
        )
        groups = ", ".join(f"{_text(group)} {right}/{total}" for group, (right, total) in detail.groups.items())
        yield f"**{name}**: {wrong} By group: {groups}."


def _context(context: ContextDetail | None) -> str:
    if context is None:
        return ""
    rows = [
        (f"{length:,}", f"{right / n:.3f}", _interval(interval), *map(str, (n, right, *not_judged)))
        for length, n, right, interval, *not_judged in zip(
            context.lengths_tokens,
            context.n,
            context.right,
            context.intervals_95,
            context.truncated,
            context.empty,
            context.unusable,
            strict=True,
        )
    ]
    rows += [
        (f"{int(length):,}", f"not measured: {_text(why)}", *("",) * 6) for length, why in context.not_measured.items()
    ]
    header = ("tokens", "score", "95 % interval", "n", "right", "cut off", "empty", "no usable answer")
    return "**Context.** What was cut off, empty or no usable answer counts as wrong.\n\n" + _table(header, rows)


def _boundary(report: Report) -> str:
    boundary = report.details.boundary
    if boundary is None or not boundary.lengths:
        return ""
    looked = ", ".join(
        f"{entry.length_tokens:,} ({'runtime failed' if entry.failure else f'{entry.right}/{entry.n}'})"
        for entry in boundary.lengths
    )
    return f"**Failure boundary.** {_sentence(_text(boundary.reason))} Lengths looked at: {looked}."


def _speed(report: Report) -> str:
    speed = report.details.speed
    if speed is None:
        return ""
    rows = [
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
    if speed.copy_bandwidth_bytes_per_s is not None:
        share = f"{speed.bandwidth_fraction:.0%} of it used by weights" if speed.bandwidth_fraction is not None else ""
        rows.append(("memory, copying", f"{format_bytes(speed.copy_bandwidth_bytes_per_s)}/s", share))
    return "**Speed.**\n\n" + _table(("", "", ""), rows) + f"\n\nOther processes kept {speed.other_cpus:.2f} CPUs busy."


def _artifact(report: Report) -> str:
    artifact, machine = report.artifact, report.machine
    rows: list[tuple[str, str | None]] = [
        ("name", _text(artifact.name)),
        ("says of itself", _text(artifact.model.description or "") or None if artifact.model is not None else None),
        ("size", format_bytes(artifact.file_bytes) if artifact.file_bytes is not None else None),
        ("file SHA-256", _code(artifact.file_sha256) if artifact.file_sha256 else None),
        ("content SHA-256", _code(artifact.content_sha256) if artifact.content_sha256 else None),
        *(_model_rows(artifact.model) if artifact.model is not None else ()),
    ]
    here = f"{_text(machine.cpu_model or 'unknown')}, {machine.allowed_cpus} CPUs, {_text(' '.join(machine.cpu_flags))}"
    if artifact.kind == "endpoint":
        # Ours, from which it was asked; it says nothing about the answers.
        rows.append(("machine", "the endpoint's own, not known"))
    else:
        system = f"{_text(machine.system)}, Linux {_text(machine.kernel)}"
        rows += [("processor", here), ("memory", _memory(report)), ("system", system)]
    return _table(("", ""), [(name, value) for name, value in rows if value is not None])


def _model_rows(model: ModelDescription) -> list[tuple[str, str | None]]:
    parameters = f"{format_count(model.parameters)}, {format_count(model.parameters_active)} active"
    return [
        ("architecture", _text(model.architecture)),
        ("parameters", parameters),
        ("bits per weight", f"{model.bits_per_weight:.2f}" if model.bits_per_weight is not None else None),
        ("class, tier", _text(f"{model.class_ or 'no deployment class'}, {model.tier}") if model.tier else None),
    ]


def _memory(report: Report) -> str:
    machine = report.machine
    limit = f", limited to {format_bytes(machine.memory_limit_bytes)}" if machine.memory_limit_bytes is not None else ""
    return format_bytes(machine.memory_bytes) + limit


def _conditions(report: Report) -> str:
    score, speed = report.conditions.score, report.conditions.speed
    sets = ", ".join(f"{_text(name)} {_code(digest[:12])}" for name, digest in score.prompt_sets.items())
    rows = [
        ("suite", _text(f"{score.suite}: {_amounts(score)}")),
        ("prompt sets", sets),
        (
            "sampling",
            f"{_text(score.sampling)}; at most "
            + ", ".join(f"{cap} ({_text(name)})" for name, cap in score.max_tokens.items())
            + " tokens",
        ),
        ("thinking", _text(score.thinking or "the prompt shows nothing of it")),
        ("chat template", _code(score.template_sha256[:12]) if score.template_sha256 else "none, or not known"),
        ("numerics", _text(_numerics(score.numerics))),
        ("runtime", _text(score.runtime or "not known")),
        ("Python in the sandbox", _text(score.code_python or "code was not run")),
        ("score fingerprint", _code(report.conditions.score_fingerprint)),
    ]
    if speed is not None:
        rows += [
            (
                "speed settings",
                _text(
                    f"{speed.threads} threads, OpenMP wait policy {speed.omp_wait_policy}, "
                    f"flash attention {speed.flash_attention}, batch {speed.batch}/{speed.ubatch}, "
                    f"load mode {speed.load_mode}"
                ),
            ),
            ("speed fingerprint", _code(report.conditions.speed_fingerprint or "not known")),
        ]
    made = f"Made {_text(report.measured_at)} by dfqs {_text(report.dfqs_version)}, schema {report.schema_}."
    return (
        _table(("", ""), rows)
        + f"\n\nScores compare when score fingerprints are equal, speeds when speed fingerprints are. {made}"
    )


def _amounts(score: ScoreConditions) -> str:
    """`16 reasoning, 12 code, 40 context questions at each of 1,024 2,048 tokens`."""
    amounts = [f"{count} {name}" for name, count in score.items.items()]
    return ", ".join(amounts) + f" questions at each of {' '.join(f'{n:,}' for n in score.context_lengths)} tokens"


def _numerics(numerics: Numerics | None) -> str:
    if numerics is None:
        return "not known (endpoint)"
    return (
        f"flash attention {numerics.flash_attention}, KV {numerics.type_k}/{numerics.type_v}, "
        f"batch {numerics.batch}/{numerics.ubatch}, {numerics.parallel} at a time"
    )


def _missing(report: Report, metric: str) -> str:
    return f"null: {_text(report.reasons.get(metric, 'not measured'))}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "no interval" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _range(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f} to {pair[1]:.2f}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _code(value: str) -> str:
    """A hash, as code: nothing in it can end that."""
    return f"`{printable(value, 128).replace('`', '').replace('|', '')}`"


def _text(value: str) -> str:
    """Text from outside: no markup, no table separators, one line."""
    safe = printable(value, 400).replace("\\", "\\\\")
    return "".join(f"\\{c}" if c in "|`*_[]<>#" else c for c in safe)
