"""The journal under all work that can be interrupted: what counts, what is cut off, and what is refused."""

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfqs.errors import DfqsError, FormatError, IntegrityError, SpaceError, UsageError
from dfqs.storage.disk import LocalDisk
from dfqs.storage.journal import Journal, JournalKind, read_header
from dfqs.storage.lines import encode_line
from dfqs.storage.seal import Sealer, key_path
from memory_disk import MemoryDisk, PowerLoss

FACTS = JournalKind(
    schema="dfqs.test-journal/2",
    work="test",
    busy="another dfqs is testing",
    give_up="give --restart",
    limit_bytes=1 << 20,
    line_bytes=1 << 14,
)
"""Records that cannot be made again: damage is refused."""
CLAIMS = replace(FACTS, is_claims=True)
"""Records that are checked before they count: damage costs work."""
SEALED = replace(FACTS, purpose="test-journal", reserved_bytes=3000)
SEALED_CLAIMS = replace(CLAIMS, purpose="test-journal")
KINDS = {"facts": FACTS, "claims": CLAIMS, "sealed": SEALED, "sealed claims": SEALED_CLAIMS}
PATH = Path("/d/out.gguf.test-journal")


@pytest.fixture(autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=KINDS, name="kind")
def kind_fixture(request: pytest.FixtureRequest) -> JournalKind:
    return KINDS[request.param]


def record(number: int) -> dict[str, Any]:
    # Some are longer than a block, so that a line stands in several.
    return {"number": number, "text": "x" * (5000 if number % 7 == 3 else 40 + number)}


def write(disk: Any, kind: JournalKind, count: int, *, durable: Callable[[int], bool] = lambda _: True) -> int:
    """A journal of `count` records; how many of them are durable for certain."""
    journal = Journal.create(disk, PATH, kind)
    journal.begin({"about": 1}, fingerprint="f")
    for number in range(count):
        journal.append(record(number), durable=durable(number))
    journal.close()
    return count


def records_of(disk: Any, kind: JournalKind, path: Path = PATH, **read: Any) -> list[dict[str, Any]] | None:
    """What counts, without the header; None where there is no journal."""
    journal = Journal.open(disk, path, kind)
    if journal is None:
        return None
    found: list[dict[str, Any]] = []

    def take(number: int, record: dict[str, Any]) -> bool:
        found.append(record)
        return True

    try:
        return found[1:] if journal.read(take, **{"fingerprint": "f", **read}) else None
    finally:
        journal.close()


def changed(kind: JournalKind, change: Callable[[list[bytes]], None]) -> MemoryDisk:
    """A journal of six records, with something done to its lines."""
    disk = MemoryDisk()
    write(disk, kind, 6)
    lines = disk.contents(PATH).rstrip(b"\0").splitlines(keepends=True)
    change(lines)
    disk.unlink(PATH)
    disk.add(PATH, b"".join(lines))
    return disk


def test_what_was_written_is_read_again_and_written_on(kind: JournalKind) -> None:
    disk = MemoryDisk()
    write(disk, kind, 9)
    assert records_of(disk, kind) == [record(number) for number in range(9)]

    journal = Journal.open(disk, PATH, kind)  # type: ignore[arg-type]
    assert journal is not None and journal.read(lambda number, record: True)
    journal.append(record(9))
    journal.close()

    assert records_of(disk, kind) == [record(number) for number in range(10)]


@pytest.mark.thorough
@pytest.mark.parametrize("sync_every", [1, 3])
def test_power_cut_after_every_operation_loses_no_durable_record_and_never_refuses(
    kind: JournalKind, sync_every: int
) -> None:
    whole = MemoryDisk()
    write(whole, kind, 12, durable=lambda number: number % sync_every == 0)
    for point in range(len(whole.log)):
        for seed in range(-2, 8):
            disk = MemoryDisk(power_fails_at=point)
            durable = [-1]

            def sync(number: int, durable: list[int] = durable) -> bool:
                durable.append(number - 1)
                return number % sync_every == 0

            with pytest.raises(PowerLoss):
                write(disk, kind, 12, durable=sync)
            after = disk.crash(random.Random(f"{point}/{seed}") if seed >= 0 else None, keep_all=seed == -2)
            found = records_of(after, kind)
            certain = max((number for number in durable if number % sync_every == 0), default=-1) + 1
            if found is None:
                assert certain <= 0 or PATH not in after.names
                continue
            assert found == [record(number) for number in range(len(found))] and len(found) >= certain

            journal = Journal.open(after, PATH, kind)  # type: ignore[arg-type]
            assert journal is not None and journal.read(lambda number, record: True)
            journal.append(record(len(found)))
            journal.close()
            assert records_of(after, kind) == [record(number) for number in range(len(found) + 1)]


@pytest.mark.parametrize("kept", range(0, 60, 7))
def test_torn_last_line_is_ignored_and_written_over(kind: JournalKind, kept: int) -> None:
    def tear(lines: list[bytes]) -> None:
        lines[-1] = lines[-1][:kept]

    disk = changed(kind, tear)

    assert records_of(disk, kind) == [record(number) for number in range(5)]
    journal = Journal.open(disk, PATH, kind)  # type: ignore[arg-type]
    assert journal is not None and journal.read(lambda number, record: True)
    journal.append(record(5))
    journal.close()
    assert records_of(disk, kind) == [record(number) for number in range(6)]


def flip(lines: list[bytes]) -> None:
    lines[3] = lines[3][:-5] + bytes([lines[3][-5] ^ 1]) + lines[3][-4:]


def zero(lines: list[bytes]) -> None:
    lines[2:4] = [bytes(len(lines[2]) + len(lines[3]) - 4), lines[3][-4:]]


def split(lines: list[bytes]) -> None:
    lines[3] = lines[3][:30] + b"\n" + lines[3][30:]


@pytest.mark.parametrize("damage", [flip, zero, split])
def test_damage_in_the_middle_is_refused_or_costs_what_follows(
    damage: Callable[[list[bytes]], None], kind: JournalKind
) -> None:
    disk = changed(kind, damage)
    before = disk.contents(PATH)

    if kind.is_claims:
        found = records_of(disk, kind)
        assert found == [record(number) for number in range(1 if damage is zero else 2)]
        assert disk.contents(PATH) == before[: len(disk.contents(PATH))]
    else:
        with pytest.raises(IntegrityError, match=r"damaged at byte [\d,]+; nothing is changed"):
            records_of(disk, kind)
        assert disk.contents(PATH) == before


@pytest.mark.parametrize("kind", [SEALED, SEALED_CLAIMS], ids=["sealed", "sealed claims"])
@pytest.mark.parametrize("change", ["left out", "exchanged", "of another journal", "other key"])
def test_record_that_is_not_ours_in_its_place_is_not_believed(change: str, kind: JournalKind) -> None:
    other = MemoryDisk()
    write(other, replace(kind, reserved_bytes=0), 2)

    def tamper(lines: list[bytes]) -> None:
        if change == "left out":
            del lines[2]
        elif change == "exchanged":
            lines[2:4] = lines[3:1:-1]
        elif change == "of another journal":
            lines[2] = encode_line(record(1), sealer=Sealer("another"))[0]
        else:
            key_path().write_bytes(os.urandom(32))

    disk = changed(kind, tamper)

    if kind.is_claims:
        assert records_of(disk, kind) == (None if change == "other key" else [record(0)])
    else:
        with pytest.raises(IntegrityError, match=r"not written by this user's dfqs .*--trust-journal"):
            records_of(disk, kind)
    if change == "other key":
        assert records_of(disk, kind, trusted=True) is not None


def test_journal_of_other_work_is_refused_and_says_how_to_give_up(kind: JournalKind) -> None:
    disk = MemoryDisk()
    write(disk, kind, 2)

    with pytest.raises(UsageError, match=r"is of another test; finish that one, or give --restart"):
        records_of(disk, kind, fingerprint="g")


OLDER = [
    b'0123456789abcdef {"schema":"dfqs.test-journal/1","fingerprint":"f"}\n',
    b'0123456789abcdef 0123456789abcdef0123456789abcdef {"format":"dfqs.merge-journal/2","owner":0}\n{"x":1}\n',
    b'{"format": "dfqs.quantize-journal/1", "fingerprint": "f"}\n{"tensor": "a"}\n',
    b'0123abcd {"schema":"dfqs.pull-journal/1","identity":"f"}\n',
    encode_line({"schema": "dfqs.other-journal/2", "fingerprint": "f"})[0],
]


@pytest.mark.parametrize("data", OLDER, ids=range(len(OLDER)))
def test_journal_of_another_version_or_verb_is_refused_with_a_sentence_and_stays(
    data: bytes, kind: JournalKind
) -> None:
    disk = MemoryDisk()
    disk.add(PATH, data)
    if kind.purpose is not None and data == OLDER[4]:
        pytest.skip("no line of a sealed kind")

    with pytest.raises(IntegrityError, match=r"has the format dfqs\.[a-z-]+/\d, and this version .*give --restart"):
        records_of(disk, kind)

    assert disk.contents(PATH) == data


@pytest.mark.parametrize("data", [b"Dear diary, ", b"my notes\n" * 500, b"\x7fELF\0\0", b'{"schema": "other/1"}\n'])
def test_file_of_somebody_s_is_neither_read_nor_cut(data: bytes, kind: JournalKind) -> None:
    disk = MemoryDisk()
    disk.add(PATH, data)

    with pytest.raises(DfqsError, match=r"no journal of a test; (move it away|look at it and remove it)"):
        records_of(disk, kind)
    journal = Journal.open(disk, PATH, kind)  # type: ignore[arg-type]
    assert journal is not None
    with pytest.raises(DfqsError, match="no journal of a test"):
        journal.begin({})

    assert disk.contents(PATH) == data


@pytest.mark.parametrize("data", [b"", bytes(5000), b"0123", b"0123456789abcdef ", b'0123456789abcdef {"sch'])
def test_journal_torn_before_it_counted_is_begun_anew(data: bytes, kind: JournalKind) -> None:
    disk = MemoryDisk()
    disk.add(PATH, data)
    assert records_of(disk, kind) is None

    journal = Journal.open(disk, PATH, kind)  # type: ignore[arg-type]
    assert journal is not None
    journal.begin({}, fingerprint="f")
    journal.append(record(0))
    journal.close()

    assert records_of(disk, kind) == [record(0)]


@pytest.mark.parametrize(
    "text",
    [b"[" * 3000, b"[]", b"7", b"NaN", b'{"a":1e999}', b'{"a":"\\ud800"}', b"\xff", b"9" * 5000, b"{" + b"," * 9],
)
def test_record_that_is_no_usable_object_is_refused_or_ends_the_claims(text: bytes) -> None:
    line = hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n"
    for kind in (FACTS, CLAIMS):
        disk = changed(kind, lambda lines: lines.insert(3, line))
        if kind.is_claims:
            assert records_of(disk, kind) == [record(0), record(1)]
        else:
            with pytest.raises(IntegrityError, match="is no journal of a test"):
                records_of(disk, kind)


def test_size_of_a_journal_and_of_a_line_are_bounded(kind: JournalKind) -> None:
    disk = MemoryDisk()
    write(disk, kind, 1)
    journal = Journal.open(disk, PATH, kind)  # type: ignore[arg-type]
    assert journal is not None and journal.read(lambda number, record: True)
    with pytest.raises(UsageError, match="more than can be read again"):
        journal.append({"text": "x" * kind.line_bytes})
    journal.close()
    disk.inodes[disk.names[PATH]].live.truncate(kind.limit_bytes + 1)

    with pytest.raises(FormatError, match="larger than the 1,048,576 bytes"):
        records_of(disk, kind)


def test_full_disk_is_a_sentence_and_what_was_written_stays(kind: JournalKind) -> None:
    disk = MemoryDisk()
    disk.capacity_blocks = 3
    with pytest.raises(SpaceError, match="free some space and run the same command again"):
        write(disk, kind, 90)
    # The process that failed is gone, and its locks with it.
    disk = disk.crash(None, keep_all=True)

    found = records_of(disk, kind)

    assert found and found == [record(number) for number in range(len(found))]


def test_two_processes_never_have_the_same_journal(tmp_path: Path, kind: JournalKind) -> None:
    disk, path = LocalDisk(), tmp_path / "j"
    with pytest.raises(UsageError, match="another dfqs is testing"):
        first = Journal.create(disk, path, kind)
        Journal.open(disk, path, kind, wait_s=0.1)
    with pytest.raises(FileExistsError):
        Journal.create(disk, path, kind)
    first.close()
    second = Journal.open(disk, path, kind)
    assert second is not None
    second.remove()
    assert not path.exists() and Journal.open(disk, path, kind) is None


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_file_is_not_waited_for(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "j")

    with pytest.raises(UsageError, match="no regular file"):
        Journal.open(LocalDisk(), tmp_path / "j", FACTS)
    assert read_header(LocalDisk(), tmp_path / "j", FACTS) is None


def test_header_begins_with_the_schema_and_can_be_looked_at_without_the_lock(kind: JournalKind) -> None:
    disk = MemoryDisk()
    write(disk, kind, 1)

    header = read_header(disk, PATH, kind)  # type: ignore[arg-type]

    assert header is not None and list(header.items()) == [("schema", kind.schema), ("fingerprint", "f"), ("about", 1)]
    assert read_header(disk, PATH, replace(kind, schema="dfqs.other/1")) is None  # type: ignore[arg-type]


PLAIN = replace(FACTS, is_plain=True)


@pytest.mark.parametrize("sync_every", [1, 3])
def test_plain_lines_lose_no_durable_record_either(sync_every: int) -> None:
    def work(disk: MemoryDisk) -> None:
        journal = Journal.open_or_create(disk, PATH, PLAIN)  # type: ignore[arg-type]
        journal.read(lambda number, record: True)
        disk.sync_directory(PATH.parent)
        for number in range(10):
            journal.append(record(number), durable=number % sync_every == 0)
        journal.sync()

    whole = MemoryDisk()
    work(whole)
    assert whole.contents(PATH).startswith(b'{"number": 0, "text": "xxx')
    for point in range(len(whole.log)):
        for seed in range(8):
            disk = MemoryDisk(power_fails_at=point)
            with pytest.raises(PowerLoss):
                work(disk)
            synced = sum(what == "sync" for what in disk.log)
            after = disk.crash(random.Random(f"{point}/{seed}") if seed else None)
            found: list[dict[str, Any]] = []
            journal = Journal.open_or_create(after, PATH, PLAIN)  # type: ignore[arg-type]

            def take(number: int, record: dict[str, Any], found: list[dict[str, Any]] = found) -> bool:
                found.append(record)
                return True

            journal.read(take)
            assert found == [record(number) for number in range(len(found))]
            assert len(found) >= (synced if sync_every == 1 else 1 if synced else 0)
