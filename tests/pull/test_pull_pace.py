"""Connections that would only wait for the processor are not used; where the network is what is waited for, all are."""

import threading
from pathlib import Path

import pytest

from dfqs.pull import output as output_module
from dfqs.pull import transfer as transfer_module
from dfqs.pull.pace import FULL_PROCESSORS, WINDOW_S, ProcessorPace
from hub_server import Reply, Request
from pull_cases import Repository


class SentAtOnce:
    """How many answers are being made side by side; the first `meeting` of them wait for each other."""

    def __init__(self, meeting: int) -> None:
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(meeting) if meeting else None

    def __call__(self, request: Request, reply: Reply) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        if self._meeting is not None and request.number < self._meeting.parties:
            self._meeting.wait(10)
        with self._lock:
            self._now -= 1


def with_room(monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    class Pace(ProcessorPace):
        def has_room(self) -> bool:
            return room

    monkeypatch.setattr(transfer_module, "ProcessorPace", Pace)


def test_connections_beyond_two_do_not_fight_for_a_processor_that_is_full(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_room(monkeypatch, False)
    plan = repository.plan()
    repository.hub.trouble = sent = SentAtOnce(2)

    repository.pull(tmp_path / "model.gguf", plan)

    assert sent.most == 2
    assert (tmp_path / "model.gguf").read_bytes() == repository.merged


def test_a_slow_network_is_asked_on_every_connection(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_room(monkeypatch, True)
    plan = repository.plan()
    repository.hub.trouble = sent = SentAtOnce(3)

    repository.pull(tmp_path / "model.gguf", plan)

    assert sent.most == 3


def test_a_window_that_was_busy_says_no_and_one_that_was_not_says_yes() -> None:
    wall_s, taken_s = [0.0], [0.0]
    pace = ProcessorPace(lambda: wall_s[0], lambda: taken_s[0])
    assert not pace.has_room()

    wall_s[0], taken_s[0] = WINDOW_S, WINDOW_S * FULL_PROCESSORS * 0.9
    assert pace.has_room()
    wall_s[0] += WINDOW_S / 2
    assert pace.has_room(), "a window that is not over says nothing"

    wall_s[0], taken_s[0] = 2 * WINDOW_S, taken_s[0] + WINDOW_S * 1.5
    assert not pace.has_room()


def test_little_is_left_for_the_disk_at_the_end(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int, int]] = []
    monkeypatch.setattr(output_module, "start_writeback", lambda *range_: begun.append(range_))

    repository.pull(tmp_path / "model.gguf")

    assert len(set(begun)) == len(begun)
    assert sum(length for _, _, length in begun) == repository.remote_bytes
