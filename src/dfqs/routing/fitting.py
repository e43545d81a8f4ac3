"""Making the texts fit: into the context that a model was trained for, and never in silence."""

from collections.abc import Sequence

from dfqs.errors import UsageError

BESIDE_TOKENS = 100
"""Of the other sequence. No multiple of 32: one of 128 tokens was seen to change no bit, one of 100 many."""
LEAST_TOKENS = 8
"""Of a text or a request that anything is said about."""


def fit_requests(requests: Sequence[list[int]], answer_tokens: int, room: int) -> tuple[list[list[int]], str | None]:
    """Requests that are answered together in a context of `room` tokens: the longest cut, as little as will do.

    Returns:
        The requests, and a sentence when any was cut.

    Raises:
        UsageError: hardly anything would be left of them.
    """
    left = room - answer_tokens * len(requests)
    cap = longest = max(map(len, requests))
    while cap and sum(min(len(request), cap) for request in requests) > left:
        cap -= 1
    if cap < min(LEAST_TOKENS, longest):
        raise UsageError(
            f"a context of {room:,} tokens, all that this model was trained for, has no room for {len(requests)} "
            f"requests with answers of {answer_tokens} tokens: the load cannot be tried on it"
        )
    if cap == longest:
        return list(requests), None
    return [request[:cap] for request in requests], (
        f"the load's requests were cut to {cap} tokens at most, to fit the {room:,} that this model was trained for"
    )


def fit_text(
    text: Sequence[int], other: Sequence[int], tokens: int, room: int
) -> tuple[list[int], list[int], str | None]:
    """A text and the sequence beside it, short enough for every condition in a context of `room` tokens.

    The condition that takes most holds the text and, on a branch of its first third, the rest once more.

    Args:
        tokens: of the text that were asked for.

    Returns:
        The text, the other sequence, and a sentence when the text is shorter than was asked for.

    Raises:
        UsageError: fewer than `LEAST_TOKENS` are left.
    """
    count = min(tokens, len(text), room * 3 // 5)
    if count < LEAST_TOKENS:
        raise UsageError(f"{count} tokens of text are too few to say anything about; {LEAST_TOKENS} are the least")
    notice = None
    if count < tokens:
        why = "all that the text has" if count == len(text) else f"as many as fit the {room:,} it was trained for"
        notice = f"{tokens:,} tokens of text were asked for; it is {count:,} for this model, {why}"
    return list(text[:count]), list(other[: min(BESIDE_TOKENS, room - count)]), notice
