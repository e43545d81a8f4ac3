"""GGUF files in inspect_ai: `inspect eval TASK.py --model dfqs/FILE.gguf`.

Needs the extra `dfqs[inspect]` (inspect_ai 0.3.285), which finds this module by its entry point and with it the
provider; every task, solver and scorer is its own, `inspect eval-retry` goes on with what was answered, and `--cache`
keeps answers. Model arguments (`-M threads=2`): see `open_session`. Interface: `inspect_ai.model.ModelAPI`.

Greedy text of one worker process, one request at a time, the likeliest tokens where log-probabilities are asked for,
and the likelihood of the prompt (`prompt_logprobs`). What would change an answer and is not done is refused.
"""

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    TopLogprob,
    modelapi,
)
from inspect_ai.tool import ToolCall, ToolChoice, ToolInfo

from dfqs.errors import UsageError
from dfqs.evaluate.harnesses.loading import open_session
from dfqs.evaluate.likelihood import Continuation, GenerationRequest, TokenScore, Written
from dfqs.evaluate.thoughts import split_output
from dfqs.evaluate.tools import find_calls
from dfqs.runtime.template import observe_thinking

NAME = "dfqs"
MAX_TOKENS = 2048
"""Of an answer where a task says nothing, as inspect_ai has it for other local models; less where less fits."""
TOP_LIMIT = 20
"""Of likeliest tokens told, inspect_ai's own limit."""
LOWEST = -9999.0
"""JSON has no infinity; no token that can be chosen has so little."""
_NOT_DONE = ("best_of", "frequency_penalty", "presence_penalty", "logit_bias", "response_schema")
_STOP_REASONS: dict[str, StopReason] = {"stop": "stop", "length": "max_tokens", "context": "model_length"}


class _Left(Exception):
    """Nobody waits for the answer any more."""


@modelapi(name=NAME)
class DfqsAPI(ModelAPI):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """A GGUF file in a worker process."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        **options: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self.session = open_session(model_name, **options)
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the worker."""
        self.session.__exit__(None, None, None)

    def canonical_name(self) -> str:
        """The file's name: directories differ between machines."""
        return Path(self.model_name).name

    def max_connections(self) -> int:
        """Requests at once."""
        return 1

    def connection_key(self) -> str:
        """What shares its place in the queue."""
        return str(self.model_name)

    def max_tokens(self) -> int | None:
        """Of an answer where a task says nothing: none here, for it depends on the room behind the prompt."""
        return None

    async def tokenize(self, text: str) -> list[int]:
        """Tokens of a text by itself."""
        (tokens,) = await anyio.to_thread.run_sync(lambda: self.session.tokenize([text]))
        return list(tokens)

    async def count_text_tokens(self, text: str) -> int:
        """Of a text by itself."""
        return len(await self.tokenize(text))

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation greedily.

        Raises:
            UsageError: something is asked for that is not done.
        """
        offered = _check(tools, tool_choice, config)
        left = threading.Event()

        def answer() -> Any:
            # Threads wait here, and not in the worker: it takes one call at a time.
            with self._lock:
                return self._answer(input, offered, config, left)

        try:
            return await anyio.to_thread.run_sync(answer, abandon_on_cancel=True)
        finally:
            left.set()

    def _answer(
        self, input: Sequence[ChatMessage], tools: Sequence[ToolInfo], config: GenerateConfig, left: threading.Event
    ) -> ModelOutput:
        def check() -> None:
            if left.is_set():
                raise _Left

        check()
        started = time.perf_counter()
        messages = [_message(each) for each in input]
        prompt = self._render(messages, tools, config)
        (tokens,) = self.session.tokenize([prompt], add_special=True)
        room = self.session.opened.limit_tokens - len(tokens)
        if room < 1:
            fault = f"the prompt has {len(tokens):,} tokens and {self.session.opened.limit_tokens:,} fit (-M context=N)"
            return ModelOutput.from_content(self.model_name, fault, stop_reason="model_length")
        wanted = config.max_tokens or MAX_TOKENS
        top = min(config.top_logprobs or 0, TOP_LIMIT) if config.logprobs else 0
        asked = GenerationRequest(tuple(tokens), min(wanted, room), tuple(filter(None, config.stop_seqs or ())), top)
        (written,) = self.session.generate([asked], on_token=check)
        said = str(messages[-1]["content"]) if messages else ""
        begun = observe_thinking(prompt.rpartition(said)[2] if said else prompt) == "open"
        choice = ChatCompletionChoice(
            message=_assistant(written, begun, tools, self.model_name),
            stop_reason=_stop_reason(written, wanted),
            logprobs=self._logprobs(written.tokens, top) if config.logprobs else None,
            prompt_logprobs=self._prompt_logprobs(tokens, config.prompt_logprobs) if config.prompt_logprobs else None,
        )
        if choice.message.tool_calls:
            choice.stop_reason = "tool_calls"
        output = len(written.tokens)
        return ModelOutput(
            model=self.model_name,
            choices=[choice],
            usage=ModelUsage(input_tokens=len(tokens), output_tokens=output, total_tokens=len(tokens) + output),
            time=time.perf_counter() - started,
        )

    def _render(self, messages: list[dict[str, Any]], tools: Sequence[ToolInfo], config: GenerateConfig) -> str:
        if self.session.opened.chat_template is None:
            if tools:
                raise UsageError("the model has no chat template, and tools are offered by one")
            return "\n\n".join(str(message["content"]) for message in messages) + "\n"
        return self.session.render_chat(
            messages,
            tools=[tool.model_dump(include={"name", "description", "parameters"}, exclude_none=True) for tool in tools],
            thinking=config.reasoning_effort != "none",
        )

    def _logprobs(self, scores: Sequence[TokenScore], top: int) -> Logprobs:
        ids = dict.fromkeys(token for score in scores for token in (score.token, *(other for other, _ in score.top)))
        pieces = dict(zip(ids, self.session.pieces(list(ids)), strict=True))

        def told(kind: type[Any], token: int, logprob: float, **more: Any) -> Any:
            text = pieces[token].decode("utf-8", "replace")
            value = logprob if math.isfinite(logprob) else LOWEST
            return kind(token=text, logprob=value, bytes=list(pieces[token]), **more)

        return Logprobs(
            content=[
                told(
                    Logprob,
                    score.token,
                    score.logprob,
                    top_logprobs=[told(TopLogprob, *each) for each in score.top] if top else None,
                )
                for score in scores
            ]
        )

    def _prompt_logprobs(self, tokens: Sequence[int], top: int) -> Logprobs | None:
        """Of each token of the prompt but the first, which nothing predicts."""
        if len(tokens) < 2:
            return None
        asked = Continuation(tuple(tokens[:1]), tuple(tokens[1:]))
        (score,) = self.session.score_tokens([asked], top=top if top > 1 else 0)
        return self._logprobs(score.tokens, top if top > 1 else 0)


def _check(tools: Sequence[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig) -> Sequence[ToolInfo]:
    """The tools that are offered.

    Raises:
        UsageError: something is asked for that is not done, and would change the answer.
    """
    if config.temperature:
        raise UsageError("only greedy text is written: temperature has to be 0 or left out")
    if (config.num_choices or 1) != 1:
        raise UsageError("one answer a request: num_choices has to be 1")
    for name in _NOT_DONE:
        if getattr(config, name, None):
            raise UsageError(f"{name} is not possible with {NAME}")
    if tool_choice == "none":
        return []
    if tools and tool_choice != "auto":
        raise UsageError("a model can be offered tools and not be made to call one: tool_choice has to be auto or none")
    return tools


def _message(message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates know it.

    Raises:
        UsageError: it has pictures, sound or files.
    """
    others = sorted({part.type for part in message.content_list} - {"text", "reasoning"})
    if others:
        raise UsageError(f"only text can be read, and a message has {', '.join(others)}")
    found: dict[str, Any] = {"role": message.role, "content": message.text}
    thoughts = "\n".join(part.reasoning for part in message.content_list if part.type == "reasoning")
    if thoughts:
        found["reasoning_content"] = thoughts
    if message.role == "assistant" and message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.function, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        found |= {"name": message.function, "tool_call_id": message.tool_call_id}
        if message.error is not None:
            found["content"] = f"Error: {message.error.message}"
    return found


def _assistant(written: Written, begun: bool, tools: Sequence[ToolInfo], name: str) -> ChatMessageAssistant:
    thoughts, text = split_output(written.text, begun)
    calls = list(_calls(text, tools)) if tools else []
    content: Any = [ContentReasoning(reasoning=thoughts), ContentText(text=text)] if thoughts else text
    return ChatMessageAssistant(content=content, tool_calls=calls or None, model=name, source="generate")


def _calls(text: str, tools: Sequence[ToolInfo]) -> Iterator[ToolCall]:
    for number, call in enumerate(find_calls(text, {tool.name for tool in tools}), 1):
        arguments = call["arguments"]
        fault = None
        if not isinstance(arguments, dict):
            fault = f"arguments have to be a JSON object, and are {json.dumps(arguments)[:200]}"
        # Unique in a conversation: what is answered later has another text before it.
        yield ToolCall(
            id=f"call_{number}_{time.time_ns():x}",
            function=call["name"],
            arguments=arguments if fault is None else {},
            parse_error=fault,
        )


def _stop_reason(written: Written, wanted: int) -> StopReason:
    """An answer that was given less room than was asked for ended with the context."""
    if written.finish_reason == "length" and len(written.tokens) < wanted:
        return "model_length"
    return _STOP_REASONS.get(written.finish_reason, "unknown")
