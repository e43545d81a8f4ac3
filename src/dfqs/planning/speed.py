"""How fast a model will be on a machine, out of what its graph has to do and how fast the machine does each kind of it.

A token's time is: the bytes of its weights, each at the rate of its type and kind; the nodes of its graph; and
attention over what is cached. A prompt's token is the same with the rates of batches, and on average half of the
prompt behind it. Pure: rates come from a `Calibration`, sizes from the header and from the runtime.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dfqs.gguf import GGMLType
from dfqs.planning.calibration import Calibration, TypeSpeed
from dfqs.planning.work import Kind, Work, WorkKey
from dfqs.records import Amount, Record

INTERVAL = 1.25
"""A rate's interval reaches from so much less to so much more: an assumption (docs/forecast.md)."""


@dataclass(frozen=True, slots=True)
class GraphSize:
    """What a graph is made of beside weights."""

    nodes: int
    cells: float
    """Cached entries that a token attends to at the end of the context, summed over layers."""
    heads: int
    head_length: int


class Rate(Record):
    """Tokens a second, forecast."""

    tokens_per_s: Amount
    low: Amount
    high: Amount
    """Meant to hold 95 of 100 rates; how often it does was not measured yet (docs/forecast.md)."""

    @classmethod
    def around(cls, seconds: float, factor: float = INTERVAL) -> "Rate":
        """Of a token that takes so long."""
        return cls(tokens_per_s=1 / seconds, low=1 / seconds / factor, high=1 / seconds * factor)


class SpeedForecast(Record):
    """At one context length."""

    context_tokens: int
    decode: Rate
    """Of a token at the end of that context."""
    prefill: Rate
    """Of a prompt that fills it."""
    weights_s: Amount
    """Of a decoded token's time: reading weights."""
    graph_s: Amount
    attention_s: Amount


def forecast_speed(
    work: Mapping[WorkKey, Work], graph: GraphSize, context_tokens: int, calibration: Calibration
) -> SpeedForecast:
    """Decode and prefill at one context length."""
    weights_s = prefill_s = 0.0
    for (type_, kind), one in work.items():
        speed = nearest(calibration, type_, kind)
        weights_s += one.bytes * speed.decode_ns_per_byte / 1e9
        prefill_s += one.weights * speed.prefill_ns_per_weight / 1e9
    graph_s = graph.nodes * calibration.node_ns / 1e9
    attention_s = graph.cells * graph.heads * graph.head_length * calibration.attention_ns / 1e9
    prefill_s += graph.nodes * calibration.batch_node_ns / 1e9 + attention_s / 2
    return SpeedForecast(
        context_tokens=context_tokens,
        decode=Rate.around(weights_s + graph_s + attention_s),
        prefill=Rate.around(prefill_s),
        weights_s=weights_s,
        graph_s=graph_s,
        attention_s=attention_s,
    )


def wanted_types(work: Mapping[WorkKey, Work]) -> set[WorkKey]:
    """Types that a calibration should have: those that make up more than a hundredth of what a token reads."""
    total = sum(one.bytes for one in work.values())
    return {key for key, one in work.items() if one.bytes * 100 > total}


def nearest(calibration: Calibration, type_: GGMLType, kind: Kind) -> TypeSpeed:
    """The speed of a type; of one that was not measured, that of the slowest of its kind by the byte."""
    exact = calibration.find(type_.name, kind)
    if exact is not None:
        return exact
    alike = [one for one in calibration.types if one.kind == kind] or list(calibration.types)
    return max(alike, key=lambda one: one.decode_ns_per_byte)
