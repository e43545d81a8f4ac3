"""What a request to `serve` may say: keys, documents and numbers, over real sockets. The server lives."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqs.errors import UsageError
from dfqs.serving.admission import make_admission
from dfqs.serving.api_key import make_key
from dfqs.serving.body_rules import ALTERNATIVES_LIMIT, CONTAINERS_LIMIT, GRAMMAR_DEPTH_LIMIT, PROMPTS_LIMIT
from front_server import JSON_POST, Fronted, fronted, status

KEY = "s3cret"


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    with fronted(tmp_path_factory.mktemp("door")) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    with fronted(tmp_path_factory.mktemp("locked"), key=KEY) as running:
        yield running


def post(front: Fronted, body: bytes, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers, "", ""]
    return front.send("\r\n".join(lines).encode() + body)


class TestKey:
    @pytest.mark.parametrize(
        "shown",
        [
            (),
            ("Authorization: Bearer",),
            ("Authorization: Bearer wrong",),
            ("Authorization: Bearer s3cre",),
            ("Authorization: Bearer s3cret2",),
            ("Authorization: Basic s3cret",),
            ("Authorization: Bearer \xfc",),
            ("X-Api-Key: wrong",),
            ("Authorization: Bearer wrong", f"X-Api-Key: {KEY}"),
        ],
    )
    def test_a_wrong_key_is_refused_before_the_body_is_read(self, locked: Fronted, shown: tuple[str, ...]) -> None:
        before = len(locked.engine.seen)
        # No body comes, and none is waited for.
        lines = "".join(f"{line}\r\n" for line in (*shown, "Content-Length: 1000000"))
        answer = locked.send(JSON_POST + lines.encode("latin-1") + b"\r\n")

        assert status(answer) == 401
        assert b"www-authenticate: Bearer\r\n" in answer
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["type"] == "authentication_error"
        assert len(locked.engine.seen) == before

    @pytest.mark.parametrize("shown", [f"Authorization: Bearer {KEY}", f"X-Api-Key: {KEY}"])
    def test_the_right_key_is_passed_on(self, locked: Fronted, shown: str) -> None:
        assert status(post(locked, b"{}", shown)) == 200
        assert shown.lower().encode() in locked.engine.seen[-1].lower()

    def test_health_and_the_page_need_no_key_and_figures_do(self, locked: Fronted) -> None:
        assert [status(locked.get(path)) for path in ("/health", "/", "/metrics")] == [200, 200, 401]
        # A probe whose key is an old one learns whether the server lives.
        assert status(locked.get("/health", "Authorization: Bearer old")) == 200
        assert status(locked.get("/v1/models", "Authorization: Bearer wrong")) == 401

    @pytest.mark.parametrize("text", ["", " ", "two words", "line\nbreak", "schlüssel"])
    def test_a_key_that_no_client_can_show_is_no_key(self, text: str) -> None:
        with pytest.raises(UsageError, match="API key"):
            make_key(text)


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"7",
            b'"x"',
            b"null",
            b'{"a": NaN}',
            b'{"a": 1e999}',
            b'{"a": 123456789012345678901234567890}',
            b'{"prompt": "\xff\xfe"}',
            b'{"prompt": "\\ud800"}',
            b'{"prompt": "\0"}',
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"a":' * 65 + b"1" + b"}" * 65,
            b'{"echo":' * 1000 + b"1" + b"}" * 1000,
            b'{"a": [' + b"[]," * CONTAINERS_LIMIT + b"1]}",
            b'{"n": 2}',
            b'{"n": 1e300}',
            b'{"n_cmpl": 1000000000}',
            b'{"max_tokens": 9007199254740993}',
            b'{"n_probs": %d}' % (ALTERNATIVES_LIMIT + 1),
            b'{"logprobs": 100000}',
            b'{"top_logprobs": 100000}',
            b'{"grammar": "root ::= %s"}' % (b"(" * (GRAMMAR_DEPTH_LIMIT + 1)),
            b'{"response_format": {"schema": {"properties": {"x": [{"pattern": "%s"}]}}}}' % (b"(" * 65),
            json.dumps({"prompt": ["x"] * (PROMPTS_LIMIT + 1)}).encode(),
        ],
        ids=lambda body: body[:40].decode("latin-1"),
    )
    def test_what_no_server_should_read_reaches_no_model(self, front: Fronted, body: bytes) -> None:
        before = len(front.engine.seen)
        answer = post(front, body, path="/completion")
        if not body:
            # Nothing is asked; the model's server says so.
            assert status(answer) == 200
            return
        assert status(answer) == 400
        assert "error" in json.loads(answer.rpartition(b"\r\n\r\n")[2])
        assert len(front.engine.seen) == before
        assert status(front.get()) == 200

    @pytest.mark.parametrize(
        "document",
        [
            {"n": 1, "max_tokens": -1, "logprobs": True, "top_logprobs": ALTERNATIVES_LIMIT},
            {"prompt": [1] * 5000},
            {"prompt": ["x", [1, 2]]},
            {"prompt": "a\0b"},
            {"messages": [{"role": "user", "content": "(" * 500, "pattern": "(" * 500}]},
            {"grammar": "root ::= " + "(x)" * 500},
        ],
    )
    def test_what_clients_do_send_is_passed_on_as_it_was_understood(
        self, front: Fronted, document: dict[str, object]
    ) -> None:
        assert status(post(front, json.dumps(document).encode())) == 200
        assert json.loads(front.engine.seen[-1].partition(b"\r\n\r\n")[2]) == document

    def test_a_name_given_twice_means_one_thing(self, front: Fronted) -> None:
        assert status(post(front, b'{"messages": 1, "messages": 2}')) == 200
        assert front.engine.seen[-1].endswith(b'\r\n\r\n{"messages": 2}')

    def test_a_large_body_is_read_beside_the_others(self, front: Fronted) -> None:
        body = json.dumps({"prompt": "word " * 200_000}).encode()
        assert status(post(front, body)) == 200
        assert front.engine.seen[-1].endswith(body)

    def test_a_body_where_none_belongs_is_refused(self, front: Fronted) -> None:
        answer = front.send(b"DELETE /v1/stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        assert status(answer) == 400


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/a/..%2f..%2fetc/passwd", "/..%5c..%5cboot.ini", "/a%00b"],
)
def test_an_address_that_leads_out_is_refused(front: Fronted, path: str) -> None:
    before = len(front.engine.seen)
    assert status(front.get(path)) == 400
    assert len(front.engine.seen) == before


def test_no_id_keeps_an_answer_going_for_a_client_that_left(front: Fronted) -> None:
    """llama-server computes on for such a request, and keeps what it computed for whoever knows the id."""
    assert status(post(front, b"{}", "X-Conversation-Id: mine")) == 200
    assert b"conversation" not in front.engine.seen[-1].lower()


def test_the_name_that_is_listened_on_is_a_name_of_the_server(tmp_path: Path) -> None:
    with fronted(tmp_path, admission=make_admission(True, (), (), "Models.lan")) as named:
        for host, expected in (("models.lan:80", 200), ("other.lan", 403), ("192.0.2.7", 200)):
            request = f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            assert status(named.send(request.encode())) == expected
