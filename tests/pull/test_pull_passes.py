"""What a pull does with each byte is counted: written once, read for two hashes, and not hashed where nobody asked."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpcore
import pytest

from dfqs.model.hashes import ModelDigest
from dfqs.pull import bounded
from dfqs.pull import finished as finished_module
from dfqs.pull import output as output_module
from dfqs.pull import transfer as transfer_module
from dfqs.storage import files, linux
from hub_server import FakeHub, Reply, Request
from pull_cases import CHUNK_BYTES, Repository, single_model


class CountingHash:
    """SHA-256 that tells how much it was given."""

    hashed = 0

    def __init__(self, data: bytes = b"") -> None:
        self._inner = hashlib.sha256(data)

    def update(self, data: bytes) -> None:
        CountingHash.hashed += len(data)
        self._inner.update(data)

    def hexdigest(self) -> str:
        return self._inner.hexdigest()

    def copy(self) -> "CountingHash":
        other = CountingHash()
        other._inner = self._inner.copy()
        return other


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes written, read back and hashed by a pull."""
    found: Counter[str] = Counter()

    def read_at(handle: int, offset: int, length: int) -> bytes:
        data = files.read_at(handle, offset, length)
        found["read"] += len(data)
        return data

    def write_at(handle: int, data: bytes | memoryview, offset: int) -> None:
        found["written"] += len(data)
        files.write_at(handle, data, offset)

    class Hashes:
        sha256 = CountingHash
        sha1 = hashlib.sha1

    CountingHash.hashed = 0
    monkeypatch.setattr(output_module, "read_at", read_at)
    monkeypatch.setattr(output_module, "write_at", write_at)
    monkeypatch.setattr(output_module, "hashlib", Hashes)
    return found


@pytest.mark.parametrize(("has_leases", "times"), [(True, 1), (False, 2)])
def test_a_byte_is_written_once_and_looked_at_again_only_where_somebody_else_may_have_written(
    repository: Repository,
    tmp_path: Path,
    counted: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    has_leases: bool,
    times: int,
) -> None:
    if not has_leases:
        monkeypatch.setattr(linux, "_take_lease", lambda handle: False)
    repository.pull(tmp_path / "m.gguf")

    # Headers and padding are looked at in any case; 64 KiB is more than all of them here.
    assert counted["written"] <= repository.remote_bytes + (64 << 10)
    assert times * repository.remote_bytes <= counted["read"] <= times * repository.remote_bytes + (64 << 10)
    assert CountingHash.hashed == times * repository.remote_bytes
    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


def test_who_opens_a_file_under_a_lease_is_let_in_at_once_and_seen(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with path.open("w+b") as mine:
        lease = linux.Lease([mine.fileno()])
        assert lease.is_kept()
        mine.write(b"ours")
        mine.flush()
        assert lease.is_kept()
        before = time.monotonic()
        path.read_bytes()
        assert time.monotonic() - before < 10
        assert not lease.is_kept()
        lease.end()
        lease.end()


def test_a_file_that_somebody_has_open_already_has_no_lease(tmp_path: Path) -> None:
    path = tmp_path / "part"
    with path.open("w+b") as mine, path.open("r+b"):
        lease = linux.Lease([mine.fileno()])
        assert not lease.is_kept()
        lease.end()


def test_a_model_in_one_file_is_not_hashed_once_more_for_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = single_model()
    given: list[object] = []
    plain = ModelDigest.takers

    def takers(self: ModelDigest, whole: Any = None) -> Any:
        given.append(whole)
        return plain(self, whole)

    monkeypatch.setattr(ModelDigest, "takers", takers)
    monkeypatch.setattr(linux, "_take_lease", lambda handle: False)
    with FakeHub(files={"m.gguf": data}) as hub:
        result = Repository(hub, [], data).pull(tmp_path / "m.gguf", recorder_for=ModelDigest)

    assert given[0] is not None
    assert isinstance(result.recorder, ModelDigest)
    assert result.recorder.result().file_sha256 == hashlib.sha256(data).hexdigest()


def test_no_connection_runs_away_from_the_reader_whose_place_is_all_that_a_kill_leaves(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_module, "AHEAD_BYTES", 4 * CHUNK_BYTES)
    hub = repository.hub
    reached: list[int] = []

    def hold_the_first(request: Request, reply: Reply) -> None:
        if request.start == 0 and "00001" in request.name:
            known = -1
            while len(hub.data_requests) != known:
                known = len(hub.data_requests)
                time.sleep(0.15)
            reached.append(known)

    plan = repository.plan()
    hub.trouble = hold_the_first
    repository.pull(tmp_path / "m.gguf", plan)

    # Two chunks for each of three connections.
    assert reached == [6]
    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


class Dribble(httpcore.NetworkStream):
    """Gives 16 KiB at a time, as TLS does, and then nothing."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self.left:
            raise httpcore.ReadTimeout
        self.left -= 1
        return bytes(min(16 << 10, max_bytes))


def test_short_records_are_handed_on_together_and_what_came_before_a_stall_is_not_lost() -> None:
    stream = bounded._Stream(Dribble(20))
    with bounded.exchange(5, 1 << 20, expected_bytes=1 << 20):
        assert len(stream.read(64 << 10)) == bounded.GATHERED_BYTES
        assert len(stream.read(64 << 10)) == 4 * (16 << 10)
        with pytest.raises(httpcore.ReadTimeout):
            stream.read(64 << 10)


def test_no_read_waits_for_more_than_is_on_its_way() -> None:
    stream = bounded._Stream(Dribble(20))
    with bounded.exchange(5, 1 << 20, expected_bytes=20_000):
        assert len(stream.read(64 << 10)) == 20_000
    with bounded.exchange(5, 1 << 20):
        assert len(stream.read(64 << 10)) == 16 << 10


def test_hashes_of_the_last_look_are_each_in_order(repository: Repository) -> None:
    seen: list[list[int]] = [[], [], []]

    def taker(place: int) -> Callable[[bytes], None]:
        def take(data: bytes) -> None:
            time.sleep(0.002 * place)
            seen[place].append(data[0])

        return take

    with finished_module._Feed([taker(1), taker(2)]) as feed:
        for number in range(20):
            feed.give(bytes([number]), taker(0) if number != 7 else None, in_model=number != 3)
        feed.wait()

    assert seen[0] == [n for n in range(20) if n != 7]
    assert seen[1] == seen[2] == [n for n in range(20) if n != 3]
