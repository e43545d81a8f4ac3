"""`dfqs.forecast/1`: how fast a model will be on this machine, before it is run."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dfqs.errors import RuntimeFailure, UsageError, printable
from dfqs.hardware import measure_read_bandwidth
from dfqs.model.files import ModelFiles
from dfqs.planning.asking import Asker
from dfqs.planning.calibration import OTHER_MACHINE, Calibration, calibrate
from dfqs.planning.curve import Choices, CurveModel, CurvePoint, draw_choices, draw_curve, plot_points, read_choices
from dfqs.planning.disk_probe import LONGEST_S, DiskSpeed, measure_disk
from dfqs.planning.speed import SpeedForecast, forecast_speed, wanted_types
from dfqs.planning.work import GraphSize, Work, WorkKey, count_passed_work, count_work
from dfqs.processors import default_threads
from dfqs.progress import Progress, in_stages, no_progress
from dfqs.records import Amount, Document, Record, Text, Whole
from dfqs.routing.tracefile import TraceReader
from dfqs.runtime.memory import SLIDING, MemoryNeed
from dfqs.runtime.omp_policy import BUSY_CPUS
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.budget import PROGRAM_BYTES
from dfqs.streaming.layout import ExpertKey, ExpertPages, plan_layout
from dfqs.streaming.lookahead import plan_guess_room

CONTEXTS = (512, 4096)
_MUCH_READ_AHEAD = 2.0


class DiskRecord(Record):
    """The model's disk, measured with pieces of one expert's matrix. Bytes a second: middle, slowest, fastest."""

    piece_bytes: Whole
    direct: tuple[Amount, Amount, Amount]
    """Past the page cache, by several threads."""
    paged: tuple[Amount, Amount, Amount]
    """Touched through a map, as llama.cpp does."""
    paged_read_per_wanted: Amount
    """Bytes that the disk gave for each that was wanted."""
    read_ahead_bytes: Whole | None


class Curve(Record):
    """Tokens a second against memory."""

    choices: Text
    """Which experts tokens choose: a trace's file, or that they are made up."""
    tokens: Whole
    """Of it."""
    context_tokens: Whole
    disk: DiskRecord | None
    """Null for a model that is not here: no rates then."""
    points: tuple[CurvePoint, ...]


class ForecastDocument(Document):
    """How fast a model will be: computed from what this machine was measured to do with other models."""

    schema_: Literal["dfqs.forecast/1"] = Field(default="dfqs.forecast/1", alias="schema")
    model: Text
    path: Text
    basis: Literal["computed"] = "computed"
    calibration: Calibration | None
    """Null where the runtime does not know the model."""
    unknown: Text | None
    """Why the runtime did not answer; what is said then is from the header alone."""
    memory_bytes_per_s: Amount
    """Measured here: no token is decoded faster than this reads its weights."""
    at_most_tokens_per_s: Amount | None
    decode_bytes_per_token: Whole
    """Weights: of experts those in use."""
    missing_types: tuple[str, ...]
    """That the machine was not calibrated with; the slowest other one stands in."""
    contexts: tuple[SpeedForecast, ...]
    """With all weights in memory."""
    curve: Curve | None
    """Null for a model without experts, and where it was not asked for."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ForecastRequest:
    """What to say how fast."""

    contexts: tuple[int, ...] = CONTEXTS
    threads: int | None = None
    trace: Path | None = None
    memory: tuple[int, ...] = ()
    """Amounts for the curve; none: shares of the file."""
    curve: bool = True
    calibration: Calibration | None = None
    """Of this machine; None: its record, or measured."""
    again: bool = False
    """Measure the machine anew, whatever record there is."""


def forecast(model: ModelFiles, request: ForecastRequest, progress: Progress = no_progress) -> ForecastDocument:
    """Say how fast a model will be here.

    Args:
        model: of which headers are read; its disk is measured where it lies here.
        progress: in seconds of what is measured.

    Raises:
        UsageError: a trace of another model; a trace, or amounts of memory, for experts that are smaller than a page.
    """
    model.require_loadable()
    spec, progress = model.spec, in_stages(progress)
    work = count_work(model.tensors, spec.experts, spec.experts_used, spec.passed_layers)
    passed = count_passed_work(model.tensors, spec.experts, spec.experts_used, spec.passed_layers)
    lengths = sorted({min(length, spec.context_tokens or length) for length in request.contexts})
    # Before the machine is measured, which takes longer; this too.
    experts = find_experts(model) if request.curve and spec.is_moe else {}
    if spec.is_moe and not experts and (request.trace or request.memory):
        raise UsageError(f"{model.path} has no experts of at least a page each, so memory makes no difference")
    chosen = _read_trace(model, request.trace, experts) if request.trace and experts else None
    try:
        with Asker(model) as asker:
            asker.expect(ContextSettings(n_ctx=length) for length in lengths)
            needs = [asker.ask(ContextSettings(n_ctx=length)) for length in lengths]
            asker.require_loads()
    except RuntimeFailure as error:
        return _unknown(model, request, work, str(error))
    calibration = request.calibration or calibrate(wanted_types(work), request.threads, progress, again=request.again)
    contexts = tuple(
        forecast_speed(
            work, passed, graph_size(model, need, length), graph_size(model, need, length / 2), length, calibration
        )
        for length, need in zip(lengths, needs, strict=True)
    )
    curve = None
    if experts:
        curve = _draw(model, experts, request, chosen, contexts[-1], needs[-1], calibration.threads, progress)
    missing = {type_.name for type_, kind in work if not calibration.has((type_, kind))}
    return _document(
        model,
        work,
        calibration.read_bytes_per_s,
        calibration=calibration,
        missing_types=tuple(sorted(missing)),
        contexts=contexts,
        curve=curve,
        notes=tuple(_notes(calibration, curve, has_small_experts=request.curve and spec.is_moe and not experts)),
    )


def _unknown(
    model: ModelFiles, request: ForecastRequest, work: Mapping[WorkKey, Work], refusal: str
) -> ForecastDocument:
    """What can be said of a model that the runtime does not know: its bytes, and how fast memory gives them."""
    note = (
        f"this runtime does not load a model of the architecture {printable(model.spec.architecture)} as this file has "
        "it, so what its graph and attention take is not known, and only memory bounds the rate; `dfqs inspect "
        "--runtimes` says which programs are known to load it, `dfqs runtime` which build is used here"
    )
    rate = measure_read_bandwidth(request.threads or default_threads())
    return _document(model, work, rate, unknown=refusal, notes=(note,))


def _document(
    model: ModelFiles, work: Mapping[WorkKey, Work], memory_bytes_per_s: float, **known: Any
) -> ForecastDocument:
    bytes_ = sum(one.bytes for one in work.values())
    said = {"calibration": None, "unknown": None, "missing_types": (), "contexts": (), "curve": None} | known
    return ForecastDocument(
        model=model.name,
        path=model.shards[0].source,
        memory_bytes_per_s=memory_bytes_per_s,
        at_most_tokens_per_s=memory_bytes_per_s / bytes_ if bytes_ else None,
        decode_bytes_per_token=bytes_,
        **said,
    )


def _notes(calibration: Calibration, curve: Curve | None, *, has_small_experts: bool) -> Iterator[str]:
    if calibration.other_cpus >= BUSY_CPUS:
        yield "the machine was busy while it was calibrated; run it again when it is quiet"
    if (calibration.other_cpus_now or 0.0) >= BUSY_CPUS:
        yield (
            f"others keep {calibration.other_cpus_now:.1f} CPUs busy now: rates are of this machine without them, "
            "as it was when it was calibrated"
        )
    if calibration.change >= OTHER_MACHINE:
        yield (
            f"this machine's speed changed by a factor of {calibration.change:.2f} while it was calibrated or since: "
            "the intervals are as much wider; --again measures it anew"
        )
    if has_small_experts:
        yield "its experts are smaller than a page each: memory makes no difference, so there is no curve"
    if curve is None:
        return
    if curve.disk is None:
        yield "the model is not here, so its disk was not measured: bytes a token are told, and no rates of them"
    elif curve.disk.paged_read_per_wanted > _MUCH_READ_AHEAD:
        yield (
            f"the kernel reads {curve.disk.paged_read_per_wanted:.1f} bytes for each that is wanted when it pages "
            "experts: a smaller read_ahead_kb of the disk makes that less; streaming does not depend on it"
        )


def graph_size(model: ModelFiles, need: MemoryNeed, behind_tokens: float) -> GraphSize:
    """What of a graph is not weights, as the runtime itself has it.

    Args:
        need: of a context that has room for them.
        behind_tokens: in the cache before the token that is computed.
    """
    spec, metadata = model.spec, model.header.metadata
    window = metadata.integer(f"{spec.architecture}.attention.sliding_window")
    heads, key = spec.attention_heads or 0, spec.attention_head_length or 0
    value = metadata.integer(f"{spec.architecture}.attention.value_length") or key
    attended = 0.0
    for part in need.parts:
        if part.kind != "kv" or not part.cells or not part.layers:
            continue
        # A compressed cache has so many entries for each token.
        reached = min(behind_tokens * min(1.0, part.cells / need.context_tokens), part.cells)
        if window and part.name == SLIDING:
            # There is room for a batch beside the window.
            reached = min(behind_tokens, window)
        attended += reached * part.layers * heads
    return GraphSize(need.graph_nodes or 0, attended, attended * (key + value) / 2)


def find_experts(model: ModelFiles) -> dict[ExpertKey, ExpertPages]:
    """Experts of which memory may hold some: those that a decoded token chooses from, of at least a page each."""
    layers = model.spec.passed_layers
    found = plan_layout(model.headers).experts
    return {key: pages for key, pages in found.items() if layers is None or key[0] < layers}


def _draw(
    model: ModelFiles,
    experts: Mapping[ExpertKey, ExpertPages],
    request: ForecastRequest,
    chosen: Choices | None,
    speed: SpeedForecast,
    need: MemoryNeed,
    threads: int,
    progress: Progress,
) -> Curve:
    layout = plan_layout(model.headers)
    layers = sorted({layer for layer, _ in experts})
    choices = chosen or draw_choices(layers, model.spec.experts, model.spec.experts_used)
    disk = None
    if model.path.exists():
        progress(0, int(2 * LONGEST_S), "the model's disk")
        disk = _measure_disk_of(model, experts, threads)
    curve_model = CurveModel(
        {key: pages.length for key, pages in experts.items()},
        layout.resident_bytes,
        need.context_bytes + PROGRAM_BYTES,
        model.file_bytes,
        1 / speed.decode.tokens_per_s,
        partial(plan_guess_room, layout, model.spec.experts_used),
        speed.decode.high / speed.decode.tokens_per_s,
    )
    memory = request.memory or plot_points(curve_model)
    return Curve(
        choices=choices.source,
        tokens=len(choices.passes) - choices.warm,
        context_tokens=need.context_tokens,
        disk=None if disk is None else _disk_record(disk),
        points=tuple(draw_curve(curve_model, choices, disk, memory)),
    )


def _measure_disk_of(model: ModelFiles, experts: Mapping[ExpertKey, ExpertPages], threads: int) -> DiskSpeed:
    """Of a set of shards, the one with most of the experts: the first may hold no tensors."""
    ranges = [part for pages in experts.values() for part in pages.ranges]
    files = Counter[int]()
    for part in ranges:
        files[part.file] += part.length
    piece = max(pages.ranges[0].length for pages in experts.values())
    return measure_disk(model.paths[files.most_common(1)[0][0]], piece, threads)


def _read_trace(model: ModelFiles, trace: Path, experts: Collection[ExpertKey]) -> Choices:
    spec, layers = model.spec, {layer for layer, _ in experts}
    with TraceReader(trace) as reader:
        header = reader.header
        same = (header.model.experts, header.model.experts_used) == (spec.experts, spec.experts_used)
        if not same or not layers <= set(header.layers):
            raise UsageError(
                f"{trace} is of a model with {header.model.experts_used} of {header.model.experts} experts in "
                f"{len(header.layers)} layers, and this one uses {spec.experts_used} of {spec.experts} in {len(layers)}"
            )
        choices = read_choices(header, reader.chunks(), f"trace {trace}")
    if not choices.passes:
        raise UsageError(f"{trace} is a trace of no tokens; without --trace a skew is made up")
    return choices


def _disk_record(disk: DiskSpeed) -> DiskRecord:
    return DiskRecord(
        piece_bytes=disk.piece_bytes,
        direct=(disk.direct.bytes_per_s, disk.direct.low, disk.direct.high),
        paged=(disk.paged.bytes_per_s, disk.paged.low, disk.paged.high),
        paged_read_per_wanted=disk.paged.read_per_wanted,
        read_ahead_bytes=disk.read_ahead_bytes,
    )
