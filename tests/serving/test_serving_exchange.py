"""One wall clock and one byte count over everything that a server sends, and addresses that nothing stumbles over."""

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dfqs.errors import EndpointError, EndpointFault, UsageError
from dfqs.serving import client as client_module
from dfqs.serving.client import Client
from dfqs.serving.exchange import parse_address
from memory_limits import LIMIT_BYTES, peak_under_limit

MESSAGES = [{"role": "user", "content": "q"}]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
WALL_S = 0.4


@contextmanager
def hostile(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads a request's head and then does what `answer` does, until the client has gone."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(65536)
                    answer(connection)
                    # What was sent arrives before the end only when nothing received is left unread.
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(10)
                    while connection.recv(65536):
                        pass
                except OSError:
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def repeating(head: bytes, piece: bytes, pause_s: float = 0.0) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(pause_s)

    return answer


TRICKLES = {
    "comments": repeating(HEAD, b": still here\n\n", 0.02),
    "empty deltas": repeating(HEAD, b'data: {"choices": [{"delta": {}}]}\n\n', 0.02),
    "thinking only": repeating(HEAD, b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}\n\n', 0.02),
    "a byte of a header at a time": repeating(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.02),
    "header after header": repeating(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.1),
    "a status line at a time": repeating(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02),
    "chunks": repeating(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n:\r\n", 0.02),
    "a refusal that does not end": repeating(b"HTTP/1.1 500 No\r\n\r\n", b"x", 0.02),
    "silence": lambda connection: time.sleep(2 * WALL_S),
}
FLOODS = {
    "a line without end": repeating(HEAD, b"x" * 65536),
    "comments": repeating(HEAD, b": x\n" * 16384),
    "interim answers": repeating(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "early hints": repeating(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 1000),
    "a header without end": repeating(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536),
    "a gzip bomb": lambda connection: connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(64 << 20))
    ),
    "chunk extensions": repeating(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"x" * 65536),
}


@pytest.mark.thorough
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
@pytest.mark.parametrize("name", TRICKLES)
def test_whatever_comes_in_small_pieces_ends_at_the_wall_clock(name: str, stream: bool) -> None:
    with hostile(TRICKLES[name]) as url, Client(url, timeout_s=60, answer_s=WALL_S) as client:
        started = time.monotonic()
        with pytest.raises(EndpointError) as failed:
            client.chat(MESSAGES, max_tokens=8, on_text=(lambda _text: None) if stream else None)
        took = time.monotonic() - started

    assert failed.value.fault in (EndpointFault.TOO_SLOW, EndpointFault.BROKEN)
    assert took < 10 * WALL_S


@pytest.mark.thorough
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "document"])
@pytest.mark.parametrize("name", FLOODS)
def test_whatever_comes_in_great_amounts_ends_at_the_byte_limit(
    name: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RESPONSE_LIMIT_BYTES", 1 << 20)
    with hostile(FLOODS[name]) as url, Client(url, timeout_s=60, answer_s=60) as client:
        started = time.monotonic()
        with pytest.raises(EndpointError) as failed:
            client.chat(MESSAGES, max_tokens=8, on_text=(lambda _text: None) if stream else None)

    assert failed.value.fault in (EndpointFault.TOO_LARGE, EndpointFault.BROKEN, EndpointFault.UNUSABLE)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (HEAD, b"x" * 65536),
        (HEAD, b'data: {"choices": [{"delta": {"content": "x", "y": [' + b"{}," * 20_000 + b"0]}}]}\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b'{"a": [' + b"{}," * 20_000),
        (b"HTTP/1.1 200 OK\r\n\r\n[", b"{},[]," * 10_000),
    ],
)
def test_a_flood_costs_bounded_memory(head: Any, piece: Any) -> None:
    code = (
        "import sys\nfrom dfqs.errors import EndpointError\nfrom dfqs.serving.client import Client\n"
        "for take in (None, lambda _text: None):\n"
        "    try:\n        with Client({url!r}) as client:\n"
        "            client.chat([{{'role': 'user', 'content': 'q'}}], max_tokens=8, on_text=take)\n"
        "    except EndpointError as error:\n        print(error.fault)\n"
    )
    with hostile(repeating(head, piece)) as url:
        end = peak_under_limit(code.format(url=url))

    assert (end.returncode, end.stdout.split(), end.peak_bytes < LIMIT_BYTES) == (0, ["too-large"] * 2, True), end


def test_a_line_is_bounded_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "DOCUMENT_LIMIT_BYTES", 1 << 20)
    with (
        hostile(FLOODS["a line without end"]) as url,
        Client(url, timeout_s=60) as client,
        pytest.raises(EndpointError, match="a line without end"),
    ):
        client.chat(MESSAGES, max_tokens=8, on_text=lambda _text: None)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Encoding: br", b"x"),
        (b"Content-Encoding: gzip", b"no gzip at all"),
        (b"Content-Encoding: \xff", b"x"),
        (b"Content-Length: -1", b""),
        (b"Content-Length: 99999999999999999999999999", b""),
        (b"Transfer-Encoding: gzip", b""),
        (b"Transfer-Encoding: chunked", b"zz\r\n"),
        (b"no header at all", b""),
        (b"Content-Type: text/event-stream; charset=idna", b"data: {\xff}\n\n"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_cannot_be_decoded_is_an_error_of_the_endpoint(head: bytes, body: bytes, stream: bool) -> None:
    with (
        hostile(lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)) as url,
        Client(url, timeout_s=5) as client,
        pytest.raises(EndpointError) as failed,
    ):
        client.chat(MESSAGES, max_tokens=8, on_text=(lambda _text: None) if stream else None)

    assert failed.value.fault in (EndpointFault.UNUSABLE, EndpointFault.BROKEN)
    assert str(failed.value).isprintable()


@pytest.mark.parametrize("number", ["1" + "0" * 300, "1e400", "-1", "NaN", '"5"', "true", "[5]"])
def test_a_count_that_no_server_can_have_is_unknown(number: Any) -> None:
    choices = '"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]'
    event = f'data: {{{choices}, "usage": {{"prompt_tokens": {number}}}}}\n\n'
    with (
        hostile(lambda connection: connection.sendall(HEAD + event.encode())) as url,
        Client(url, timeout_s=5) as client,
    ):
        assert client.chat(MESSAGES, max_tokens=8, on_text=lambda _text: None).prompt_tokens is None


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://host\n",
            "http://ho\x00st",
            "http://host\x1b[31m",
            "http://a b",
            "http://host\t:80",
            "\u202ehttp://h",
        ),
        *("http://host:99999", "http://host:0", "http://host:-1", "http://host:port", "http://host:80:80"),
        *("http://[::1", "http://[::1]x", "http://::1:8080", "http://[zz::1]", "http://[1.2.3.4]", "http://h]"),
        *("http://a..b", "http://.", "http://-a", "http://a-", "http://" + "a" * 64, "http://" + "a." * 200 + "a"),
        *("http://\u2100.example", "http://\ud800", "http://xn--\u00e9", "http://a%00b", "http://h/?x=1", "http://h#x"),
        *("http://user:pa ss@h", "http://@", "http://:80", "//h", "http:/h", "http:h", "", " ", "http://h\\@evil"),
    ],
)
def test_what_cannot_be_connected_to_is_refused_with_a_sentence(url: Any) -> None:
    with pytest.raises(UsageError, match="is no address; write it like") as refused:
        parse_address(url)

    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("url", "host", "port", "shown"),
    [
        ("http://127.0.0.1:8080/v1/", "127.0.0.1", 8080, "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "::1", 8080, "http://[::1]:8080"),
        ("HTTPS://Example.com/api/v1", "example.com", 443, "https://Example.com/api"),
        ("http://m\u00fcnchen.example", "xn--mnchen-3ya.example", 80, "http://m\u00fcnchen.example"),
        ("http://me:s%40cret@my_host:81", "my_host", 81, "http://my_host:81"),
        ("http://host./", "host.", 80, "http://host."),
        ("http://h/a b".replace(" ", "\u00e9"), "h", 80, "http://h/a%C3%A9b"),
    ],
)
def test_what_can_be_is_taken_apart(url: Any, host: str, port: int, shown: str) -> None:
    address = parse_address(url)

    assert (address.host, address.port, address.shown) == (host, port, shown)
    assert "cret" not in repr(address)


@pytest.mark.parametrize("key", ["a\nb", "a b", "\u00e9", "a\r\nX: y", "\x7f"])
def test_a_key_that_no_header_can_carry_is_refused_before_anything_is_sent(key: str) -> None:
    with pytest.raises(UsageError, match="API key"):
        Client("http://127.0.0.1:9", api_key=key)


def test_an_endless_name_lookup_is_no_internal_error() -> None:
    with Client("http://no-such-host.invalid") as client, pytest.raises(EndpointError, match="nothing answers"):
        client.models()
