"""`dfqs.forecast/1`: how fast a model will be on this machine, before it is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.errors import UsageError
from dfqs.model.files import ModelFiles
from dfqs.planning.calibration import Calibration, calibrate
from dfqs.planning.curve import Choices, CurveModel, CurvePoint, draw_choices, draw_curve, plot_points, read_choices
from dfqs.planning.disk_probe import DiskSpeed, measure_disk
from dfqs.planning.speed import GraphSize, SpeedForecast, forecast_speed, wanted_types
from dfqs.planning.work import count_work
from dfqs.progress import Progress, no_progress
from dfqs.records import Amount, Document, Record, Text, Whole
from dfqs.routing.tracefile import TraceReader
from dfqs.runtime.memory import MemoryNeed, measure_memory_curve
from dfqs.runtime.omp_policy import BUSY_CPUS
from dfqs.streaming.budget import PROGRAM_BYTES
from dfqs.streaming.layout import plan_layout

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
    disk: DiskRecord
    points: tuple[CurvePoint, ...]


class ForecastDocument(Document):
    """How fast a model will be: computed from what this machine was measured to do with other models."""

    schema_: Literal["dfqs.forecast/1"] = Field(default="dfqs.forecast/1", alias="schema")
    model: Text
    path: Text
    basis: Literal["computed"] = "computed"
    calibration: Calibration
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


def forecast(model: ModelFiles, request: ForecastRequest, progress: Progress = no_progress) -> ForecastDocument:
    """Say how fast a model will be here.

    Args:
        progress: in probes.

    Raises:
        UsageError: a trace of another model.
        RuntimeFailure: llama.cpp does not know the model.
    """
    spec = model.spec
    work = count_work(model.tensors, spec.experts, spec.experts_used, spec.layers)
    calibration = request.calibration or calibrate(wanted_types(work), request.threads, progress)
    trained = spec.context_tokens
    lengths = sorted({length if trained is None else min(length, trained) for length in request.contexts})
    needs = measure_memory_curve(model, lengths)
    contexts = tuple(
        forecast_speed(work, graph_size(model, need, length), length, calibration)
        for length, need in zip(lengths, needs, strict=True)
    )
    known = {(one.type, one.kind) for one in calibration.types}
    curve, notes = None, []
    if calibration.other_cpus >= BUSY_CPUS:
        notes.append("the machine was busy while it was calibrated; run it again when it is quiet")
    if request.curve and spec.is_moe:
        curve = _draw(model, request, contexts[0], needs[-1])
        if curve.disk.paged_read_per_wanted > _MUCH_READ_AHEAD:
            notes.append(
                f"the kernel reads {curve.disk.paged_read_per_wanted:.1f} bytes for each that is wanted when it pages "
                "experts: a smaller read_ahead_kb of the disk makes that less; streaming does not depend on it"
            )
    return ForecastDocument(
        model=model.name,
        path=model.path,
        calibration=calibration,
        decode_bytes_per_token=sum(one.bytes for one in work.values()),
        missing_types=tuple(sorted({type_.name for type_, kind in work if (type_.name, kind) not in known})),
        contexts=contexts,
        curve=curve,
        notes=tuple(notes),
    )


def graph_size(model: ModelFiles, need: MemoryNeed, context_tokens: int) -> GraphSize:
    """What of a graph is not weights, as the runtime itself has it."""
    spec = model.spec
    share = context_tokens / need.context_tokens
    cells = sum((part.cells or 0) * (part.layers or 0) for part in need.parts if part.kind == "kv")
    return GraphSize(need.graph_nodes or 0, cells * share, spec.attention_heads or 0, spec.attention_head_length or 0)


def _draw(model: ModelFiles, request: ForecastRequest, speed: SpeedForecast, need: MemoryNeed) -> Curve:
    layout = plan_layout(model.headers)
    if not layout.experts:
        raise UsageError(f"{model.path} has no experts of at least a page each, so memory makes no difference")
    sizes = {key: pages.length for key, pages in layout.experts.items()}
    choices = _choices(model, request, sorted({layer for layer, _ in sizes}))
    piece = max(pages.ranges[0].length for pages in layout.experts.values())
    disk = measure_disk(model.path, piece, 2)
    curve_model = CurveModel(
        sizes,
        layout.resident_bytes,
        need.context_bytes + PROGRAM_BYTES,
        model.file_bytes,
        1 / speed.decode.tokens_per_s,
    )
    memory = request.memory or plot_points(curve_model)
    return Curve(
        choices=choices.source,
        tokens=len(choices.passes) - choices.warm,
        context_tokens=need.context_tokens,
        disk=_disk_record(disk),
        points=tuple(draw_curve(curve_model, choices, disk, memory)),
    )


def _choices(model: ModelFiles, request: ForecastRequest, layers: Sequence[int]) -> Choices:
    spec = model.spec
    if request.trace is None:
        return draw_choices(layers, spec.experts, spec.experts_used)
    with TraceReader(request.trace) as reader:
        header = reader.header
        if (header.model.experts, header.model.experts_used) != (spec.experts, spec.experts_used) or not set(
            layers
        ) <= set(header.layers):
            raise UsageError(
                f"{request.trace} is of a model with {header.model.experts_used} of {header.model.experts} experts in "
                f"{len(header.layers)} layers, and this one uses {spec.experts_used} of {spec.experts} in {len(layers)}"
            )
        return read_choices(header, reader.chunks(), f"trace {request.trace}")


def _disk_record(disk: DiskSpeed) -> DiskRecord:
    return DiskRecord(
        piece_bytes=disk.piece_bytes,
        direct=(disk.direct.bytes_per_s, disk.direct.low, disk.direct.high),
        paged=(disk.paged.bytes_per_s, disk.paged.low, disk.paged.high),
        paged_read_per_wanted=disk.paged.read_per_wanted,
        read_ahead_bytes=disk.read_ahead_bytes,
    )
