"""How long a context takes over tokens that nobody chose: what every measurement of speed is made of.

Tokens are drawn by a fixed rule and not sampled, as llama-bench does: the rate does not depend on what is said,
but where experts come from disk; there the caller says a text.
"""

import time
from collections.abc import Sequence

from dfqs.runtime.context import Context


def time_prefill(context: Context, tokens: int, said: Sequence[int] | None = None) -> float:
    """Seconds for a prompt of `tokens` in an empty cache: the first of `said`, or of the fixed sequence."""
    context.clear()
    started = time.perf_counter()
    context.decode(spread_tokens(context.model.vocab_size, 0, tokens) if said is None else said[:tokens])
    return time.perf_counter() - started


def time_decode(context: Context, position: int, tokens: int, said: Sequence[int] | None = None) -> tuple[float, ...]:
    """Seconds of each of `tokens` decoded one at a time behind `position`, which the cache must reach.

    Args:
        said: the whole sequence, from position 0 on; None: the fixed one.
    """
    seconds = []
    for place in range(position, position + tokens):
        token = spread_tokens(context.model.vocab_size, place, 1) if said is None else said[place : place + 1]
        started = time.perf_counter()
        context.decode(token, place)
        seconds.append(time.perf_counter() - started)
    return tuple(seconds)


def spread_tokens(vocabulary: int, start: int, count: int) -> list[int]:
    """Tokens `[start, start + count)` of a fixed sequence without pattern, within the vocabulary."""
    return [(place * 2_654_435_761 + 12_345) % vocabulary for place in range(start, start + count)]
