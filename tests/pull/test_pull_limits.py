"""What a Hub or a storage can cost that never ends: one clock and one count of bytes over every answer."""

import gzip
import time
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from dfqs.errors import DfqsError, NetworkError
from dfqs.pull import Hub, RetryPolicy, plan_pull
from dfqs.pull import metadata as metadata_module
from hub_server import FakeHub
from memory_limits import LIMIT_BYTES, peak_under_limit
from pull_cases import HASTY, Repository, single_model

SHORT = RetryPolicy(attempts=1, first_wait_s=0.01, longest_wait_s=0.02, stall_s=0.8)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(files={"m.gguf": single_model()}) as hub:
        yield hub


def listing(hub: FakeHub, retry: RetryPolicy = SHORT) -> None:
    Hub(hub.endpoint, "none", retry).list_repo(hub.repo)


def trickle(wire: BinaryIO, hub: FakeHub, piece: bytes) -> None:
    while not hub.closing.wait(0.05):
        wire.write(piece)
        wire.flush()


def slow_body(wire: BinaryIO, hub: FakeHub) -> None:
    wire.write(OK + b"Content-Length: 100000\r\n\r\n{")
    trickle(wire, hub, b" ")


def slow_chunks(wire: BinaryIO, hub: FakeHub) -> None:
    wire.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    trickle(wire, hub, b"1\r\n \r\n")


def slow_header(wire: BinaryIO, hub: FakeHub) -> None:
    wire.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    trickle(wire, hub, b"a")


def interim_answers(wire: BinaryIO, hub: FakeHub) -> None:
    trickle(wire, hub, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")


def slow_refusal(wire: BinaryIO, hub: FakeHub) -> None:
    wire.write(b"HTTP/1.1 500 No\r\n")
    trickle(wire, hub, b"A: b\r\n")


@pytest.mark.thorough
@pytest.mark.parametrize("answer", [slow_body, slow_chunks, slow_header, interim_answers, slow_refusal])
def test_an_answer_that_never_ends_is_left_after_the_timeout(hub: FakeHub, answer: object) -> None:
    hub.raw_answer = lambda server, wire: (answer(wire, hub), True)[1]  # type: ignore[operator]
    began = time.monotonic()

    with pytest.raises(NetworkError, match=r"was not there after 0\.8 s"):
        listing(hub)

    assert time.monotonic() - began < 5


@pytest.mark.thorough
@pytest.mark.parametrize("answer", [slow_header, interim_answers])
def test_a_file_s_address_and_its_bytes_have_the_same_clock(hub: FakeHub, answer: object) -> None:
    def storage_only(server: str, wire: BinaryIO) -> bool:
        if server == "storage":
            answer(wire, hub)  # type: ignore[operator]
        return server == "storage"

    hub.raw_answer = storage_only
    began = time.monotonic()

    with pytest.raises(NetworkError, match=r"was not there after 0\.8 s, though bytes of it came, on 2 connections"):
        plan_pull(Hub(hub.endpoint, "none", SHORT), hub.repo, retry=SHORT)

    assert time.monotonic() - began < 10


def test_a_refusal_s_page_is_not_read(hub: FakeHub) -> None:
    def refuse(server: str, wire: BinaryIO) -> bool:
        wire.write(b"HTTP/1.1 404 No\r\nX-Error-Code: RepoNotFound\r\nContent-Length: 99999999\r\n\r\n")
        trickle(wire, hub, b"page")
        return True

    hub.raw_answer = refuse
    with pytest.raises(DfqsError, match="there is no repository"):
        listing(hub)


def test_an_endless_description_is_left_at_its_limit(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(server: str, wire: BinaryIO) -> bool:
        wire.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        while not hub.closing.is_set():
            wire.write(b"10000\r\n" + b"[" * 65536 + b"\r\n")
        return True

    hub.raw_answer = endless
    monkeypatch.setattr(metadata_module, "LIMIT_BYTES", 1 << 20)
    with pytest.raises(NetworkError, match=r"longer than the 1\.\d MB"):
        listing(hub, RetryPolicy(attempts=1, stall_s=20))


def test_a_compressed_description_is_not_unpacked(hub: FakeHub) -> None:
    bomb = gzip.compress(bytes(20 << 20))

    def packed(server: str, wire: BinaryIO) -> bool:
        wire.write(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb)
        return True

    hub.raw_answer = packed
    with pytest.raises(NetworkError, match="compressed, though that was not asked for"):
        listing(hub)


def test_redirects_without_end_are_left(hub: FakeHub) -> None:
    hub.raw_answer = lambda server, wire: bool(
        wire.write(b"HTTP/1.1 307 Go\r\nLocation: /api/again\r\nContent-Length: 0\r\n\r\n")
    )
    with pytest.raises(NetworkError, match="redirects without end"):
        listing(hub)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"sha":NaN}', '{"sha":"\\ud800"}', "[]", '{"siblings":7}', '{"siblings":[7]}', "\xff", "7"]
)
def test_a_description_that_is_none_is_an_error_of_the_network(hub: FakeHub, text: str) -> None:
    body = text.encode("latin-1")
    hub.raw_answer = lambda server, wire: bool(wire.write(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body))

    with pytest.raises(NetworkError):
        listing(hub)


def test_the_largest_description_that_is_read_stays_within_memory() -> None:
    # Empty objects take the most memory for their text.
    code = (
        "from dfqs.pull.metadata import LIMIT_BYTES, Answer\n"
        "Answer(200, {}, b'[' + b'{},' * (LIMIT_BYTES // 3 - 2) + b'{}]', '', None).json()"
    )
    limited = peak_under_limit(code)

    assert limited.returncode == 0, limited.stderr
    assert limited.peak_bytes < LIMIT_BYTES


def test_a_description_of_3000_shards_is_far_from_the_limit(hub: FakeHub) -> None:
    hub.files |= {f"m-{i:05d}-of-03000.gguf": b"x" for i in range(1, 3001)}

    found = Repository(hub, [], b"").client().list_repo(hub.repo)

    assert len(found.files) == 3001
    assert len(str(hub.siblings())) * 4 < metadata_module.LIMIT_BYTES


def test_a_stall_is_asked_again(hub: FakeHub) -> None:
    asked: list[int] = []

    def stall_once(server: str, wire: BinaryIO) -> bool:
        asked.append(1)
        if len(asked) == 1:
            hub.closing.wait(1.5)
        return len(asked) == 1

    hub.raw_answer = stall_once
    listing(hub, HASTY)

    assert len(asked) == 2
