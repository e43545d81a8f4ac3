"""How probable texts are: continuations of a context, whole texts, the most probable tokens at each place.

    with LikelihoodSession(Path("model.gguf")) as session:
        scores = session.score([("The capital of France is", " Paris"), ("The capital of France is", " Rome")])
        print([score.logprob for score in scores], session.rolling(["A whole text."]))

The engine, and what makes a score depend on its own tokens alone, is `dfqs.runtime.scoring`. Text is cut into tokens as
lm-evaluation-harness does it, so that numbers compare with what is published: context and continuation are encoded
together and split at the length of the context's own encoding, and spaces at the end of a context belong to the
continuation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dfqs.errors import UsageError, printable
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.model.files import ModelFiles
from dfqs.progress import Progress, no_progress
from dfqs.runtime import Worker
from dfqs.runtime.checks import check_model
from dfqs.runtime.loading import LoadedModel, LoadOrder
from dfqs.runtime.logprobs import TokenScore
from dfqs.runtime.model import Model
from dfqs.runtime.scoring import CHUNK_TOKENS, Continuation, ContinuationScore, Scorer, ScoringSettings, ScoringWork
from dfqs.runtime.worker_context import WorkerContext

__all__ = [
    "Continuation",
    "ContinuationScore",
    "LikelihoodSession",
    "ScoredText",
    "ScoringSettings",
    "ScoringWork",
    "TokenScore",
]

CONTEXT_TOKENS = 4096
"""Longest context unless told otherwise, or what the model was trained for."""


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A whole text."""

    logprob: float
    """Sum over its tokens; the first is predicted from BOS (or EOS, where a model has none)."""
    tokens: int
    windows: int
    """That it was computed in."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a model told when it was loaded."""

    limit_tokens: int
    """Longest context and continuation together, without the last token."""
    prefix_token: int
    vocabulary: int
    chat_template: str | None


class LikelihoodSession:
    """A model loaded in a worker of its own, for use in a `with` block.

    Args:
        context_tokens: longest context and continuation; None: what the model was trained for, up to 4,096.
        chunk_tokens: the pieces that contexts are computed and shared in. Larger ones are faster, above all where
            experts are read from disk, and share less.
        order: how its weights come into memory; see `dfqs.streaming.budget.choose_load`.
        progress: called while the model is loaded.

    Raises:
        UsageError, FormatError, RuntimeFailure: the file cannot be loaded.
    """

    def __init__(
        self,
        model: Path | ModelFiles,
        *,
        context_tokens: int | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
        threads: int | None = None,
        order: LoadOrder = CPU_ONLY,
        progress: Progress = no_progress,
    ) -> None:
        self._model = check_model(model)
        self._settings = likelihood_settings(self._model, context_tokens, chunk_tokens)
        self._order = order
        self._progress = progress
        self._worker = Worker(threads=threads)
        self.work = ScoringWork()
        """What all scores up to now took."""

    def __enter__(self) -> Self:
        self._worker.__enter__()
        try:
            loading = self._worker.reporting(lambda event: self._progress(*event), doing=f"loading {self._model.path}")
            self.opened = loading.call(open_scorer, self._model.path, self._order, self._settings)
        except BaseException:
            self._worker.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.close()

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        top: int = 0,
        on_score: Callable[[int, ContinuationScore], object] = lambda _index, _score: None,
    ) -> list[ContinuationScore]:
        """Score `(context, continuation)` pairs; those that share a context share its computation.

        Args:
            top: how many of the most probable tokens to tell at each position.
            on_score: called with the index in `pairs` and the score, as they come; not in their order.

        Raises:
            UsageError: a pair is longer than the context, or its continuation has no token of its own.
            NonFiniteLogits: the model computes no numbers.
            WorkerCrash: llama.cpp died.
        """
        return self.score_tokens(self.encode(pairs), top=top, on_score=on_score)

    def score_tokens(
        self,
        asked: Sequence[Continuation],
        *,
        top: int = 0,
        on_score: Callable[[int, ContinuationScore], object] = lambda _index, _score: None,
    ) -> list[ContinuationScore]:
        """As `score`, of tokens."""
        scores: dict[int, ContinuationScore] = {}

        def take(event: tuple[int, ContinuationScore]) -> None:
            scores[event[0]] = event[1]
            on_score(*event)

        self.work += self._worker.reporting(take).call(score_continuations, list(asked), top)
        return [scores[index] for index in range(len(asked))]

    def rolling(self, texts: Sequence[str], *, progress: Progress = no_progress) -> list[ScoredText]:
        """Log-likelihood of whole texts, each by itself: every token is scored once, with as many tokens before it as
        the context holds (lm-evaluation-harness: `loglikelihood_rolling`).

        Args:
            progress: in windows.

        Raises:
            UsageError: a text has no token.
        """
        limit = self.opened.limit_tokens
        windows = [list(plan_rolling(tokens, self.opened.prefix_token, limit)) for tokens in self.tokenize(texts)]
        if not all(windows):
            raise UsageError("an empty text has no likelihood")
        total, done = sum(map(len, windows)), 0

        def count(_index: int, _score: ContinuationScore) -> None:
            nonlocal done
            done += 1
            progress(done, total, "")

        scores = iter(self.score_tokens([each for text in windows for each in text], on_score=count))
        found = [[next(scores) for _ in text] for text in windows]
        return [
            ScoredText(sum(score.logprob for score in text), sum(len(score.tokens) for score in text), len(text))
            for text in found
        ]

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Tokens of `(context, continuation)` pairs; an empty context is BOS (EOS where a model has none).

        Raises:
            UsageError: a continuation has no token of its own.
        """
        return self._worker.call(encode_pairs, list(pairs))

    def tokenize(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        """Tokens of each text.

        Args:
            add_special: put BOS first, where the model wants it and the text does not bring it.
        """
        return self._worker.call(tokenize, list(texts), add_special)


def likelihood_settings(
    model: ModelFiles, context_tokens: int | None = None, chunk_tokens: int = CHUNK_TOKENS
) -> ScoringSettings:
    """Of the context that a model's scores are computed in.

    Raises:
        UsageError: a context that makes no sense.
    """
    if context_tokens is not None and context_tokens < 1:
        raise UsageError(f"a context of {context_tokens} tokens makes no sense")
    trained = model.spec.context_tokens or CONTEXT_TOKENS
    return ScoringSettings(min(trained, context_tokens or CONTEXT_TOKENS), chunk_tokens)


def plan_rolling(tokens: Sequence[int], prefix_token: int, limit_tokens: int) -> Iterator[Continuation]:
    """Windows over a text in which each token is scored once, with up to `limit_tokens` tokens read.

    The windows of lm-evaluation-harness (`get_rolling_token_windows` with a context of one, made disjoint): the first
    reads a prefix token and scores as many tokens as it reads; each further one scores the next as many, and the last
    is filled up with tokens before.
    """
    text = (prefix_token, *tokens)
    for scored in range(0, len(tokens), limit_tokens):
        end = min(scored + limit_tokens, len(tokens))
        # Text is shifted by one: token k of it is predicted by those before `text[k + 1]`.
        start = scored if end - scored == limit_tokens or not scored else end - limit_tokens
        yield Continuation(text[start : scored + 1], text[scored + 1 : end + 1])


def open_scorer(worker: WorkerContext, path: Path, order: LoadOrder, settings: ScoringSettings) -> Opened:
    """In the worker: load the model for the calls that follow. Emits `(done, total)` while loading."""
    loaded = order.load(worker.library, path, lambda done, total=None, note="": worker.emit((done, total)))
    worker.state["loaded"], model = loaded, loaded.model
    worker.state["scorer"] = scorer = Scorer(model, settings, worker.threads)
    return Opened(scorer.limit_tokens, prefix_token(model), model.vocab_size, model.chat_template())


def score_continuations(worker: WorkerContext, asked: Sequence[Continuation], top: int = 0) -> ScoringWork:
    """In the worker: emits `(index, ContinuationScore)`."""
    scorer: Scorer = worker.state["scorer"]
    return scorer.score(asked, lambda index, score: worker.emit((index, score)), top)


def tokenize(worker: WorkerContext, texts: Sequence[str], add_special: bool) -> list[list[int]]:
    """In the worker: tokens of each text."""
    return [encode(_model(worker), text, add_special) for text in texts]


def encode_pairs(worker: WorkerContext, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """In the worker: see `LikelihoodSession.encode`."""
    return [encode_pair(_model(worker), *pair) for pair in pairs]


def encode_pair(model: Model, context: str, continuation: str) -> Continuation:
    """Tokens of a context and of what follows it, as lm-evaluation-harness splits them.

    Raises:
        UsageError: the continuation has no token of its own.
    """
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    if bare:
        before = encode(model, bare, add_special=True)
        after = encode(model, bare + continuation, add_special=True)[len(before) :]
    else:
        before, after = [prefix_token(model)], encode(model, continuation, add_special=False)
        if len(after) > 1 and after[0] == before[0]:
            after = after[1:]
    if not after:
        raise UsageError(
            f"the continuation '{printable(continuation, 40)}' has no token of its own: it is empty, or joins the last "
            "token of its context"
        )
    return Continuation(tuple(before), tuple(after))


def encode(model: Model, text: str, add_special: bool) -> list[int]:
    """Tokens of `text`, control tokens read as such. Never an EOS at the end: something may follow.

    Args:
        add_special: put BOS first, where the model wants it and the text does not bring it.
    """
    tokens = model.tokenize(text, add_special=False, parse_special=True)
    if add_special and model.adds_bos and model.bos >= 0 and tokens[:1] != [model.bos]:
        return [model.bos, *tokens]
    return tokens


def prefix_token(model: Model) -> int:
    """What the first token of a text is predicted from: BOS, or EOS where a model has none.

    Raises:
        UsageError: it has neither.
    """
    token = model.bos if model.bos >= 0 else model.eos
    if token < 0:
        raise UsageError(f"{model.path} has neither BOS nor EOS, so the first token of a text cannot be predicted")
    return token


def _model(worker: WorkerContext) -> Model:
    loaded: LoadedModel = worker.state["loaded"]
    return loaded.model
