"""A pull's journal lies beside a model, so a stranger can have written it: nothing in it is believed."""

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqs.errors import UsageError
from dfqs.pull import journal as journal_module
from dfqs.pull.journal import Progressed, PullJournal
from dfqs.pull.plan import MAX_CHUNKS
from hub_server import FakeHub
from memory_disk import MemoryDisk, PowerLoss
from memory_limits import LIMIT_BYTES, peak_under_limit
from pull_cases import Repository, write_repository

IDENTITY = {"what": 1}


def line(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n"


def begin(path: Path) -> None:
    journal = PullJournal(path)
    journal.start(IDENTITY, {"repo": "o/n"}, 65536)
    journal.record_chunk(0, 0, "a" * 64)
    journal.close()


HOSTILE = [
    b"[" * 100_000,
    b"[" * 200 + b"]" * 200,
    b'{"chunk":' + b"[" * 500 + b"]" * 500 + b"}",
    b"\xff\xfe{}",
    b'{"chunk":[0,1],"sha256":"\\ud800"}',
    b'{"chunk":[0,1e999],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[0,NaN],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[0,Infinity],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[0,' + b"9" * 3000 + b'],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[0,-1],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[-1,0],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[0,1.0],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[0,true],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[0],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[0,1,2],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":"01","sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":{"0":1},"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[[0],[1]],"sha256":"' + b"a" * 64 + b'"}',
    b'{"chunk":[0,1]}',
    b'{"chunk":[0,1],"sha256":null}',
    b'{"chunk":[0,1],"sha256":"../../x"}',
    b'{"chunk":[0,1],"sha256":"' + b"A" * 64 + b'"}',
    b'{"dropped":[0,{}]}',
    b'{"dropped":7}',
    b'{"verified":[]}',
    b'{"verified":-1}',
    b'{"verified":18446744073709551615}',
    b'{"unknown":1}',
    b"null",
    b"7",
]


@pytest.mark.parametrize("record", HOSTILE, ids=range(len(HOSTILE)))
def test_a_record_that_no_pull_writes_ends_the_journal_there(tmp_path: Path, record: bytes) -> None:
    path = tmp_path / "m.gguf.pull-journal"
    begin(path)
    after = line(json.dumps({"chunk": [0, 5], "sha256": "b" * 64}).encode())
    path.write_bytes(path.read_bytes() + line(record) + after)

    journal = PullJournal(path)
    known = journal.start(IDENTITY, {"repo": "o/n"}, 65536)
    journal.close()

    assert set(known.chunks) == {(0, 0)}
    assert line(record) not in path.read_bytes()


@pytest.mark.parametrize("value", [b"0", b"1", b"-65536", b'"65536"', b"1e5", b"null", b"true", b"9" * 19, b"[65536]"])
def test_chunks_of_a_senseless_size_are_not_gone_on_with(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "m.gguf.pull-journal"
    begin(path)
    head, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(line(head[17:].replace(b'"chunk_bytes":65536', b'"chunk_bytes":' + value)) + rest)

    journal = PullJournal(path)
    known = journal.start(IDENTITY, {"repo": "o/n"}, 65536)
    journal.close()

    assert (known.chunk_bytes, known.chunks) == (65536, {})


def test_a_file_of_somebody_s_under_the_journal_s_name_is_not_cut_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf.pull-journal"
    path.write_bytes(b"Dear diary, ")
    journal = PullJournal(path)

    with pytest.raises(UsageError, match="is no journal of a pull; move it away"):
        journal.start(IDENTITY, {}, 65536, fresh=True)

    journal.close()
    assert path.read_bytes() == b"Dear diary, "


def test_the_origin_that_a_foreign_journal_claims_does_not_speak_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf.pull-journal"
    first = {"schema": "dfqs.pull-journal/2", "fingerprint": "0" * 64, "origin": {"repo": "\x1b[2J\x9b"}}
    path.write_bytes(line(json.dumps(first, separators=(",", ":")).encode()))
    journal = PullJournal(path)

    with pytest.raises(UsageError, match="another pull") as refused:
        journal.start(IDENTITY, {}, 65536)
    journal.close()

    assert str(refused.value).isprintable()


@pytest.fixture
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    shards, merged = write_repository(tmp_path_factory.mktemp("repository"))
    with FakeHub(files={path.name: path.read_bytes() for path in shards}) as hub:
        yield Repository(hub, shards, merged)


def test_a_journal_whose_claims_are_all_lies_costs_only_fetching(repository: Repository, tmp_path: Path) -> None:
    plan = repository.plan()
    out = tmp_path / "m.gguf"
    journal = PullJournal(out.with_name("m.gguf.pull-journal"))
    journal.start(plan.identity(), {}, plan.chunk_bytes)
    for index in range(5):
        for chunk in range(60):
            journal.record_chunk(index, chunk, "0" * 64)
        journal.record_verified(index)
    journal.close()
    with out.with_name("m.gguf.part").open("wb") as file:
        os.truncate(file.fileno(), plan.file_bytes)

    repository.pull(out, plan)

    assert out.read_bytes() == repository.merged


def test_a_journal_s_memory_is_bounded_and_so_is_a_line_s(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf.pull-journal"
    begin(path)
    with path.open("ab") as file:
        file.truncate(60 << 20)  # a line without end
    code = (
        "from pathlib import Path\nfrom dfqs.pull.journal import PullJournal\n"
        f"print(len(PullJournal(Path({str(path)!r})).start({IDENTITY!r}, {{}}, 65536).chunks))"
    )
    limited = peak_under_limit(code)

    assert (limited.returncode, limited.stdout.strip()) == (0, "1"), limited.stderr
    assert limited.peak_bytes < LIMIT_BYTES // 3


def test_more_chunks_than_any_pull_has_end_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CHUNKS * (16 << 20) > 700 * 10**9
    monkeypatch.setattr(journal_module, "MAX_CHUNKS", 10)
    path = tmp_path / "m.gguf.pull-journal"
    begin(path)
    journal = PullJournal(path)
    journal.start(IDENTITY, {}, 65536)
    for chunk in range(10):
        for file in range(4):
            journal.record_chunk(file, chunk, "a" * 64)
    journal.close()

    again = PullJournal(path)
    known = again.start(IDENTITY, {}, 65536)
    again.close()

    assert len(known.chunks) <= 11


@pytest.mark.thorough
@pytest.mark.parametrize("seed", ["lost", "kept", 1, 2, 3])
def test_power_cut_anywhere_leaves_no_claim_that_was_not_made_and_no_journal_that_is_refused(seed: str | int) -> None:
    """Claims are not synced, so any of them may be lost; those that are left stand for what was written."""
    path = Path("/d/m.gguf.pull-journal")

    def work(disk: MemoryDisk) -> Progressed:
        journal = PullJournal(path, disk=disk)  # type: ignore[arg-type]
        known = journal.start(IDENTITY, {"repo": "o/n"}, 65536)
        for file in range(3):
            for chunk in range(12):
                if (file, chunk) not in known.chunks:
                    journal.record_chunk(file, chunk, f"{file * 100 + chunk:064x}")
            if file == 1:
                journal.record_dropped(1, 5)
                journal.record_chunk(1, 5, f"{105:064x}")
            journal.record_verified(file)
        journal.close()
        return known

    whole = MemoryDisk()
    work(whole)
    for point in range(len(whole.log)):
        disk = MemoryDisk(power_fails_at=point)
        with pytest.raises(PowerLoss):
            work(disk)
        verified = sum(what == "sync" for what in disk.log) - 1
        chosen = random.Random(f"{point}/{seed}") if isinstance(seed, int) else None
        disk = disk.crash(chosen, keep_all=seed == "kept")
        known = work(disk)

        assert all(sha256 == f"{file * 100 + chunk:064x}" for (file, chunk), sha256 in known.chunks.items())
        assert set(range(max(verified, 0))) <= known.verified <= {0, 1, 2}
        assert work(disk).verified == {0, 1, 2} and len(work(disk).chunks) == 36


def test_what_0_1_left_unfinished_is_named_and_goes_with_restart(repository: Repository, tmp_path: Path) -> None:
    left = tmp_path / "m.gguf.part.journal"
    left.write_bytes(b'0123abcd {"schema":"dfqs.pull-journal/1","identity":"f"}\n')
    left.with_name("m.gguf.part").write_bytes(b"half a model")

    with pytest.raises(UsageError, match=r"left by an unfinished pull of dfqs 0\.1; .*--restart"):
        repository.pull(tmp_path / "m.gguf")
    assert left.exists()
