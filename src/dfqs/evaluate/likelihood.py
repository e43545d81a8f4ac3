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
from typing import Any, Self

from dfqs.errors import UsageError
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.evaluate.thoughts import said_piece
from dfqs.evaluate.tool_offers import Tool, takes_tools, template_field, told_in_words
from dfqs.model.files import ModelFiles
from dfqs.progress import Progress, no_progress
from dfqs.runtime import Worker
from dfqs.runtime.answer_text import AnswerText
from dfqs.runtime.checks import check_model
from dfqs.runtime.loading import LoadedModel, LoadOrder
from dfqs.runtime.logprobs import TokenScore
from dfqs.runtime.messages import Conversation
from dfqs.runtime.model import Model
from dfqs.runtime.scoring import CHUNK_TOKENS, Continuation, ContinuationScore, Scorer, ScoringSettings, ScoringWork
from dfqs.runtime.scoring_text import encode, encode_pair, prefix_token
from dfqs.runtime.worker_context import WorkerContext

__all__ = [
    "Continuation",
    "ContinuationScore",
    "GenerationRequest",
    "LikelihoodSession",
    "ScoredText",
    "ScoringSettings",
    "ScoringWork",
    "TokenScore",
    "Written",
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
class GenerationRequest:
    """A text to continue greedily."""

    prompt: tuple[int, ...]
    max_tokens: int
    until: tuple[str, ...] = ()
    """Words that end it; they are not part of it."""
    top: int = 0
    """How many of the most probable tokens to tell at each place; of requests at once the largest holds."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    text: str
    finish_reason: str
    """`stop` (the model ended, or a word of `until` came), `length`, `context` (no room left)."""
    tokens: tuple[TokenScore, ...]
    pieces: tuple[bytes, ...]
    """Of each token; control tokens have none, but for marks around thoughts."""


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

    def generate(
        self,
        asked: Sequence[GenerationRequest],
        *,
        on_text: Callable[[int, Written], object] = lambda _index, _written: None,
        on_token: Callable[[], object] = lambda: None,
    ) -> list[Written]:
        """Continue texts greedily; those that begin alike share that.

        Args:
            on_text: called with the index in `asked` and the text, as they come; not in their order.
            on_token: called with each token; what it raises ends the writing.

        Raises:
            UsageError: a prompt is empty, or longer than the context.
        """
        found: dict[int, Written] = {}

        def take(event: tuple[int, Written | None]) -> None:
            index, written = event
            if written is None:
                on_token()
                return
            found[index] = written
            on_text(index, written)

        self._worker.reporting(take).call(write_texts, list(asked))
        return [found[index] for index in range(len(asked))]

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Tokens of `(context, continuation)` pairs; an empty context is BOS (EOS where a model has none).

        Raises:
            UsageError: a continuation has no token of its own.
        """
        return self._worker.call(encode_pairs, list(pairs))

    def render_chat(
        self,
        messages: Conversation,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Tool] = (),
        thinking: bool = True,
    ) -> str:
        """A conversation as the model's template writes it.

        Args:
            tools: that the model can call; see `dfqs.evaluate.tool_offers`.
            thinking: whether a model that can think is asked to.

        Raises:
            RuntimeFailure: the model has no template, or it refuses these messages.
        """
        return self._worker.call(render_chat, list(messages), add_generation_prompt, list(tools), thinking)

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """What each token stands for, control tokens included; it may be part of a character."""
        return self._worker.call(read_pieces, list(tokens))

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


def write_texts(worker: WorkerContext, asked: Sequence[GenerationRequest]) -> None:
    """In the worker: continue texts. Emits `(index, Written)`, and `(index, None)` at each token."""
    model = _model(worker)
    scores: list[list[TokenScore]] = [[] for _ in asked]
    pieces: list[list[bytes]] = [[] for _ in asked]
    texts = [AnswerText(each.until) for each in asked]

    def take(index: int, score: TokenScore) -> bool:
        worker.stop.raise_if_requested()
        worker.emit((index, None))
        scores[index].append(score)
        pieces[index].append(said_piece(model, score.token))
        return texts[index].add(pieces[index][-1])

    def end(index: int, reason: str) -> None:
        texts[index].finish()
        worker.emit((index, Written(texts[index].text, reason, tuple(scores[index]), tuple(pieces[index]))))

    scorer: Scorer = worker.state["scorer"]
    top = max((each.top for each in asked), default=0)
    scorer.generate([each.prompt for each in asked], [each.max_tokens for each in asked], take, end, top)


def render_chat(
    worker: WorkerContext, messages: Conversation, add_generation_prompt: bool, tools: Sequence[Tool], thinking: bool
) -> str:
    """In the worker: a conversation as the model was trained to see it."""
    model = _model(worker)
    variables: dict[str, Any] = {"enable_thinking": thinking}
    if takes_tools(model):
        variables |= {"tools": template_field(tools)} if tools else {}
    else:
        messages = told_in_words(messages, tools)
    return model.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, **variables)


def tokenize(worker: WorkerContext, texts: Sequence[str], add_special: bool) -> list[list[int]]:
    """In the worker: tokens of each text."""
    return [encode(_model(worker), text, add_special) for text in texts]


def read_pieces(worker: WorkerContext, tokens: Sequence[int]) -> list[bytes]:
    """In the worker: see `LikelihoodSession.pieces`."""
    return [_model(worker).piece(token) for token in tokens]


def encode_pairs(worker: WorkerContext, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """In the worker: see `LikelihoodSession.encode`."""
    return [encode_pair(_model(worker), *pair) for pair in pairs]


def _model(worker: WorkerContext) -> Model:
    loaded: LoadedModel = worker.state["loaded"]
    return loaded.model
