"""A small client for OpenAI-compatible servers: llama-server, and the others that speak the same.

Nothing that a server answers is believed: sizes are bounded, fields are checked, and everything that goes wrong is a
`EndpointError` that names the address and its kind.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dfqs.errors import EndpointError, EndpointFault, UsageError, printable
from dfqs.runtime.requests import Message
from dfqs.serving.exchange import Bounds, Exchange, Response, parse_address
from dfqs.serving.refusals import is_context_refusal, read_refusal
from dfqs.storage.closing import Closing

RESPONSE_LIMIT_BYTES = 64 << 20
"""Of one answer with everything around it; a token of a stream takes some 200 bytes."""
DOCUMENT_LIMIT_BYTES = 8 << 20
"""Of one JSON text, and of one line of a stream; parsed it takes some 20 times as much memory."""
REFUSAL_LIMIT_BYTES = 64 << 10
DEFAULT_TIMEOUT_S = 600.0
"""Between two pieces of an answer; a long prompt on a small machine takes minutes."""
ANSWER_TIME_LIMIT_S = 3600.0
"""Of a whole answer, silence included."""
PLAIN_TIME_LIMIT_S = 60.0
"""Of a request that computes nothing."""
_EXACT = 2**53
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token and how likely it was."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest alternatives, if they were asked for."""


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer. What the server did not say is None."""

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    logprobs: tuple[TokenLogprob, ...] | None
    wall_s: float
    first_text_s: float | None
    """Until the first piece of text, when streamed."""
    reasoning: str = ""
    """What the server gave apart from the text as the model's thoughts (`reasoning_content`, `reasoning`)."""


class Client(Closing):
    """For use in a `with` block.

    Args:
        url: `http://host:port`, with or without `/v1` at its end.
        timeout_s: longest silence while an answer comes.
        answer_s: longest that a whole answer may take.

    Raises:
        UsageError: not an http(s) address, or a key that no header can carry.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        answer_s: float = ANSWER_TIME_LIMIT_S,
    ) -> None:
        address = parse_address(url)
        if api_key and not _KEY.fullmatch(api_key):
            raise UsageError("the API key has a space, a line break or another character that no key has")
        self.url = address.shown
        self._timeout_s = timeout_s
        self._answer_s = answer_s
        self._exchange = Exchange(address, {"Authorization": f"Bearer {api_key}"} if api_key else {})

    def check_health(self) -> None:
        """
        Raises:
            EndpointError: the server does not answer, or is not ready.
        """
        status, body = self._request("GET", "/health")
        if status == 404:
            # Not llama-server; a list of models is what every such server has.
            self.models()
        elif status >= 400:
            raise self._refusal(status, body)

    def models(self) -> tuple[str, ...]:
        """Names of the models served."""
        document = self._json("GET", "/v1/models")
        entries = document.get("data")
        if not isinstance(entries, list):
            raise self._strange("/v1/models has no list 'data'")
        return tuple(str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry)

    def context_tokens(self) -> int | None:
        """How long a request's context may be; None where the server does not say (only llama-server does).

        Raises:
            EndpointError: it does not answer.
        """
        try:
            document = self._json("GET", "/props")
        except EndpointError as error:
            if error.fault is not EndpointFault.REFUSED:
                raise
            return None
        settings = document.get("default_generation_settings")
        found = settings.get("n_ctx") if isinstance(settings, dict) else None
        return found if isinstance(found, int) and not isinstance(found, bool) and 0 < found < _EXACT else None

    def chat(
        self,
        messages: Sequence[Message],
        *,
        model: str = "",
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int | None = None,
        top_logprobs: int | None = None,
        on_text: Callable[[str], None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Completion:
        """Answer a conversation.

        Args:
            model: name, where the server has several.
            top_logprobs: ask for each token's log-probability and those of so many alternatives.
            on_text: ask for a stream, and take its pieces.
            extra: further fields of the request (`chat_template_kwargs`).

        Raises:
            EndpointError: no answer, or not one of this kind.
        """
        request: dict[str, Any] = {
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            **({"model": model} if model else {}),
            **({"top_p": top_p} if top_p is not None else {}),
            **({"seed": seed} if seed is not None else {}),
            **({"logprobs": True, "top_logprobs": top_logprobs} if top_logprobs is not None else {}),
            **(extra or {}),
        }
        started = time.perf_counter()
        if on_text is not None:
            return self._stream_chat(request, on_text, started)
        document = self._json("POST", "/v1/chat/completions", request, self._answer_s)
        choice = self._choice(document)
        message = choice.get("message")
        if not isinstance(message, dict):
            raise self._strange("an answer without a message")
        return Completion(
            text=_text(message.get("content")) or "",
            finish_reason=_text(choice.get("finish_reason")),
            prompt_tokens=_usage(document, "prompt_tokens"),
            completion_tokens=_usage(document, "completion_tokens"),
            logprobs=self._logprobs(choice.get("logprobs")),
            wall_s=time.perf_counter() - started,
            first_text_s=None,
            reasoning=_reasoning(message),
        )

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int] | None:
        """Tokens of `text`, or None where the server does not offer that (only llama-server does)."""
        request = {"content": text, "add_special": add_special}
        status, body = self._request("POST", "/tokenize", request, self._answer_s)
        if status in (404, 405):
            return None
        if status >= 400:
            raise self._refusal(status, body)
        tokens = self._parse(body).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise self._strange("/tokenize gave no tokens")
        return tokens

    def close(self) -> None:
        """Nothing is open between two requests."""

    def _stream_chat(self, request: dict[str, Any], on_text: Callable[[str], None], started: float) -> Completion:
        text: list[str] = []
        thoughts: list[str] = []
        logprobs: list[TokenLogprob] = []
        finish: str | None = None
        usage: dict[str, Any] = {}
        first_text_s: float | None = None
        request = {**request, "stream": True, "stream_options": {"include_usage": True}}
        for event in self._events("/v1/chat/completions", request):
            usage = event if isinstance(event.get("usage"), dict) else usage
            choices = event.get("choices")
            if not isinstance(choices, list) or not choices:
                continue
            choice = self._choice(event)
            finish = _text(choice.get("finish_reason")) or finish
            if "logprobs" in request:
                logprobs.extend(self._logprobs(choice.get("logprobs")) or ())
            delta = choice.get("delta")
            thoughts.append(_reasoning(delta))
            piece = delta.get("content") if isinstance(delta, dict) else None
            if isinstance(piece, str) and piece:
                first_text_s = first_text_s or time.perf_counter() - started
                text.append(piece)
                on_text(piece)
        return Completion(
            text="".join(text),
            finish_reason=finish,
            prompt_tokens=_usage(usage, "prompt_tokens"),
            completion_tokens=_usage(usage, "completion_tokens"),
            logprobs=tuple(logprobs) or None,
            wall_s=time.perf_counter() - started,
            first_text_s=first_text_s,
            reasoning="".join(thoughts),
        )

    def _events(self, path: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._exchange.request("POST", path, _encoded(request), self._bounds(self._answer_s)) as response:
            if response.status >= 400:
                raise self._refusal(response.status, response.read(REFUSAL_LIMIT_BYTES), response)
            for line in self._lines(response.pieces):
                data = line.removeprefix(b"data:").strip()
                if line.startswith(b"data:") and data != b"[DONE]":
                    event = self._parse(data)
                    if event.get("error") is not None:
                        raise self._refusal(response.status, data, response)
                    yield event

    def _lines(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Lines as they come, without their ends; each byte is looked at once."""
        waiting = bytearray()
        for piece in pieces:
            start = 0
            while (end := piece.find(b"\n", start)) >= 0:
                waiting += piece[start:end]
                yield bytes(waiting).rstrip(b"\r")
                waiting.clear()
                start = end + 1
            waiting += piece[start:]
            if len(waiting) > DOCUMENT_LIMIT_BYTES:
                raise self._strange("a line without end", EndpointFault.TOO_LARGE)
        yield bytes(waiting)

    def _json(self, method: str, path: str, body: Any = None, wall_s: float = PLAIN_TIME_LIMIT_S) -> dict[str, Any]:
        status, data = self._request(method, path, body, wall_s)
        if status >= 400:
            raise self._refusal(status, data)
        return self._parse(data)

    def _request(
        self, method: str, path: str, body: Any = None, wall_s: float = PLAIN_TIME_LIMIT_S
    ) -> tuple[int, bytes]:
        content = _encoded(body) if body is not None else None
        with self._exchange.request(method, path, content, self._bounds(wall_s)) as response:
            data = response.read(DOCUMENT_LIMIT_BYTES)
            if len(data) > DOCUMENT_LIMIT_BYTES:
                raise self._strange("an answer without end", EndpointFault.TOO_LARGE)
            return response.status, data

    def _bounds(self, wall_s: float) -> Bounds:
        return Bounds(min(wall_s, self._answer_s), self._timeout_s, RESPONSE_LIMIT_BYTES)

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            document = json.loads(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            raise self._strange("not JSON") from None
        if not isinstance(document, dict):
            raise self._strange("not a JSON object")
        return document

    def _choice(self, document: dict[str, Any]) -> dict[str, Any]:
        choices = document.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._strange("an answer without choices")
        return choices[0]

    def _logprobs(self, value: Any) -> tuple[TokenLogprob, ...] | None:
        entries = value.get("content") if isinstance(value, dict) else None
        if not isinstance(entries, list):
            return None
        try:
            return tuple(
                TokenLogprob(
                    text=str(entry["token"]),
                    logprob=float(entry["logprob"]),
                    top=tuple((str(top["token"]), float(top["logprob"])) for top in entry.get("top_logprobs") or ()),
                )
                for entry in entries
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._strange("log-probabilities of an unknown form") from None

    def _refusal(self, status: int, body: bytes, response: Response | None = None) -> EndpointError:
        refusal = read_refusal(status, body)
        fault = EndpointFault.CONTEXT_EXCEEDED if is_context_refusal(refusal) else EndpointFault.REFUSED
        message = f"{self.url} refused (HTTP {refusal.status}): {printable(refusal.message.strip(), 300)}"
        wait_s = response.retry_after_s if response is not None else None
        return EndpointError(message, fault, wait_s, refusal.status)

    def _strange(self, what: str, fault: EndpointFault = EndpointFault.UNUSABLE) -> EndpointError:
        return EndpointError(f"{self.url} does not answer like an OpenAI-compatible server: {what}", fault)


def _encoded(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=True, allow_nan=False).encode()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _reasoning(message: Any) -> str:
    """The thoughts in a message or in a piece of one, under the names that servers give them."""
    if not isinstance(message, dict):
        return ""
    return _text(message.get("reasoning_content")) or _text(message.get("reasoning")) or ""


def _usage(document: dict[str, Any], key: str) -> int | None:
    usage = document.get("usage")
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _EXACT else None
