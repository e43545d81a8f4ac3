"""The client for OpenAI-compatible servers believes nothing and names the address in every failure."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dfqs.errors import NetworkError, UsageError
from dfqs.serving import client as client_module
from dfqs.serving.client import Client, TokenLogprob

ANSWER = {
    "choices": [
        {
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Paris."},
            "logprobs": {
                "content": [
                    {"token": "Paris", "logprob": -0.25, "top_logprobs": [{"token": "Lyon", "logprob": -2.5}]},
                    {"token": ".", "logprob": -0.5},
                ]
            },
        }
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": 2},
}
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


class Scripted:
    """A local server that answers `(method, path)` as it was told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                scripted.requests.append((self.path, dict(self.headers), body))
                status, data = scripted.answers.get(self.path, (404, b"nothing here"))
                if status == 0:
                    self.connection.close()
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def say(self, path: str, document: Any, status: int = 200) -> None:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.answers[path] = (status, data)


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.server.shutdown()
    scripted.server.server_close()


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    with Client(server.url + "/v1", api_key="secret", timeout_s=20) as made:
        yield made


def stream_of(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def test_an_answer_is_read_with_usage_reason_and_log_probabilities(server: Scripted, client: Client) -> None:
    server.say("/v1/chat/completions", ANSWER)

    completion = client.chat(MESSAGES, model="m", max_tokens=8, seed=3, top_logprobs=1, extra={"min_p": 0.1})

    assert (completion.text, completion.finish_reason) == ("Paris.", "stop")
    assert (completion.prompt_tokens, completion.completion_tokens) == (12, 2)
    assert completion.logprobs == (TokenLogprob("Paris", -0.25, (("Lyon", -2.5),)), TokenLogprob(".", -0.5))
    _, headers, body = server.requests[-1]
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "messages": MESSAGES,
        "model": "m",
        "max_tokens": 8,
        "temperature": 0.0,
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 1,
        "min_p": 0.1,
    }


def test_what_a_server_does_not_say_is_none_and_not_zero(server: Scripted, client: Client) -> None:
    server.say("/v1/chat/completions", {"choices": [{"message": {"content": None}}], "usage": {"prompt_tokens": True}})

    completion = client.chat(MESSAGES, max_tokens=8)

    assert completion.text == ""
    assert (completion.finish_reason, completion.prompt_tokens, completion.logprobs) == (None, None, None)


def test_a_stream_is_put_together_and_its_usage_comes_last(server: Scripted, client: Client) -> None:
    server.say(
        "/v1/chat/completions",
        stream_of(
            {"choices": [{"delta": {"role": "assistant", "content": None}}]},
            {"choices": [{"delta": {"content": "Par"}}]},
            {"choices": [{"delta": {"content": "is."}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 2}},
        ),
    )
    pieces: list[str] = []

    completion = client.chat(MESSAGES, max_tokens=8, on_text=pieces.append)

    assert pieces == ["Par", "is."]
    assert (completion.text, completion.finish_reason, completion.completion_tokens) == ("Paris.", "stop", 2)
    assert completion.first_text_s is not None


def test_an_error_in_the_middle_of_a_stream_is_an_error(server: Scripted, client: Client) -> None:
    server.say(
        "/v1/chat/completions",
        stream_of({"choices": [{"delta": {"content": "Par"}}]}, {"error": {"message": "out of memory"}}),
    )

    with pytest.raises(NetworkError, match="out of memory"):
        client.chat(MESSAGES, max_tokens=8, on_text=lambda _text: None)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>a proxy's page</html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        ({"choices": []}, "an answer without choices"),
        ({"choices": ["text"]}, "an answer without choices"),
        ({"choices": [{"text": "old style"}]}, "an answer without a message"),
        (
            {"choices": [{"message": {}, "logprobs": {"content": [{"logprob": 1}]}}]},
            "log-probabilities of an unknown form",
        ),
        ({"choices": [{"message": {}, "logprobs": {"content": ["x"]}}]}, "log-probabilities of an unknown form"),
    ],
)
def test_an_answer_of_another_kind_is_refused_with_the_address(
    server: Scripted, client: Client, answer: Any, message: str
) -> None:
    server.say("/v1/chat/completions", answer)

    with pytest.raises(NetworkError, match=f"{server.url} does not answer like an OpenAI-compatible server: {message}"):
        client.chat(MESSAGES, max_tokens=8)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "Invalid API Key \x1b[31m"}}, r"Invalid API Key \\x1b\[31m"),
        ({"error": "plain words"}, "plain words"),
        (b"Bad Gateway", "Bad Gateway"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_carries_the_status_and_the_server_s_words_safe_to_print(
    server: Scripted, client: Client, body: Any, said: str, stream: bool
) -> None:
    server.say("/v1/chat/completions", body, status=401)

    with pytest.raises(NetworkError, match=rf"{server.url} refused \(HTTP 401\): {said}"):
        client.chat(MESSAGES, max_tokens=8, on_text=(lambda _text: None) if stream else None)


@pytest.mark.parametrize("stream", [False, True])
def test_an_endless_answer_does_not_fill_memory(
    server: Scripted, client: Client, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RESPONSE_LIMIT_BYTES", 10_000)
    event = {"choices": [{"delta": {"content": "x" * 100}}]}
    server.say("/v1/chat/completions", stream_of(*[event] * 500))

    with pytest.raises(NetworkError, match="without end"):
        client.chat(MESSAGES, max_tokens=8, on_text=(lambda _text: None) if stream else None)


@pytest.mark.parametrize("ask", [lambda c: c.check_health(), lambda c: c.chat(MESSAGES, max_tokens=1)])
def test_a_connection_that_breaks_off_is_said_so(
    server: Scripted, client: Client, ask: Callable[[Client], Any]
) -> None:
    server.answers = dict.fromkeys(("/health", "/v1/chat/completions"), (0, b""))

    with pytest.raises(NetworkError, match=f"{server.url} broke off"):
        ask(client)


def test_nobody_there_is_said_so(server: Scripted) -> None:
    server.server.shutdown()
    server.server.server_close()

    with (
        Client(server.url) as client,
        pytest.raises(NetworkError, match=r"nothing answers at .*; is the server running\?"),
    ):
        client.check_health()


def test_silence_ends_in_an_error_and_not_in_waiting_for_ever(server: Scripted) -> None:
    release = threading.Event()
    server.say("/v1/chat/completions", ANSWER)
    handler = server.server.RequestHandlerClass
    original = handler.answer  # type: ignore[attr-defined]
    handler.do_POST = lambda self: (release.wait(30), original(self))  # type: ignore[attr-defined]

    with Client(server.url, timeout_s=0.2) as client, pytest.raises(NetworkError, match="fell silent"):
        client.chat(MESSAGES, max_tokens=8)
    release.set()


class TestHealth:
    def test_a_server_that_still_loads_is_not_healthy(self, server: Scripted, client: Client) -> None:
        server.say("/health", {"error": {"message": "Loading model"}}, status=503)

        with pytest.raises(NetworkError, match=r"HTTP 503.*Loading model"):
            client.check_health()

    def test_a_server_without_that_page_is_healthy_when_it_lists_models(self, server: Scripted, client: Client) -> None:
        server.say("/v1/models", {"data": [{"id": "a"}, {"id": "b"}, {"no": "id"}]})

        client.check_health()
        assert client.models() == ("a", "b")


class TestTokenize:
    def test_tokens_come_back_as_numbers(self, server: Scripted, client: Client) -> None:
        server.say("/tokenize", {"tokens": [1, 2, 3]})

        assert client.tokenize("abc") == [1, 2, 3]

    def test_a_server_that_does_not_offer_it_gives_none(self, client: Client) -> None:
        assert client.tokenize("abc") is None

    def test_tokens_that_are_none_are_refused(self, server: Scripted, client: Client) -> None:
        server.say("/tokenize", {"tokens": ["a"]})

        with pytest.raises(NetworkError, match="gave no tokens"):
            client.tokenize("abc")


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host", "http://", "file:///etc/passwd"])
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(UsageError, match="is no address; write it like"):
        Client(url)


def test_a_password_in_the_address_is_used_and_neither_shown_nor_stored(server: Scripted) -> None:
    server.say("/v1/models", {"data": []})
    with Client(server.url.replace("://", "://me:s%40cret@")) as client:
        client.models()

        assert client.url == server.url
    assert server.requests[0][1]["Authorization"] == "Basic bWU6c0BjcmV0"  # me:s@cret
