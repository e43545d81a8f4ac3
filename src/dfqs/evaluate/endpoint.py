"""An OpenAI-compatible server as something to evaluate. Nothing that it answers is believed without a look."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from dfqs.errors import EndpointError, EndpointFault, UsageError, printable
from dfqs.evaluate.answerer import Answered, AnswererInfo, Asking, DocumentSize, LengthFailure, LengthFault
from dfqs.evaluate.context import GrowingDocument, fitting_lines
from dfqs.evaluate.scores import Completion
from dfqs.evaluate.thoughts import split_thinking
from dfqs.evaluate.tool_offers import Tool
from dfqs.progress import Progress, Tell, no_progress, untold
from dfqs.serving.client import Client
from dfqs.units import format_duration

CHARACTERS_PER_TOKEN = 24
"""No tokenizer's average token is longer; an answer longer than the cap times this ignores the cap."""
ANSWER_TIME_LIMIT_S = 3600.0
"""Of one answer from the first byte sent to the last received."""
RETRY_WAITS_S = (0.5, 1.0, 2.0)
"""Before an answer that did not come is asked for again."""
LONGEST_WAIT_S = 30.0
"""Even when a server asks for more."""
NEVER_OTHERWISE = frozenset({401, 402, 403, 404, 405, 406, 410, 415, 421, 422, 501, 505})
"""Statuses that the same request gets again: it is not asked for a second time."""
SELDOM_OTHERWISE = frozenset({400, 500})
"""A fault of the request or of the server, which some servers also answer while they are busy: once more."""
FINISH_REASONS = {
    "stop": "stop",
    "length": "length",
    # Text Generation Inference's words for the same.
    "eos_token": "stop",
    "stop_sequence": "stop",
}
"""A server's word -> the field's; any other is no complete answer."""
ASKED_AGAIN = frozenset(
    {EndpointFault.UNREACHABLE, EndpointFault.BROKEN, EndpointFault.UNUSABLE, EndpointFault.REFUSED}
)
"""What can be otherwise a second later. What took all of its time or bytes is left to the next run."""
FRAME_TOKENS = 64
"""Assumed for a template that cannot be seen."""
_SAMPLE_LINES = 64


class EndpointAnswerer:
    """For use in a `with` block.

    Args:
        model: its name, where the server has several.
        tell: called when an answer did not come, with what came instead and when it goes on.

    Raises:
        EndpointError: the server does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        api_key: str | None = None,
        max_context: int,
        thinking_tokens: int | None = None,
        tell: Tell = untold,
    ) -> None:
        # A server that reads thousands of tokens before it answers says nothing meanwhile.
        self._client = Client(url, api_key=api_key, timeout_s=ANSWER_TIME_LIMIT_S, answer_s=ANSWER_TIME_LIMIT_S)
        self._model = model
        self._max_context = max_context
        self._thinking_tokens = thinking_tokens
        self._tell = tell
        self._patient = True
        """Whether waiting may help: not right after a question that was asked in vain to the last time."""
        self._tokens_per_line: float | None = None

    def __enter__(self) -> Self:
        try:
            names = self._client.models()
        except EndpointError as error:
            if error.fault is EndpointFault.UNREACHABLE:
                self._client.close()
                raise
            names = ()
        if names and self._model and self._model not in names:
            self._client.close()
            raise UsageError(f"{self._client.url} serves {printable(', '.join(names[:8]), 400)}, not '{self._model}'")
        self._name = printable(self._model or (names[0] if names else "unnamed"), 200)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @property
    def location(self) -> str:
        return f"{self._client.url} {self._name}"

    @property
    def info(self) -> AnswererInfo:
        return AnswererInfo(
            name=self._name,
            template_sha256=None,
            thinking="server default",
            numerics=None,
            runtime=None,
            context_tokens=self._max_context,
            notices=("an endpoint does not tell its numerics, its template or its machine",),
        )

    def complete(
        self, prompt: str, max_tokens: int, progress: Progress = no_progress, tools: Sequence[Tool] = ()
    ) -> Completion:
        """Answer one user message. What is no answer becomes a completion with `finish_reason` `error`.

        Raises:
            EndpointError: nothing answers at all, before the first answer or after several.
        """
        try:
            return self._answer(prompt, max_tokens, progress)
        except EndpointError as error:
            if error.fault is EndpointFault.UNREACHABLE:
                raise
            return Completion(text=str(error), finish_reason="error")

    def _answer(self, prompt: str, max_tokens: int, progress: Progress) -> Completion:
        """An answer, asked for again after a while where that may help.

        Raises:
            EndpointError: the last attempt's.
        """
        attempt = 0
        while True:
            try:
                completion = self._attempt(prompt, max_tokens, progress)
            except EndpointError as error:
                waits = _waits_after(error) if self._patient else ()
                if attempt >= len(waits):
                    self._give_up(error, attempt)
                    raise
                wait_s = min(max(waits[attempt], error.retry_after_s or 0.0), LONGEST_WAIT_S)
                attempt += 1
                self._tell(f"{error}; asking again in {format_duration(wait_s)} ({attempt} of {len(waits)})")
                time.sleep(wait_s)
            else:
                self._patient = True
                return completion

    def _give_up(self, error: EndpointError, repeats: int) -> None:
        """Say once, until something is answered, how it goes on."""
        # A question can be answered by the next run of the command; a server that is gone ends this one.
        if self._patient and error.fault in ASKED_AGAIN and error.fault is not EndpointFault.UNREACHABLE:
            often = f" after {repeats + 1} attempts" if repeats else ""
            self._tell(f"{error}; no answer{often}: going on, and asking once each until something is answered")
            self._patient = False

    def _attempt(self, prompt: str, max_tokens: int, progress: Progress) -> Completion:
        max_tokens += self._thinking_tokens or 0
        limit = max_tokens * CHARACTERS_PER_TOKEN
        received: list[str] = []
        characters = 0

        def take(piece: str) -> None:
            nonlocal characters
            received.append(piece)
            characters += len(piece)
            # Servers stream a token a piece.
            progress(min(len(received), max_tokens), max_tokens)
            if characters > limit:
                raise _Endless

        try:
            answer = self._client.chat(
                [{"role": "user", "content": prompt}],
                model=self._model,
                max_tokens=max_tokens,
                on_text=take,
                extra={"chat_template_kwargs": {"enable_thinking": True}} if self._thinking_tokens else None,
            )
        except _Endless:
            return Completion(text="".join(received)[:limit], finish_reason="length")
        finish = FINISH_REASONS.get(answer.finish_reason or "")
        if finish is None:
            said = (
                f"finish reason '{printable(answer.finish_reason)}'"
                if answer.finish_reason
                else "it broke off without a finish reason"
            )
            return Completion(text=f"no complete answer: {said}", finish_reason="error")
        if answer.completion_tokens is not None and answer.completion_tokens > max_tokens:
            finish = "length"
        thought, said = split_thinking(answer.text)
        return Completion(
            reasoning="\n".join(part for part in (answer.reasoning, thought) if part),
            text=said,
            finish_reason=finish,
            prompt_tokens=answer.prompt_tokens,
            generated_tokens=answer.completion_tokens,
        )

    def size(self, document: GrowingDocument, length_tokens: int) -> DocumentSize:
        """As near to the length as the server's own token counts allow."""
        if length_tokens > self._max_context:
            message = f"{length_tokens:,} tokens are more than the context that was given for this endpoint"
            raise LengthFailure(message, LengthFault.TRAINED)
        budget = length_tokens - FRAME_TOKENS - 2 * 32
        per_line = self._measure_tokens_per_line(document)
        return DocumentSize(fitting_lines(document, lambda _index, _text: 1, int(budget / per_line)), None)

    def ask(self, asking: Asking, on_answer: Answered, progress: Progress = no_progress) -> None:
        """The whole document with every question; a server that caches prefixes computes it once.

        Raises:
            LengthFailure: the server refuses the length, or cuts the document.
        """
        text = asking.document.text(asking.lines)
        for index, question in enumerate(asking.questions):
            try:
                answer = self._answer(f"{text}\n\n{question.text}", asking.max_tokens, no_progress)
            except EndpointError as error:
                if error.fault is EndpointFault.CONTEXT_EXCEEDED:
                    raise LengthFailure(str(error), LengthFault.REFUSED) from None
                if error.fault is EndpointFault.UNREACHABLE:
                    raise
                answer = Completion(text=str(error), finish_reason="error")
            # Each line has more than five tokens in any tokenizer: fewer in all means that the prompt was cut.
            if answer.prompt_tokens is not None and answer.prompt_tokens < 5 * asking.lines:
                message = f"the server cut the prompt to {answer.prompt_tokens:,} tokens"
                raise LengthFailure(message, LengthFault.TRUNCATED, may_pass=True)
            on_answer(index, answer, None)

    def _measure_tokens_per_line(self, document: GrowingDocument) -> float:
        """From /tokenize where there is one; else from what the server says the lines took; else by characters."""
        if self._tokens_per_line is None:
            self._tokens_per_line = self._count("".join(map(document.line, range(_SAMPLE_LINES)))) / _SAMPLE_LINES
        return self._tokens_per_line

    def _count(self, text: str) -> int:
        try:
            tokens = self._client.tokenize(text)
            if tokens:
                return len(tokens)
        except EndpointError:
            pass
        answer = self.complete(text, 1)
        # Three characters a token is more tokens than tokenizers make of these notes: the length is not overstepped.
        return answer.prompt_tokens or len(text) // 3


def _waits_after(error: EndpointError) -> tuple[float, ...]:
    """Seconds before each further attempt, as long as the answer may be another then."""
    if error.fault not in ASKED_AGAIN or error.status in NEVER_OTHERWISE:
        return ()
    return RETRY_WAITS_S[:1] if error.status in SELDOM_OTHERWISE else RETRY_WAITS_S


class _Endless(Exception):
    """The answer goes on past the cap that was sent with the request."""
