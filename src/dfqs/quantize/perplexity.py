"""How well a model predicts a text: the loss of every token, and how far it is from a reference.

The text is read in overlapping windows (`dfqs.quantize.windows`), and beside a divergence the model is held against
itself (`dfqs.quantize.noise_floor`). `measure_losses` runs in a worker process.
"""

import hashlib
import math
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dfqs.model.files import ModelFiles, open_model
from dfqs.progress import Progress, no_progress
from dfqs.quantize.bootstrap import Estimate, estimate_difference, estimate_mean
from dfqs.quantize.calibration import heldout_text
from dfqs.quantize.logits_file import Conditions, Losses, read_losses, require_comparable, require_storable
from dfqs.quantize.noise_floor import (
    FLOOR_PASSES,
    AgainstFloor,
    NoiseFloor,
    hold_against,
    measure_floor,
    tokens_for_floor,
)
from dfqs.quantize.windows import LossScorer, plan_windows, score_windows
from dfqs.records import sha256_of
from dfqs.runtime import Worker
from dfqs.runtime.checks import check_model
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.context import Context
from dfqs.runtime.loading import InMemory, LoadOrder, StreamFigures, loading_as_note
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
    floor_tokens: int = 0
    """Of the text that the model is held against itself on; fewer than two: it is not."""

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
    floor: NoiseFloor | None = None
    """None where it was not asked for."""


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
    floor: NoiseFloor | None = None
    """How far the model is from itself; null: not measured."""
    against_floor: AgainstFloor | None = None
    """Whether the differences from the reference are more than that."""


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
    floor_tokens: int = 0,
    progress: Progress = no_progress,
) -> Measured:
    """How well `model` predicts a text, in a worker of its own; `summarise` makes loss and perplexity of it.

    Args:
        text: to predict; None: the held-out mix that dfqs ships.
        reference: stored logits of another model to compare with, token by token.
        store: whether the logits will be stored: a file holds only so many.
        threads: CPU threads; None: `processors.default_threads`.
        order: how its weights come into memory; see `dfqs.streaming.budget.choose_load`.
        floor_tokens: of the text that the model is held against itself on, under other numerics; 0: it is not.
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
        floor_tokens,
    )
    with Worker(threads=threads) as worker:
        return worker.reporting(lambda event: progress(*event)).call(measure_losses, job)


def measure_losses(worker: WorkerContext, job: PerplexityJob) -> Measured:
    """In the worker: run the text through the model. Emits `(tokens scored, tokens in all)`, first how far loading is.

    Raises:
        RuntimeFailure: logits that are no numbers, or llama.cpp fails.
        UsageError: the reference was made under other conditions.
    """
    reference = read_losses(job.reference) if job.reference is not None else None
    with job.order.load(worker.library, job.model, loading_as_note(worker.emit)) as loaded:
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
        scorer = LossScorer(targets, reference)
        held = tokens_for_floor(model, job.text, job.floor_tokens) if job.floor_tokens > 1 else None
        total = len(targets) + (0 if held is None else (len(held[0]) - 1) * FLOOR_PASSES)
        with Context(model, threads=job.threads, **asdict(job.context)) as context:
            score_windows(context, tokens, windows, scorer, lambda window: worker.emit((window.end - 1, total)))
        done = count(len(targets) + 1)
        floor = (
            measure_floor(model, *held, threads=job.threads, on_token=lambda: worker.emit((next(done), total)))
            if held is not None
            else None
        )
        figures = loaded.read_figures()
    return Measured(scorer.losses(job.model.name, conditions), scorer.divergence(), figures, floor)


def summarise(measured: Measured, reference: Losses | None = None, of_reference: NoiseFloor | None = None) -> Summary:
    """Means and intervals of what was measured; comparisons where there is a reference.

    Args:
        of_reference: how far that is from itself, where it is known.
    """
    losses = measured.losses
    nll = estimate_mean(losses.nll)
    kl = estimate_mean(measured.kl) if measured.kl is not None else None
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
        kl=kl,
        nll_difference=difference,
        same_top=same,
        floor=measured.floor,
        against_floor=hold_against([measured.floor, of_reference], kl, difference, same) if kl is not None else None,
    )
