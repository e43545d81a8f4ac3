"""How well a model predicts a text: the loss of every token, and how far it is from a reference.

The text is read in overlapping windows. Each window begins with BOS (where the model has one) in place of its first
token, and scores its last `stride` tokens, so that every scored token has at least `window - stride` tokens before it;
the first window scores all of its tokens. Every token is scored once. `measure_losses` runs in a worker process.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.model.files import ModelFiles, open_model
from dfqs.progress import Progress, no_progress
from dfqs.quantize.bootstrap import Estimate, estimate_difference, estimate_mean
from dfqs.quantize.calibration import heldout_text
from dfqs.quantize.logits_file import (
    TOP,
    Conditions,
    Float32,
    Losses,
    divergence,
    read_losses,
    require_comparable,
    require_storable,
)
from dfqs.records import sha256_of
from dfqs.runtime import Worker
from dfqs.runtime.checks import check_model
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.context import Context
from dfqs.runtime.loading import InMemory, LoadOrder, StreamFigures
from dfqs.runtime.logprobs import ROWS, log_softmax, most_probable
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.worker_context import WorkerContext

WINDOW_TOKENS, STRIDE_TOKENS = 512, 256
NOT_REPACKED = ", not repacked"
"""What numerics end with where weights were not copied into another order: that changes a loss in its last digits."""


@dataclass(frozen=True, slots=True)
class PerplexityJob:
    """What to measure."""

    model: Path
    text: str
    window_tokens: int = WINDOW_TOKENS
    stride_tokens: int = STRIDE_TOKENS
    max_tokens: int | None = None
    reference: Path | None = None
    """Stored logits to compute the divergence from."""
    threads: int | None = None
    store: bool = False
    """Whether the logits will be stored: a file holds only so many."""
    order: LoadOrder = field(default_factory=InMemory)
    """How the model's weights come into memory."""

    @property
    def context(self) -> ContextSettings:
        """That it is computed in."""
        return perplexity_context(self.window_tokens)

    @property
    def fingerprint(self) -> str:
        """Hash of what decides the losses: the model's files as they are now, text, windows and runtime."""
        status = {str(path.absolute()): path.stat() for path in open_model(self.model).paths}
        files = [[path, found.st_size, found.st_mtime_ns] for path, found in status.items()]
        text = hashlib.sha256(self.text.encode()).hexdigest()
        numerics = runtime_name() + ("" if self.order.repack else NOT_REPACKED)
        return sha256_of([files, text, self.window_tokens, self.stride_tokens, self.max_tokens, numerics])


@dataclass(frozen=True, slots=True)
class Measured:
    """What came back from the worker."""

    losses: Losses
    kl: NDArray[np.float64] | None
    """[tokens] Divergence from the reference; None without one."""
    streaming: StreamFigures | None = None
    """None where all weights were in memory."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One model in numbers. Losses in nats a token."""

    nll: Estimate
    perplexity: float
    perplexity_low: float | None
    perplexity_high: float | None
    kl: Estimate | None
    """From the reference; a lower bound (see `logits_file`)."""
    nll_difference: Estimate | None
    """Loss minus the reference's, paired by token."""
    same_top: Estimate | None
    """Share of tokens for which the most probable token is the reference's."""


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


def perplexity_context(window_tokens: int) -> ContextSettings:
    """The context that windows of so many tokens are computed in."""
    return ContextSettings(window_tokens, n_batch=window_tokens, n_ubatch=window_tokens, flash_attention="off")


def whole_order(reference: Losses | None) -> InMemory:
    """How to load a model that fits: as its reference was, or their losses would differ by more than the models do."""
    repack = reference is None or not reference.conditions.numerics.endswith(NOT_REPACKED)
    return InMemory(repack=repack)


def logits_bytes(tokens: int, vocabulary: int | None) -> int:
    """Memory for the logits of so many tokens at once, which llama.cpp takes when they are first asked for."""
    return tokens * (vocabulary or 0) * 4


def measure_perplexity(
    model: Path | ModelFiles,
    text: str | None = None,
    *,
    window_tokens: int = WINDOW_TOKENS,
    stride_tokens: int = STRIDE_TOKENS,
    max_tokens: int | None = None,
    reference: Path | None = None,
    store: bool = False,
    threads: int | None = None,
    order: LoadOrder | None = None,
    progress: Progress = no_progress,
) -> Measured:
    """How well `model` predicts a text, in a worker of its own; `summarise` makes loss and perplexity of it.

    Args:
        text: to predict; None: the held-out mix that dfqs ships.
        reference: stored logits of another model to compare with, token by token.
        store: whether the logits will be stored: a file holds only so many.
        threads: CPU threads; None: `hardware.default_threads`.
        order: how its weights come into memory; see `dfqs.streaming.budget.choose_load`.
        progress: in tokens.

    Raises:
        UsageError: the text is too short, or the reference is of other tokens.
        RuntimeFailure: llama.cpp fails, or computes what is no numbers.
    """
    words = heldout_text() if text is None else text
    job = PerplexityJob(
        check_model(model).path.absolute(),
        words,
        window_tokens,
        stride_tokens,
        max_tokens,
        reference.absolute() if reference is not None else None,
        threads,
        store,
        order or InMemory(),
    )
    with Worker(threads=threads) as worker:
        return worker.reporting(lambda event: progress(*event)).call(measure_losses, job)


def measure_losses(worker: WorkerContext, job: PerplexityJob) -> Measured:
    """In the worker: run the text through the model. Emits `(tokens scored, tokens in all)`.

    Raises:
        RuntimeFailure: logits that are no numbers, or llama.cpp fails.
        UsageError: the reference was made under other conditions.
    """
    reference = read_losses(job.reference) if job.reference is not None else None
    with job.order.load(worker.library, job.model, no_progress) as loaded:
        model = loaded.model
        tokens = model.tokenize(job.text, add_special=True, parse_special=False)[: job.max_tokens]
        if job.store:
            require_storable(len(tokens) - 1)
        windows = list(plan_windows(len(tokens), job.window_tokens, job.stride_tokens))
        conditions = Conditions(
            text_sha256=hashlib.sha256(job.text.encode()).hexdigest(),
            vocabulary=model.vocab_size,
            window_tokens=job.window_tokens,
            stride_tokens=job.stride_tokens,
            numerics=f"flash attention off, f16 cache, ubatch {job.window_tokens}, {runtime_name()}"
            + ("" if job.order.repack else NOT_REPACKED),
        )
        targets = np.array(tokens[1:], np.int32)
        if reference is not None:
            require_comparable(job.model.name, conditions, targets, reference)
        scorer = _Scorer(targets, reference)
        with Context(model, threads=job.threads, **asdict(job.context)) as context:
            for window in windows:
                context.clear()
                piece = list(tokens[window.start : window.end])
                if model.adds_bos and model.bos >= 0:
                    piece[0] = model.bos
                context.decode(piece, logits="all", take=partial(_score_rows, scorer, window))
                worker.emit((window.end - 1, len(tokens) - 1))
        figures = loaded.read_figures()
    return replace(scorer.result(job.model.name, conditions), streaming=figures)


def _score_rows(scorer: "_Scorer", window: Window, start: int, rows: Float32) -> None:
    """Score what of a batch is to be scored; its rows are those of the window's tokens from `start` on."""
    # The logits at one token predict the next, so the last row of a window predicts nothing in it.
    first = max(window.first_scored - 1 - window.start, start)
    end = min(window.end - window.start - 1, start + len(rows))
    if first < end:
        scorer.add(window.start + first, rows[first - start : end - start])


def summarise(measured: Measured, reference: Losses | None = None) -> Summary:
    """Means and intervals of what was measured; comparisons where there is a reference."""
    losses = measured.losses
    nll = estimate_mean(losses.nll)
    difference = same = None
    if reference is not None:
        require_comparable(losses.model_name, losses.conditions, losses.targets, reference)
        difference = estimate_difference(losses.nll, reference.nll)
        same = estimate_mean((losses.top_ids[:, 0] == reference.top_ids[:, 0]).astype(np.float64))
    return Summary(
        nll=nll,
        perplexity=math.exp(nll.mean),
        perplexity_low=math.exp(nll.low) if nll.low is not None else None,
        perplexity_high=math.exp(nll.high) if nll.high is not None else None,
        kl=estimate_mean(measured.kl) if measured.kl is not None else None,
        nll_difference=difference,
        same_top=same,
    )


class _Scorer:
    """Turns logits into losses, most probable tokens and divergences, a few rows at a time."""

    def __init__(self, targets: NDArray[np.int32], reference: Losses | None) -> None:
        self.targets, self.reference = targets, reference
        self.nll: list[Float32] = []
        self.top_ids: list[NDArray[np.int32]] = []
        self.top_logprobs: list[Float32] = []
        self.others: list[Float32] = []

    def add(self, first: int, logits: Float32) -> None:
        """Score the targets `first` and following with one row of logits each."""
        for offset in range(0, len(logits), ROWS):
            rows = logits[offset : offset + ROWS]
            if not np.isfinite(rows).all():
                raise RuntimeFailure(f"the model's logits at token {first + offset:,} are no numbers")
            log_p = log_softmax(rows)
            position = first + offset
            span = slice(position, position + len(rows))
            nll = -np.take_along_axis(log_p, self.targets[span, None].astype(np.int64), 1)[:, 0]
            self.nll.append(nll.astype(np.float32))
            chosen = np.stack([most_probable(row, min(TOP, len(row))) for row in log_p])
            self.top_ids.append(chosen.astype(np.int32))
            self.top_logprobs.append(np.take_along_axis(log_p, chosen, 1).astype(np.float32))
            if self.reference is not None:
                wanted = self.reference.top_ids[span].astype(np.int64)
                self.others.append(np.take_along_axis(log_p, wanted, 1).astype(np.float32))

    def result(self, name: str, conditions: Conditions) -> Measured:
        losses = Losses(
            name,
            conditions,
            self.targets,
            np.concatenate(self.nll),
            np.concatenate(self.top_ids),
            np.concatenate(self.top_logprobs),
        )
        kl = None if self.reference is None else divergence(self.reference, np.concatenate(self.others))
        return Measured(losses, kl)
