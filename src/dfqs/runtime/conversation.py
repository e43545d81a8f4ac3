"""Generating text inside a worker: prefill what the cache does not hold, then token by token."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.runtime.answer_text import AnswerText
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.context import Context, Model
from dfqs.runtime.loading import LoadOrder, StreamFigures
from dfqs.runtime.requests import (
    Answer,
    ContextFull,
    ContextSettings,
    Message,
    Prompt,
    ReadSoFar,
    Sampling,
    SessionInfo,
)
from dfqs.runtime.sampling import Sampler
from dfqs.runtime.stop import Stopped
from dfqs.runtime.thinking import ThoughtBudget
from dfqs.runtime.worker_context import WorkerContext


def _ignore_reading(_: ReadSoFar) -> None:
    """Nobody waits."""


class Conversation:
    """One conversation on one context. Remembers which tokens the cache holds, so that a longer version of the same
    conversation costs only its new part."""

    def __init__(self, model: Model, context: Context) -> None:
        self.model = model
        self.context = context
        self._cached: list[int] = []

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling,
        on_text: Callable[[str], None],
        least_tokens: int = 1,
        on_read: Callable[[ReadSoFar], None] = _ignore_reading,
    ) -> Answer:
        """Continue plain text, or answer a conversation; a stop request ends it early (`interrupted`).

        Args:
            on_text: called with pieces of the text as they come, whole characters only.
            least_tokens: that the context must have left for the answer.
            on_read: called before each piece of the prompt, and once all of it is read.

        Raises:
            ContextFull: the prompt does not fit the context.
        """
        tokens, budget = self._read(prompt, sampling)
        room = self._room_behind(tokens, least_tokens)
        text = AnswerText(sampling.stop, on_text)
        generated = 0
        most = min(sampling.max_tokens, room)
        finish = "length" if sampling.max_tokens <= room else "context"
        reused = 0
        started = prefilled = time.perf_counter()
        with Sampler(self.model, sampling) as sampler:
            try:
                reused = self._prefill(tokens, on_read)
                prefilled = time.perf_counter()
                while True:
                    token = sampler.sample(self.context)
                    generated += 1
                    if self.model.is_end(token):
                        finish = "stop"
                        break
                    said = [token, *self._ending_of_thought(budget, token, most - generated)]
                    generated += len(said) - 1
                    if not all(text.add(self.model.piece(one, special=False)) for one in said):
                        finish = "stop"
                        break
                    if generated == most:
                        break
                    self.context.decode(said, len(self._cached))
                    self._cached.extend(said)
                ended = time.perf_counter()
            except Stopped:
                ended = time.perf_counter()
                finish = "interrupted"
                self._cached = self._cached[: self.context.end_position()]
        text.finish()
        return Answer(
            text=text.text,
            finish_reason=finish,
            prompt_tokens=len(tokens),
            reused_tokens=reused,
            generated_tokens=generated,
            prompt_s=prefilled - started,
            decode_s=ended - prefilled,
        )

    def _room_behind(self, tokens: Sequence[int], least_tokens: int) -> int:
        """Tokens that the context has left for an answer."""
        room = self.context.n_ctx_sequence - len(tokens)
        if room < least_tokens:
            raise ContextFull(
                f"the prompt has {len(tokens):,} tokens and the context {self.context.n_ctx_sequence:,}; "
                "shorten it, or raise the context length (--ctx)"
            )
        return room

    def _read(self, prompt: Prompt, sampling: Sampling) -> tuple[list[int], ThoughtBudget | None]:
        """Tokens of the prompt, and what watches the answer's thought."""
        rendered = prompt if isinstance(prompt, str) else self._render(prompt, sampling.thinking)
        tokens = self.model.tokenize(prompt) if isinstance(prompt, str) else self.model.tokenize_chat(rendered)
        if not tokens:
            raise UsageError("the prompt is empty")
        if sampling.thinking_tokens is None:
            return tokens, None
        last = "" if isinstance(prompt, str) or not prompt else prompt[-1]["content"].strip()
        return tokens, ThoughtBudget(sampling.thinking_tokens, rendered.rpartition(last)[2] if last else "")

    def _render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        if thinking is None:
            return self.model.apply_chat_template(messages)
        rendered, other = (
            self.model.apply_chat_template(messages, enable_thinking=asked) for asked in (thinking, not thinking)
        )
        if rendered == other:
            raise UsageError("the model's chat template has no switch for thinking; leave out --thinking")
        return rendered

    def _ending_of_thought(self, budget: ThoughtBudget | None, token: int, room: int) -> list[int]:
        """Tokens that end the thought, where the model's last one was the last that it may take, as far as they fit."""
        if budget is None:
            return []
        ending = budget.add(self.model.piece(token, special=True).decode("utf-8", "replace"))
        return [] if ending is None else self.model.tokenize(ending, add_special=False, parse_special=True)[:room]

    def _prefill(self, tokens: Sequence[int], on_read: Callable[[ReadSoFar], None]) -> int:
        """Bring the cache to exactly `tokens`; returns how many of them it held already."""
        shared = self._roll_back_to(tokens)
        del self._cached[shared:]
        # In the pieces that llama.cpp cuts a batch into anyway: in between it is told how far this is.
        for start in range(shared, len(tokens), self.context.n_ubatch):
            on_read(ReadSoFar(start, len(tokens)))
            chunk = tokens[start : start + self.context.n_ubatch]
            self.context.decode(chunk, start)
            self._cached.extend(chunk)
        on_read(ReadSoFar(len(tokens), len(tokens)))
        return shared

    def _roll_back_to(self, tokens: Sequence[int]) -> int:
        """Cut the cache down to the beginning it shares with `tokens`, less one: the last gives the logits."""
        shared = 0
        limit = min(len(tokens) - 1, len(self._cached))
        while shared < limit and tokens[shared] == self._cached[shared]:
            shared += 1
        if shared == self.context.end_position():
            return shared
        # Some caches (sliding windows, recurrent states, compressed attention) cannot forget just an end.
        if shared == 0 or not self.context.remove_sequence(0, shared):
            self.context.clear()
            return 0
        return shared


def open_conversation(worker: WorkerContext, path: Path, settings: ContextSettings, order: LoadOrder) -> SessionInfo:
    """Load a model and make a context for the calls of `answer` that follow. Emits `(done, total)` while loading."""
    started = time.perf_counter()
    loaded = order.load(worker.library, path, lambda done, total=None, note="": worker.emit((done, total)))
    model = loaded.model
    context = Context(model, threads=worker.threads, **asdict(settings))
    worker.state["conversation"] = Conversation(model, context)
    worker.state["figures"] = loaded.figures
    return SessionInfo(
        runtime=runtime_name(),
        context_tokens=context.n_ctx,
        threads=context.threads,
        omp_wait_policy=worker.library.omp_wait_policy,
        settings=settings,
        chat_template=model.chat_template() is not None,
        load_s=time.perf_counter() - started,
        notices=tuple(context.notices),
        given_template_sha256=model.given_template.sha256 if model.given_template is not None else None,
    )


def answer(worker: WorkerContext, prompt: Prompt, sampling: Sampling, least_tokens: int = 1) -> Answer:
    """Answer in the conversation opened before. Emits `ReadSoFar` while the prompt is read, then pieces of text."""
    conversation: Conversation = worker.state["conversation"]
    return conversation.answer(prompt, sampling, worker.emit, least_tokens, worker.emit)


def read_figures(worker: WorkerContext) -> StreamFigures | None:
    """What streaming did in the conversation opened before; None where the model is in memory."""
    figures: Callable[[], StreamFigures] | None = worker.state["figures"]
    return figures() if figures is not None else None
