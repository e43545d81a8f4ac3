"""A text read in windows, and what a model says of each token: loss, most probable tokens, divergence from a reference.

Each window begins with BOS (where the model has one) in place of its first token, and scores its last `stride` tokens,
so that every scored token has at least `window - stride` tokens before it; the first window scores all of its tokens.
Every token is scored once. Runs in a worker process.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.quantize.logits_file import TOP, Conditions, Float32, Losses, divergence
from dfqs.runtime.context import Context
from dfqs.runtime.logprobs import LogProbabilities
from dfqs.runtime.model import Model

LEAST_LOGPROB = -1e4
"""Log-probability of a token that a model rules out: what is stored and subtracted has to be a number."""


@dataclass(frozen=True, slots=True)
class Window:
    """One stretch of text that is computed together."""

    start: int
    end: int
    first_scored: int
    """The first token of the text that this window scores; it scores all from there to its end."""


def plan_windows(tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Windows over a text of `tokens`; every token but the first is scored once.

    Raises:
        UsageError: a stride that leaves tokens out or no context, or too short a text.
    """
    if not 0 < stride < window:
        raise UsageError(f"a stride of {stride} tokens does not fit windows of {window}: it must be shorter")
    if tokens < 2:
        raise UsageError("the text has fewer than two tokens, so there is nothing to predict")
    end, scored = 0, 1
    while end < tokens:
        end = min(end + (window if end == 0 else stride), tokens)
        start = max(end - window, 0)
        yield Window(start, end, scored)
        scored = end


def score_windows(
    context: Context,
    tokens: Sequence[int],
    windows: Sequence[Window],
    scorer: "LossScorer",
    on_window: Callable[[Window], object] = lambda _window: None,
) -> None:
    """Compute each window from an empty cache, in the context's batches, and hand its logits to `scorer`.

    Raises:
        NonFiniteLogits, RuntimeFailure: the model computes no numbers, or llama.cpp fails.
    """
    model = context.model
    for window in windows:
        context.clear()
        # The logits at one token predict the next.
        first = window.first_scored - 1 - window.start
        read = window_tokens(model, tokens, window)
        context.decode(read, logits="all", first_row=first, take=partial(_score_rows, scorer, window))
        on_window(window)


def window_tokens(model: Model, tokens: Sequence[int], window: Window) -> list[int]:
    """What is read for a window."""
    piece = list(tokens[window.start : window.end])
    if model.adds_bos and model.bos >= 0:
        piece[0] = model.bos
    return piece


def _score_rows(scorer: "LossScorer", window: Window, start: int, rows: Float32) -> None:
    """Score what of a batch is to be scored; its rows are those of the window's tokens from `start` on."""
    # The last row of a window predicts nothing in it.
    first = max(window.first_scored - 1 - window.start, start)
    end = min(window.end - window.start - 1, start + len(rows))
    if first < end:
        scorer.add(window.start + first, rows[first - start : end - start])


class LossScorer:
    """Turns logits into losses, most probable tokens and divergences, a few rows at a time.

    Args:
        targets: [tokens] What is predicted, in the order in which rows come.
        reference: of the same targets, to be diverged from.
        on_token: called when one more was scored.
    """

    def __init__(
        self,
        targets: NDArray[np.int32],
        reference: Losses | None = None,
        on_token: Callable[[], object] = lambda: None,
    ) -> None:
        self.targets, self.reference, self._on_token = targets, reference, on_token
        self._nll: list[np.float32] = []
        self._top_ids: list[NDArray[np.int32]] = []
        self._top_logprobs: list[Float32] = []
        self._others: list[Float32] = []

    def add(self, first: int, logits: Float32) -> None:
        """Score the targets `first` and following with one row of logits each.

        Raises:
            RuntimeFailure: the model rules a target out, so that its loss is no number.
        """
        for position, row in enumerate(logits, first):
            probabilities = LogProbabilities.of(row)
            nll = -probabilities[int(self.targets[position])]
            if not np.isfinite(nll):
                raise RuntimeFailure(f"the model's loss at token {position:,} or behind it is no number")
            self._nll.append(np.float32(nll))
            ids, logprobs = probabilities.most_probable(min(TOP, len(row)), LEAST_LOGPROB)
            self._top_ids.append(ids.astype(np.int32))
            self._top_logprobs.append(logprobs)
            if self.reference is not None:
                others = probabilities[self.reference.top_ids[position]]
                self._others.append(np.maximum(others, np.float32(LEAST_LOGPROB)))
            self._on_token()

    def losses(self, name: str, conditions: Conditions) -> Losses:
        """All that was added."""
        return Losses(
            name,
            conditions,
            self.targets,
            np.array(self._nll, np.float32),
            np.stack(self._top_ids),
            np.stack(self._top_logprobs),
        )

    def divergence(self) -> NDArray[np.float64] | None:
        """[tokens] From the reference; None without one."""
        return None if self.reference is None else divergence(self.reference, np.stack(self._others))
