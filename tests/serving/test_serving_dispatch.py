"""What waits, how long it may take, and what it is told: the queue in front of the model's server."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dfqs.serving.dispatch import DispatchLimits
from front_server import Fronted, fronted, read_all, status


def post(front: Fronted, path: str = "/v1/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 2", "", ""]
    return ("\r\n".join(lines) + "{}").encode()


def test_one_more_than_may_wait_is_told_when_to_come_again(tmp_path: Path) -> None:
    with fronted(tmp_path, dispatch_limits=DispatchLimits(slots=1, queue=1)) as front:
        busy = [front.connect() for _ in range(2)]
        for client in busy:
            client.sendall(post(front, "/endless"))
            client.recv(100)
        refused = front.send(post(front))
        told = front.get("/metrics").decode()
        for client in busy:
            client.close()
        deadline = time.monotonic() + 10
        while front.front.dispatch.under_way and time.monotonic() < deadline:
            time.sleep(0.02)
        again = front.send(post(front).replace(b"Host", b"Connection: close\r\nHost"))

    assert status(refused) == 503
    seconds = int(refused.split(b"retry-after: ")[1].split(b"\r\n")[0])
    assert 1 <= seconds <= 60
    for line in ("slots_busy 1", "queue_length 1", "queue_limit 1", "queue_full_total 1", "requests_total 2"):
        assert f"dfqs_serve_{line}\n" in told
    # Who left made room.
    assert status(again) == 200


def test_an_answer_that_takes_too_long_is_cut_in_the_form_that_it_began_in(tmp_path: Path) -> None:
    with fronted(tmp_path, dispatch_limits=DispatchLimits(answer_s=0.5)) as front:
        stream = front.send(post(front, "/endless"))
        silent = front.send(post(front, "/silent"))
        assert front.engine.left.wait(10)
        assert front.front.dispatch.counts.timed_out == 2

    assert status(stream) == 200
    last = stream.rpartition(b"data: ")[2]
    assert json.loads(last)["error"]["code"] == 504
    assert not stream.endswith(b"0\r\n\r\n")
    assert status(silent) == 504


def test_requests_wait_for_a_server_that_is_started_again_and_health_does_not(tmp_path: Path) -> None:
    with fronted(tmp_path) as front, ThreadPoolExecutor(1) as pool:
        state = front.front.dispatch.engine
        path = state.path
        assert path is not None
        state.down("it died")
        waiting = pool.submit(front.send, post(front).replace(b"Host", b"Connection: close\r\nHost"))
        health, told = front.get(), front.get("/metrics")
        assert not waiting.done()
        state.up(path)
        assert status(waiting.result(10)) == 200
        state.end("it died too often")
        assert b"it died too often" in front.get()

    assert status(health) == 503
    assert b"retry-after: " in health
    # What dfqs knows by itself is told all the same.
    assert b"dfqs_serve_up 0\n" in told


def test_a_wait_for_a_server_that_does_not_come_ends(tmp_path: Path) -> None:
    with fronted(tmp_path, dispatch_limits=DispatchLimits(restart_wait_s=0.2)) as front:
        front.front.dispatch.engine.down("it died")
        assert status(front.send(post(front))) == 503


def test_what_could_not_even_be_asked_is_asked_of_the_next_server(tmp_path: Path) -> None:
    """A worker is dead a moment before it is known to be."""
    with fronted(tmp_path) as front:
        state = front.front.dispatch.engine
        path = state.path
        assert path is not None
        state.up(tmp_path / "nobody.sock")

        def come_again() -> None:
            time.sleep(0.3)
            state.down("it died")
            time.sleep(0.2)
            state.up(path)

        threading.Thread(target=come_again).start()
        assert status(front.send(post(front).replace(b"Host", b"Connection: close\r\nHost"))) == 200


def test_an_end_takes_no_more_requests_and_waits_for_those_under_way(tmp_path: Path) -> None:
    with fronted(tmp_path) as front:
        idle, busy = front.connect(), front.connect()
        busy.sendall(post(front, "/stream"))
        received = busy.recv(100)
        left = front.front.drain(10)
        assert left == 0
        # It was answered whole, though its client might have asked more on the connection.
        assert (received + read_all(busy)).endswith(b"0\r\n\r\n")
        assert idle.recv(1) == b""
        try:
            late = front.connect()
            late.close()
            raise AssertionError("it still listens")
        except ConnectionRefusedError:
            pass


def test_an_end_does_not_wait_for_an_answer_without_end(tmp_path: Path) -> None:
    with fronted(tmp_path) as front, front.connect() as busy:
        busy.sendall(post(front, "/endless"))
        busy.recv(100)
        started = time.monotonic()
        assert front.front.drain(0.3) == 1
        assert time.monotonic() - started < 3
