"""The door of `serve`: bytes, time and connections of a client are bounded, and an answer passes as it comes."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqs.serving.front import FrontLimits
from front_server import JSON_POST, Fronted, fronted, read_all, status

TIGHT = FrontLimits(
    connections=300,
    connections_per_client=250,
    head_s=1.5,
    idle_s=1.5,
    body_s=1.0,
    body_bytes=100_000,
    bodies_bytes=250_000,
    linger_s=0.3,
)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    with fronted(tmp_path_factory.mktemp("front"), TIGHT) as running:
        yield running


class TestRequests:
    @pytest.mark.parametrize(
        ("request_", "expected"),
        [
            (b"GET /health HTTP/1.1\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\nHost: localhost\n\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n folded\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400),
            (b"GET  /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            (b"GET /he\talth HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            (b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
            (b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n", 505),
            (b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
            (b"CONNECT /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
            (b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"a" * 9000), 414),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
            (JSON_POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400),
            (JSON_POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (JSON_POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            (JSON_POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
            (JSON_POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
            (JSON_POST + b"Content-Length: +2\r\n\r\n{}", 400),
            (JSON_POST + b"Content-Length: 0x2\r\n\r\n{}", 400),
            (JSON_POST + b"Content-Length: 2, 2\r\n\r\n{}", 400),
            (JSON_POST + b"Content-Length: -1\r\n\r\n{}", 400),
            (JSON_POST + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
            (JSON_POST + b"Content-Length: 100001\r\n\r\n", 413),
            (JSON_POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
            (JSON_POST + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\n\r\n", 400),
            (JSON_POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n" + b" " * 80, 400),
            (JSON_POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n", 400),
            (JSON_POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nHost: evil\r\n\r\n", 400),
            (JSON_POST + b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n", 413),
            (JSON_POST + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n", 400),
            (JSON_POST + b"Expect: cookies\r\nContent-Length: 2\r\n\r\n{}", 417),
        ],
    )
    def test_what_two_programs_could_read_in_two_ways_reaches_no_model(
        self, front: Fronted, request_: bytes, expected: int
    ) -> None:
        before = len(front.engine.seen)

        answer = front.send(request_)

        assert status(answer) == expected
        assert b'"error"' in answer
        assert answer.count(b"content-length: ") == 1
        assert len(front.engine.seen) == before

    def test_a_body_in_chunks_reaches_the_model_whole_and_with_one_length(self, front: Fronted) -> None:
        body = b'6\r\n{"a": \r\n2\r\n1}\r\n0\r\n\r\n'
        answer = front.send(JSON_POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body)

        assert answer.endswith(b"8 bytes")
        seen = front.engine.seen[-1]
        assert seen.endswith(b'\r\n\r\n{"a": 1}')
        assert (seen.count(b"content-length: 8"), seen.lower().count(b"transfer-encoding")) == (1, 0)

    def test_a_client_that_asks_before_it_sends_is_told_to(self, front: Fronted) -> None:
        with front.connect() as client:
            client.sendall(JSON_POST + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(b"{}")
            assert read_all(client).endswith(b"2 bytes")

    def test_a_connection_takes_one_request_after_another_even_sent_ahead(self, front: Fronted) -> None:
        first = JSON_POST + b"Content-Length: 2\r\n\r\n{}"
        last = b"HEAD /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

        answer = front.send(first + first + last)

        assert answer.count(b"HTTP/1.1 200") == 3
        assert answer.count(b"2 bytes") == 2


class TestAnswers:
    def test_a_stream_comes_piece_by_piece_and_whole(self, front: Fronted) -> None:
        with front.connect() as client:
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            started, times, received = time.monotonic(), [], b""
            while piece := client.recv(65536):
                received += piece
                times.append(time.monotonic() - started)

        assert [b"data: %d" % n in received for n in range(3)] == [True] * 3
        assert received.endswith(b"0\r\n\r\n")
        assert times[-1] - times[0] > 0.4

    def test_nothing_is_computed_for_a_client_that_left(self, front: Fronted) -> None:
        front.engine.left.clear()
        with front.connect() as client:
            client.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
            client.recv(100)

        assert front.engine.left.wait(10)

    def test_an_answer_that_breaks_off_does_not_look_whole(self, front: Fronted) -> None:
        answer = front.send(b"GET /broken HTTP/1.1\r\nHost: localhost\r\n\r\n")

        assert b"data: half" in answer
        assert not answer.endswith(b"0\r\n\r\n")

    def test_a_stream_that_breaks_off_between_events_ends_with_what_happened(self, tmp_path: Path) -> None:
        with fronted(tmp_path, FrontLimits()) as failing:
            failing.front.dispatch.engine.failures[1] = "the disk failed"
            cut = failing.send(b"GET /cut HTTP/1.1\r\nHost: localhost\r\n\r\n")
            broken = failing.send(b"GET /broken HTTP/1.1\r\nHost: localhost\r\n\r\n")

        _, said, event = cut.partition(b"data: whole\n\n\r\n")
        assert said
        size, _, chunk = event.partition(b"\r\n")
        assert len(chunk) == int(size, 16) + 2
        assert json.loads(chunk.removeprefix(b"data: "))["error"]["message"] == "the disk failed"
        # In the middle of an event there is no place for another.
        assert b"the disk failed" not in broken

    @pytest.mark.thorough
    def test_an_answer_that_is_none_is_said_to_be_none(self, front: Fronted) -> None:
        assert status(front.get("/rubbish")) == 502

    def test_a_client_that_ends_its_side_still_gets_a_quick_answer(self, front: Fronted) -> None:
        with front.connect() as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            assert status(read_all(client)) == 200


@pytest.mark.thorough
class TestSlowClients:
    def test_health_answers_while_two_hundred_clients_send_a_byte_now_and_then(self, tmp_path: Path) -> None:
        with fronted(tmp_path, FrontLimits(head_s=6)) as front:
            slow = [front.connect() for _ in range(200)]
            for round_ in range(3):
                for client in slow:
                    client.sendall(b"GET /h"[round_ : round_ + 1])
                assert status(front.get()) == 200
            # And they are cut.
            assert [status(read_all(client)) for client in slow] == [408] * 200

    def test_a_client_that_says_nothing_is_cut(self, front: Fronted) -> None:
        with front.connect() as client:
            assert client.recv(100) == b""

    def test_a_body_that_never_ends_is_cut(self, front: Fronted) -> None:
        with front.connect() as client:
            client.sendall(JSON_POST + b"Content-Length: 1000\r\n\r\n{")
            assert status(read_all(client)) == 408

    def test_one_more_connection_than_there_is_room_for_takes_the_place_of_a_silent_one(self, tmp_path: Path) -> None:
        limits = FrontLimits(connections=8, connections_per_client=6, head_s=30)
        with fronted(tmp_path, limits) as front:
            silent = [front.connect() for _ in range(6)]
            time.sleep(0.2)
            assert status(front.get()) == 200
            assert silent[0].recv(1) == b""
            silent[1].settimeout(0.2)
            with pytest.raises(TimeoutError):
                silent[1].recv(1)
            for client in silent:
                client.close()

    def test_where_all_are_waiting_for_answers_the_next_is_told_to_come_later(self, tmp_path: Path) -> None:
        with fronted(tmp_path, FrontLimits(connections=3, connections_per_client=3)) as front:
            busy = [front.connect() for _ in range(3)]
            for client in busy:
                client.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
                client.recv(100)
            assert status(front.get()) == 503
            for client in busy:
                client.close()

    def test_bodies_of_all_clients_together_are_bounded_by_what_they_sent(self, front: Fronted) -> None:
        clients = [front.connect() for _ in range(3)]
        try:
            for client in clients[:2]:
                client.sendall(JSON_POST + b"Content-Length: 100000\r\n\r\n" + b" " * 90_000)
            time.sleep(0.3)
            clients[2].sendall(JSON_POST + b"Content-Length: 100000\r\n\r\n" + b" " * 90_000)
            assert status(read_all(clients[2])) == 503
            assert status(front.send(JSON_POST + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")) == 200
        finally:
            for client in clients:
                client.close()

    def test_a_stop_ends_streams_and_idle_connections_within_its_grace(self, tmp_path: Path) -> None:
        with fronted(tmp_path) as front:
            idle, busy = front.connect(), front.connect()
            busy.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
            busy.recv(100)
            started = time.monotonic()
            front.front.stop()
            assert time.monotonic() - started < 5
            assert idle.recv(1) == b""
            assert not read_all(busy).endswith(b"0\r\n\r\n")
            idle.close()
            busy.close()


class TestPages:
    def test_a_page_that_was_let_in_may_read_and_a_preflight_is_answered(self, front: Fronted) -> None:
        origin = "http://localhost:3000"
        answer = front.get("/health", f"Origin: {origin}")
        preflight = front.send(
            b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost:3000\r\n"
            b"Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n"
        )

        assert answer.lower().count(b"access-control-allow-origin: ") == 1
        assert f"access-control-allow-origin: {origin}\r\n".encode() in answer
        assert status(preflight) == 204
        assert b"content-type" in preflight
        assert b"access-control-allow-origin" not in front.get().lower()
