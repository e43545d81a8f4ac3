"""How fast a model will be on a machine, out of what its graph has to do and how fast the machine does each kind of it.

A token's time is: the bytes of its weights, each at the rate of its type and kind; the nodes of its graph; and
attention over what is cached. A prompt's token is the same with the rates of batches, and on average half of the
prompt behind it. Pure: rates come from a `Calibration`, sizes from the header and from the runtime.
"""

from collections.abc import Mapping

from dfqs.planning.calibration import Calibration
from dfqs.planning.rates import seconds_of
from dfqs.planning.work import (
    ATTENDED,
    ATTENDED_ELEMENT,
    NODE,
    GraphSize,
    Terms,
    Work,
    WorkKey,
    decode_terms,
    prompt_terms,
)
from dfqs.records import Amount, Record

INTERVAL = 1.25
"""A rate's interval reaches from so much less to so much more: how often that held is in docs/forecast.md."""
STEADY = 1.1
"""A machine whose speed changes by less than this is steady; one that changes more widens the interval by as much."""


class Rate(Record):
    """Tokens a second, forecast."""

    tokens_per_s: Amount
    low: Amount
    high: Amount
    """Meant to hold 95 of 100 rates; how often it did is in docs/forecast.md."""

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
    work: Mapping[WorkKey, Work],
    passed: Mapping[WorkKey, Work],
    graph: GraphSize,
    middle: GraphSize,
    context_tokens: int,
    calibration: Calibration,
) -> SpeedForecast:
    """Decode and prefill at one context length.

    Args:
        work: of a token that is decoded.
        passed: the part of it that every token of a prompt passes.
        graph: at the end of the context.
        middle: in the middle of it.
    """
    decode = _known(decode_terms(work, graph), calibration.decode_ns)
    prompt = _known(prompt_terms(work, passed, middle, context_tokens), calibration.prompt_ns)
    attention = {name: decode.pop(name, 0.0) for name in (ATTENDED, ATTENDED_ELEMENT)}
    nodes = {NODE: decode.pop(NODE, 0.0)}
    parts = [seconds_of(terms, calibration.decode_ns) for terms in (decode, nodes, attention)]
    factor = INTERVAL * (max(calibration.change, 1.0) if calibration.change > STEADY else 1.0)
    return SpeedForecast(
        context_tokens=context_tokens,
        decode=Rate.around(sum(parts), factor),
        prefill=Rate.around(seconds_of(prompt, calibration.prompt_ns), factor),
        weights_s=parts[0],
        graph_s=parts[1],
        attention_s=parts[2],
    )


def wanted_types(work: Mapping[WorkKey, Work]) -> set[WorkKey]:
    """Types that a calibration should have: those that make up more than a hundredth of what a token reads."""
    total = sum(one.bytes for one in work.values())
    return {key for key, one in work.items() if one.bytes * 100 > total}


def _known(terms: Terms, rates_ns: Mapping[str, float]) -> Terms:
    """Work in types that were not measured as work in the slowest of their kind."""
    known: Terms = {}
    for name, amount in terms.items():
        stands_for = name if name in rates_ns else slowest(name, rates_ns)
        if stands_for is not None:
            known[stands_for] = known.get(stands_for, 0.0) + amount
    return known


def slowest(name: str, rates_ns: Mapping[str, float]) -> str | None:
    """The slowest kind of work that differs from `name` in its type only, else of weights at all; None where there is
    none (a graph's nodes and attention took no time)."""
    kind = name.partition(" ")[2]
    alike = [other for other in rates_ns if other.partition(" ")[2] == kind and kind]
    if not alike and kind in ("dense", "experts"):
        alike = [other for other in rates_ns if other.partition(" ")[2] in ("dense", "experts")]
    return max(alike, key=lambda other: rates_ns[other], default=None)
