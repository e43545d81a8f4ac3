"""Importance of weights, measured: which columns of each matrix see large inputs, for each expert by itself.

Text runs through the model, and `dfqs.quantize.activations` adds up what each weight is multiplied with. What was never
routed to an expert says nothing about it, so the measurement goes on until every expert of every layer has seen enough.
Runs in a worker process.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dfqs import __version__
from dfqs.errors import AlreadyDone, UsageError
from dfqs.model.files import ModelFiles, open_model
from dfqs.progress import Progress, no_progress
from dfqs.quantize.activations import MIN_ROWS, Collector
from dfqs.quantize.calibration import Corpus, Stream, shipped_corpus
from dfqs.quantize.checkpoint import Checkpoint, checkpoint_path, forget_checkpoint
from dfqs.quantize.coverage import Coverage, measure_coverage
from dfqs.quantize.imatrix_file import (
    OLDER_AND_NEWER,
    Imatrix,
    merge_imatrices,
    read_imatrix,
    write_imatrix,
)
from dfqs.receipts import find_receipt, receipt_of
from dfqs.records import sha256_of
from dfqs.runtime import Worker
from dfqs.runtime.checks import check_model
from dfqs.runtime.context import Context, Model
from dfqs.runtime.loading import InMemory, LoadOrder, StreamFigures, Templated, loading_as_note
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.worker_context import WorkerContext
from dfqs.storage.atomic import check_output_path

Tokens = list[int]


@dataclass(frozen=True, slots=True)
class ImatrixJob:
    """What to measure."""

    model: Path
    out: Path
    corpus: Corpus
    chunk_tokens: int
    min_samples: int
    """Stop when every (layer, expert) has seen at least so many inputs..."""
    min_tokens: int
    """...and so many tokens have been seen."""
    max_tokens: int | None
    """Stop here in any case; None: at the end of the corpus."""
    add: tuple[Path, ...]
    """Importance matrices to start from."""
    threads: int | None
    checkpoint_s: float = 60.0
    overwrite: bool = False
    """Replace `out` if it exists."""
    restart: bool = False
    """Throw away what an interrupted measurement left."""
    order: LoadOrder = field(default_factory=InMemory)
    """No part of the fingerprint but for a template that was given: sums differ less by it than by which tokens they
    saw."""

    @property
    def partial(self) -> Path:
        return checkpoint_path(self.out)

    @property
    def fingerprint(self) -> str:
        """Hash of what decides the sums: a run goes on only from its own checkpoint."""
        files = (*open_model(self.model).paths, *self.add)
        status = {str(path.absolute()): path.stat() for path in files}
        inputs = [[path, found.st_size, found.st_mtime_ns] for path, found in status.items()]
        decides: dict[str, Any] = {"inputs": inputs, "corpus": self.corpus.sha256, "chunk_tokens": self.chunk_tokens}
        if isinstance(self.order, Templated):
            decides["template"] = self.order.template.sha256
        return sha256_of(decides)

    @property
    def result_fingerprint(self) -> str:
        """Hash of what decides the bytes of `out`: the sums, and where they stop."""
        return sha256_of([self.fingerprint, self.min_samples, self.min_tokens, self.max_tokens])


@dataclass(frozen=True, slots=True)
class ImatrixOutcome:
    """What was measured."""

    tokens: int
    """Tokens seen by this measurement, earlier parts of a resumed one included, those of `add` not."""
    tokens_available: int
    coverage: Coverage
    weights: int
    resumed_tokens: int
    stopped_because: str
    wall_s: float
    streaming: StreamFigures | None = None
    """None where all weights were in memory."""


def measure_importance(
    model: Path | ModelFiles,
    out: Path,
    *,
    corpus: Corpus | None = None,
    chunk_tokens: int = 512,
    min_samples: int = 100,
    min_tokens: int = 8192,
    max_tokens: int | None = None,
    add: Sequence[Path] = (),
    threads: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    order: LoadOrder | None = None,
    progress: Progress = no_progress,
) -> ImatrixOutcome:
    """Measure which weights of `model` matter and write `out`, in a worker of its own; see `ImatrixJob`.

    Killed at any moment, the same call goes on from its last checkpoint.

    Args:
        corpus: the text to run; None: the mix that dfqs ships.
        threads: CPU threads; None: `processors.default_threads`.
        restart: throw away what an interrupted measurement left.
        order: how its weights come into memory.
        progress: in tokens.

    Raises:
        AlreadyDone: the same call has ended well before, and nothing changed since.
        RuntimeFailure: the model's activations are no numbers, or llama.cpp fails.
        UsageError: the corpus is too short, `out` exists, or a checkpoint of another measurement lies there.
    """
    job = ImatrixJob(
        model=check_model(model).path.absolute(),
        out=out.absolute(),
        corpus=corpus if corpus is not None else shipped_corpus(),
        chunk_tokens=chunk_tokens,
        min_samples=min_samples,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        add=tuple(path.absolute() for path in add),
        threads=threads,
        overwrite=overwrite,
        restart=restart,
        order=order or InMemory(),
    )
    if not overwrite and find_receipt(job.result_fingerprint, [job.out]) is not None:
        forget_checkpoint(job.out, job.fingerprint)
        raise AlreadyDone(f"{out} exists already, and is what this command made: done already")
    check_output_path(job.out, overwrite=overwrite)
    with Worker(threads=threads) as worker:
        return worker.reporting(lambda event: progress(*event)).call(measure_imatrix, job)


def imatrix_context(chunk_tokens: int) -> ContextSettings:
    """The context that chunks of so many tokens are computed in."""
    return ContextSettings(chunk_tokens, n_batch=chunk_tokens, n_ubatch=chunk_tokens, flash_attention="off")


def measure_imatrix(worker: WorkerContext, job: ImatrixJob) -> ImatrixOutcome:
    """In the worker: measure and write `job.out`. Emits `(tokens, tokens of the corpus, note)`.

    Raises:
        RuntimeFailure: the model's activations are no numbers, or llama.cpp fails.
        UsageError: the corpus is too short; a checkpoint of another measurement lies there.
    """
    with Checkpoint(job.out, job.fingerprint, restart=job.restart) as checkpoint:
        return _measure(worker, job, checkpoint)


def _measure(worker: WorkerContext, job: ImatrixJob, checkpoint: Checkpoint) -> ImatrixOutcome:
    started = time.monotonic()
    base = [read_imatrix(path) for path in job.add]
    if any(matrix.one_count_for_all for matrix in base):
        raise UsageError(OLDER_AND_NEWER)
    with job.order.load(worker.library, job.model, loading_as_note(worker.emit)) as loaded:
        model = loaded.model
        chunks = list(chunk_corpus(model, job.corpus, job.chunk_tokens))
        reason = "the corpus ended"
        available = sum(len(chunk) for chunk in chunks)
        if job.max_tokens is not None and available > job.max_tokens:
            chunks, reason = limit_chunks(chunks, job.max_tokens), "as many tokens as allowed were seen"
            available = sum(len(chunk) for chunk in chunks)
        longest = max(len(chunk) for chunk in chunks)
        kept, done = checkpoint.read()
        matrix = kept if kept is not None else Imatrix({}, chunk_tokens=job.chunk_tokens)
        resumed = matrix.tokens
        if _see_chunks(worker, model, job, checkpoint, base, matrix, chunks, done):
            reason = "every expert has seen enough"
        figures = loaded.read_figures()
    matrix.datasets = (job.corpus.name,)
    matrix.chunk_tokens = longest
    total = merge_imatrices([*base, matrix])
    total.extra = {"dfqs.imatrix.corpus_sha256": job.corpus.sha256, "dfqs.version": __version__}
    with receipt_of(job.result_fingerprint, job.out) as on_whole:
        write_imatrix(job.out, total, overwrite=job.overwrite, on_whole=on_whole)
    checkpoint.forget()
    return ImatrixOutcome(
        tokens=matrix.tokens,
        tokens_available=available,
        coverage=measure_coverage(total, job.min_samples),
        weights=len(total.entries),
        resumed_tokens=resumed,
        stopped_because=reason,
        wall_s=time.monotonic() - started,
        streaming=figures,
    )


def _see_chunks(
    worker: WorkerContext,
    model: Model,
    job: ImatrixJob,
    checkpoint: Checkpoint,
    base: list[Imatrix],
    matrix: Imatrix,
    chunks: list[Tokens],
    done: int,
) -> bool:
    """Add the chunks from number `done` on to `matrix`; whether every expert had seen enough before the last."""
    available, longest = sum(map(len, chunks)), max(map(len, chunks))
    collector = Collector()
    saved = time.monotonic()
    settings = asdict(imatrix_context(longest))
    with Context(model, threads=job.threads, eval_callback=collector.callback, **settings) as context:
        if done < len(chunks):
            # Computed to the logits, so that a model that ends in no numbers is noticed.
            collector.begin(Imatrix({}))
            context.decode(chunks[done][:MIN_ROWS], logits="all")
            collector.end_graphs()
        for index in range(done, len(chunks)):
            total = merge_imatrices([*base, matrix]) if base else matrix
            coverage = measure_coverage(total, job.min_samples)
            if matrix.tokens >= job.min_tokens and coverage.experts and coverage.is_complete:
                return True
            worker.emit((matrix.tokens, available, coverage.describe() if total.entries else ""))
            context.clear()
            collector.begin(matrix)
            # Asked for, or the last layer would not compute every token.
            context.decode(chunks[index], logits="unread")
            matrix.tokens += len(chunks[index])
            # A chunk that was cut short is the last one of this measurement, and none of a longer one's.
            if time.monotonic() - saved >= job.checkpoint_s and len(chunks[index]) == longest:
                checkpoint.write(matrix, index + 1)
                saved = time.monotonic()
    return False


def chunk_corpus(model: Model, corpus: Corpus, chunk_tokens: int) -> Iterator[Tokens]:
    """Chunks of the corpus, streams interleaved in proportion to length; each begins with BOS if the model has it.

    Raises:
        UsageError: there are fewer tokens than one small chunk.
    """
    placed: list[tuple[float, int, Tokens]] = []
    for number, stream in enumerate(corpus.streams):
        tokens = tokenize_stream(model, stream)
        chunks = [tokens[i : i + chunk_tokens] for i in range(0, len(tokens), chunk_tokens)]
        # A last piece of a few tokens is no context worth measuring in; a lone short text is all there is.
        if len(chunks) > 1 and len(chunks[-1]) < chunk_tokens:
            chunks.pop()
        for index, chunk in enumerate(chunks):
            if len(chunk) >= MIN_ROWS:
                placed.append(((index + 0.5) / len(chunks), number, chunk))
    if not placed:
        raise UsageError(f"the corpus has fewer than {MIN_ROWS} tokens; give it more text")
    for _, _, chunk in sorted(placed, key=lambda entry: entry[:2]):
        yield [model.bos, *chunk[1:]] if model.adds_bos and model.bos >= 0 else chunk


def tokenize_stream(model: Model, stream: Stream) -> Tokens:
    """All tokens of a stream, documents parted by blank lines."""
    if stream.conversations:
        if model.chat_template() is None:
            texts = ["\n\n".join(f"{role}: {text}" for role, text in turns) for turns in stream.conversations]
            return model.tokenize("\n\n".join(texts), add_special=True, parse_special=False)
        tokens: Tokens = []
        for turns in stream.conversations:
            messages = [{"role": role, "content": text} for role, text in turns]
            tokens += model.tokenize_chat(model.apply_chat_template(messages, add_generation_prompt=False))
        return tokens
    return model.tokenize("\n\n".join(stream.documents), add_special=True, parse_special=False)


def limit_chunks(chunks: list[Tokens], most: int) -> list[Tokens]:
    """The first `most` tokens: whole chunks, and the beginning of one where that is a sample of text at all.

    Raises:
        UsageError: too few for any.
    """
    kept: list[Tokens] = []
    left = most
    for chunk in chunks:
        if left < MIN_ROWS:
            break
        kept.append(chunk[:left])
        left -= len(kept[-1])
    if not kept:
        raise UsageError(f"{most:,} tokens are no sample of text; measure {MIN_ROWS} or more")
    return kept
