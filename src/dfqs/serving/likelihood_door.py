"""`/v1/completions` with `echo` and `logprobs`: the likelihood of a prompt, which llama-server does not tell.

llama-server takes such a request, and answers as if neither had been asked for (ggml-org/llama.cpp#27174); harnesses
then score chance. Here the front answers it, from a worker of its own that loads the model when first asked:
`dfqs.runtime.scoring` computes what it computes for everybody. Prompts that begin like the one before share that.
"""

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from dfqs.errors import DfqsError, NonFiniteLogits, SpaceError, UsageError
from dfqs.hardware import available_memory_bytes
from dfqs.runtime.loading import InMemory
from dfqs.runtime.logprobs import TokenScore
from dfqs.runtime.scoring import Continuation, ContinuationScore, Scorer, ScoringSettings
from dfqs.runtime.scoring_text import encode
from dfqs.runtime.worker import Worker
from dfqs.runtime.worker_context import WorkerContext
from dfqs.serving.engine import ServerSettings
from dfqs.serving.http_head import HttpRefusal, RequestHead
from dfqs.units import format_bytes

PATHS = ("/v1/completions", "/completions")
TOP_LIMIT = 100
PROMPTS_LIMIT = 256
"""In one request."""


@dataclass(frozen=True, slots=True)
class _Asked:
    prompts: list[str | list[int]]
    top: int
    write: bool
    """Whether a token that follows is wanted."""


@dataclass(slots=True)
class LikelihoodDoor:
    """Answers what `wants` says that it does; one request at a time, others wait."""

    settings: ServerSettings
    threads: int | None = None
    _worker: Worker | None = None
    _lock: Any = field(default_factory=threading.Lock)

    def wants(self, head: RequestHead, document: Mapping[str, Any]) -> bool:
        """Whether a request asks for the likelihood of its prompt."""
        asks = document.get("echo") is True and document.get("logprobs") is not None
        return asks and head.method == "POST" and unquote(head.path) in PATHS

    async def answer(self, _head: RequestHead, document: Mapping[str, Any]) -> bytes:
        """The body of the answer.

        Raises:
            HttpRefusal: it cannot be answered; says why.
        """
        if not isinstance(self.settings.order, InMemory) or self.settings.bounded:
            raise HttpRefusal(
                501, "likelihoods take the model a second time, and this server keeps to its memory (--ram)"
            )
        asked = _read(document)
        left = threading.Event()
        try:
            return await asyncio.to_thread(self._compute, asked, left)
        except asyncio.CancelledError:
            left.set()
            raise
        except UsageError as error:
            raise HttpRefusal(400, str(error)) from None
        except NonFiniteLogits as error:
            raise HttpRefusal(500, str(error)) from None
        except DfqsError as error:
            raise HttpRefusal(503, f"likelihoods cannot be computed: {error.sentence}") from None

    def close(self) -> None:
        """End the worker. Safe to call twice."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _compute(self, asked: _Asked, left: threading.Event) -> bytes:
        def heard(_event: object) -> None:
            if left.is_set():
                raise _Left

        with self._lock:
            try:
                worker = self._running()
                answers = worker.reporting(heard).call(score_prompts, asked.prompts, asked.top, asked.write)
            except _Left:
                raise UsageError("the client left") from None
            except UsageError:
                raise
            except DfqsError:
                # Whatever is left of it, the next request gets a new one.
                self.close()
                raise
        return json.dumps(_document(self.settings.alias, answers, asked.top)).encode()

    def _running(self) -> Worker:
        if self._worker is None:
            free, needed = available_memory_bytes(), self.settings.likelihood_bytes
            if free < needed:
                # The kernel would end a process, and perhaps the one that serves.
                raise SpaceError(f"they take {format_bytes(needed)} more, and {format_bytes(free)} are free")
            worker = Worker(self.threads)
            worker.__enter__()
            try:
                worker.call(open_scorer, self.settings)
            except BaseException:
                worker.close()
                raise
            self._worker = worker
        return self._worker


class _Left(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """One prompt: its tokens with their texts and scores. The first has no score; the last may be one that follows."""

    prompt_tokens: int
    pieces: tuple[str, ...]
    scores: tuple[TokenScore | None, ...]
    top_pieces: tuple[dict[str, float] | None, ...]


def open_scorer(worker: WorkerContext, settings: ServerSettings) -> None:
    """In the worker: load the model as the server has it, its file mapped."""
    order = InMemory("mmap", repack=settings.order.repack, gpu_layers=0)
    worker.state["loaded"] = loaded = order.load(worker.library, settings.path, lambda *_: None)
    worker.state["scorer"] = Scorer(loaded.model, ScoringSettings(settings.context_tokens), worker.threads)
    worker.state["before"] = ((), ())


def score_prompts(worker: WorkerContext, prompts: list[str | list[int]], top: int, write: bool) -> list[ScoredPrompt]:
    """In the worker: every token's score, given those before it. Emits after each prompt.

    Raises:
        UsageError: a prompt is empty, or longer than the context.
    """
    found = []
    for prompt in prompts:
        found.append(_score_prompt(worker, prompt, top, write))
        worker.emit(len(found))
    return found


def _score_prompt(worker: WorkerContext, prompt: str | list[int], top: int, write: bool) -> ScoredPrompt:
    model, scorer = worker.state["loaded"].model, worker.state["scorer"]
    tokens = tuple(encode(model, prompt, add_special=True) if isinstance(prompt, str) else prompt)
    if not tokens:
        raise UsageError("the prompt has no tokens")
    before, known = worker.state["before"]
    shared = 0
    while shared < min(len(tokens), len(before)) and tokens[shared] == before[shared]:
        shared += 1
    if known and len(known[-1].top) != max(top, 1):
        shared = 0
    shared = max(shared, 1)
    # What follows the last token is asked as the score of any token there.
    asked = Continuation(tokens[:shared], (*tokens[shared:], tokens[0]))
    scores: list[ContinuationScore] = []
    scorer.score([asked], lambda _index, score: scores.append(score), max(top, 1))
    *rest, following = scores[0].tokens
    each = (*known[: shared - 1], *rest)
    worker.state["before"] = (tokens, each)
    written: list[TokenScore] = []
    if write:
        token, logprob = following.top[0]
        written.append(TokenScore(token, logprob, True, following.top))
    told = [None, *each, *written]
    texts = [model.piece(token).decode("utf-8", "replace") for token in (*tokens, *(score.token for score in written))]
    tops = [None if score is None else _top(model, score, top) for score in told]
    return ScoredPrompt(len(tokens), tuple(texts), tuple(told), tuple(tops))


def _top(model: Any, score: TokenScore, top: int) -> dict[str, float]:
    """The most probable tokens and the token itself; of two with the same text the more probable."""
    found: dict[str, float] = {}
    for token, logprob in (*score.top[:top], (score.token, score.logprob)):
        found.setdefault(model.piece(token).decode("utf-8", "replace"), logprob)
    return found


def _read(document: Mapping[str, Any]) -> _Asked:
    """
    Raises:
        HttpRefusal: the request is not one that is answered here.
    """
    prompt, top, tokens = document.get("prompt"), document.get("logprobs"), document.get("max_tokens", 16)
    top = int(top) if isinstance(top, bool) else top
    if not isinstance(top, int) or not 0 <= top <= TOP_LIMIT:
        raise HttpRefusal(400, f"'logprobs' has to be a number from 0 to {TOP_LIMIT}")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= 1:
        raise HttpRefusal(400, "'max_tokens' has to be 0 or 1 beside 'echo' and 'logprobs'")
    if document.get("stream") or document.get("n", 1) != 1 or document.get("suffix"):
        raise HttpRefusal(400, "'stream', 'n' and 'suffix' are not possible beside 'echo' and 'logprobs'")
    if tokens and document.get("temperature", 0):
        raise HttpRefusal(400, "'temperature' has to be 0 beside 'echo' and 'logprobs'")
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(map(_is_token, prompt))):
        prompt = [prompt]
    if not isinstance(prompt, list) or not 0 < len(prompt) <= PROMPTS_LIMIT or not all(map(_is_prompt, prompt)):
        raise HttpRefusal(400, f"'prompt' has to be text or tokens, or a list of up to {PROMPTS_LIMIT} of either")
    return _Asked(prompt, top, tokens == 1)


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _is_prompt(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(map(_is_token, value)))


def _document(name: str, answers: list[ScoredPrompt], top: int) -> dict[str, Any]:
    """OpenAI's form of completions (the legacy API), with prompts echoed."""
    choices = []
    for index, answer in enumerate(answers):
        offsets = [sum(map(len, answer.pieces[:place])) for place in range(len(answer.pieces))]
        logprobs = {
            "tokens": answer.pieces,
            "token_logprobs": [None if score is None else _number(score.logprob) for score in answer.scores],
            "top_logprobs": [
                None if each is None else {text: _number(value) for text, value in each.items()}
                for each in answer.top_pieces
            ],
            "text_offset": offsets,
        }
        text = "".join(answer.pieces)
        choices.append({"index": index, "text": text, "logprobs": logprobs, "finish_reason": "length"})
    read, told = sum(each.prompt_tokens for each in answers), sum(len(each.pieces) for each in answers)
    usage = {"prompt_tokens": read, "completion_tokens": told - read, "total_tokens": told}
    identity = {"id": f"cmpl-{time.time_ns():x}", "object": "text_completion", "created": int(time.time())}
    return {**identity, "model": name, "choices": choices, "usage": usage}


def _number(logprob: float) -> float:
    """JSON has no infinity; no token that can be chosen has so little."""
    return max(logprob, -9999.0)
