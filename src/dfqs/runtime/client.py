"""A small client for OpenAI-compatible servers: llama-server, and the others that speak the same.

Nothing that a server answers is believed: sizes are bounded, fields are checked, and everything that goes wrong is a
`NetworkError` that names the address.
"""

import ipaddress
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from dfqs.errors import NetworkError, UsageError, printable
from dfqs.runtime.requests import Message

RESPONSE_LIMIT_BYTES = 64 << 20
CONNECT_TIMEOUT_S = 10.0
DEFAULT_TIMEOUT_S = 600.0
"""Between two pieces of an answer; a long prompt on a small machine takes minutes."""


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


class Client:
    """For use in a `with` block.

    Args:
        url: `http://host:port`, with or without `/v1` at its end.
        timeout_s: longest silence while an answer comes.

    Raises:
        UsageError: not an http(s) address.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"'{printable(url)}' is no address; write it like http://127.0.0.1:8080")
        # Without name and password: it is shown in messages, and stored in reports.
        bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self.url = bare.rstrip("/").removesuffix("/v1")
        self._client = httpx.Client(
            auth=(unquote(parts.username), unquote(parts.password or "")) if parts.username else None,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            # A proxy from the environment has no business between us and this machine.
            trust_env=not _is_local(parts.hostname),
        )

    def check_health(self) -> None:
        """
        Raises:
            NetworkError: the server does not answer, or is not ready.
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
            NetworkError: no answer, or not one of this kind.
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
        document = self._json("POST", "/v1/chat/completions", request)
        choice = self._choice(document)
        message = choice.get("message")
        if not isinstance(message, dict):
            raise self._strange("an answer without a message")
        return Completion(
            text=str(message.get("content") or ""),
            finish_reason=_text(choice.get("finish_reason")),
            prompt_tokens=_usage(document, "prompt_tokens"),
            completion_tokens=_usage(document, "completion_tokens"),
            logprobs=self._logprobs(choice.get("logprobs")),
            wall_s=time.perf_counter() - started,
            first_text_s=None,
        )

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int] | None:
        """Tokens of `text`, or None where the server does not offer that (only llama-server does)."""
        status, body = self._request("POST", "/tokenize", {"content": text, "add_special": add_special})
        if status in (404, 405):
            return None
        if status >= 400:
            raise self._refusal(status, body)
        tokens = self._parse(body).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise self._strange("/tokenize gave no tokens")
        return tokens

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream_chat(self, request: dict[str, Any], on_text: Callable[[str], None], started: float) -> Completion:
        text: list[str] = []
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
            logprobs.extend(self._logprobs(choice.get("logprobs")) or ())
            delta = choice.get("delta")
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
        )

    def _events(self, path: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        received = 0
        try:
            with self._client.stream("POST", self.url + path, json=request) as response:
                if response.status_code >= 400:
                    raise self._refusal(response.status_code, self._read(response))
                for line in response.iter_lines():
                    received += len(line)
                    if received > RESPONSE_LIMIT_BYTES:
                        raise self._strange("an answer without end")
                    data = line.removeprefix("data:").strip()
                    if line.startswith("data:") and data != "[DONE]":
                        event = self._parse(data.encode())
                        if "error" in event:
                            raise self._refusal(200, data.encode())
                        yield event
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _json(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        status, data = self._request(method, path, body)
        if status >= 400:
            raise self._refusal(status, data)
        return self._parse(data)

    def _request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        try:
            with self._client.stream(method, self.url + path, json=body) as response:
                return response.status_code, self._read(response)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _read(self, response: httpx.Response) -> bytes:
        data = bytearray()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > RESPONSE_LIMIT_BYTES:
                raise self._strange("an answer without end")
        return bytes(data)

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            document = json.loads(data)
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

    def _refusal(self, status: int, body: bytes) -> NetworkError:
        try:
            said = json.loads(body)["error"]
            message = str(said["message"] if isinstance(said, dict) else said)
        except (ValueError, KeyError, TypeError, RecursionError):
            message = body[:200].decode("utf-8", "replace")
        return NetworkError(f"{self.url} refused (HTTP {status}): {printable(message.strip(), 300)}")

    def _strange(self, what: str) -> NetworkError:
        return NetworkError(f"{self.url} does not answer like an OpenAI-compatible server: {what}")

    def _unreachable(self, error: httpx.HTTPError) -> NetworkError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return NetworkError(f"nothing answers at {self.url}; is the server running?")
        if isinstance(error, httpx.TimeoutException):
            return NetworkError(f"{self.url} fell silent in the middle of a request")
        return NetworkError(f"{self.url} broke off: {printable(str(error) or type(error).__name__, 200)}")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _usage(document: dict[str, Any], key: str) -> int | None:
    usage = document.get("usage")
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
