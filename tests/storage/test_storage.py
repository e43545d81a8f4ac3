"""Writes are whole or not there, whatever happens in between."""

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dfqs.errors import FormatError, SpaceError, UsageError
from dfqs.records import Record, canonical_json, read_json, sha256_of, write_json
from dfqs.storage.atomic import atomic_writer, partial_path, write_bytes_atomic


def test_exception_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_writer(tmp_path / "f") as file:
        file.write(b"half")
        raise RuntimeError

    assert list(tmp_path.iterdir()) == []


def test_file_that_appears_while_another_is_written_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "f"

    with pytest.raises(UsageError, match="appeared"), atomic_writer(target) as file:
        file.write(b"ours")
        target.write_bytes(b"theirs")

    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_killed_writer_leaves_no_file_under_the_name_and_the_next_run_removes_its_rest(tmp_path: Path) -> None:
    target = tmp_path / "f"
    code = f"""
        import time
        from pathlib import Path
        from dfqs.storage.atomic import atomic_writer
        with atomic_writer(Path({str(target)!r})) as file:
            file.write(b"half"); file.flush()
            print("writing", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert len(list(tmp_path.iterdir())) == 1

    write_bytes_atomic(tmp_path / "other", b"")  # somebody else's write does not touch it
    with atomic_writer(target) as file:  # nor does a second writer of the same name while the first one lives
        file.write(b"second")
    assert len([p for p in tmp_path.iterdir() if p.name.endswith(".partial")]) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert target.read_bytes() == b"second"

    write_bytes_atomic(target, b"whole", overwrite=True)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "other"]
    assert target.read_bytes() == b"whole"


@pytest.mark.parametrize("name", ["模" * 83 + ".gguf", "m" * 250 + ".gguf", "\U0001f9ea" * 62 + "abcdefg"])
def test_longest_name_that_a_disk_takes_is_written(tmp_path: Path, name: str) -> None:
    write_bytes_atomic(tmp_path / name, b"whole")

    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("one", "other"), [("m" * 240 + "a", "m" * 240 + "b"), ("m" * 90, "m" * 91), ("m.gguf", "m")])
def test_what_a_living_writer_is_at_is_not_taken_for_what_another_name_left(
    tmp_path: Path, one: str, other: str
) -> None:
    # As a split has them: in use, and with no lock of their own.
    left = partial_path(tmp_path / one, "00000000-0")
    left.write_bytes(b"x")
    write_bytes_atomic(tmp_path / other, b"whole")
    assert left.exists()

    write_bytes_atomic(tmp_path / one, b"whole")

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([one, other])


def test_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="disk is full"), atomic_writer(tmp_path / "f") as file:
        file.write(b"x")
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    assert list(tmp_path.iterdir()) == []


def test_directory_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"), atomic_writer(tmp_path / "no" / "f"):
        pass
    with pytest.raises(UsageError, match="is a directory"), atomic_writer(tmp_path):
        pass


def test_file_permissions_follow_the_umask_as_for_any_other_program(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes_atomic(tmp_path / "f", b"x")
    finally:
        os.umask(before)

    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


class Sample(Record):
    name: str
    count: int


def test_record_with_an_unknown_key_is_refused_and_says_which(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, Sample(name="a", count=1))
    assert read_json(path, Sample) == Sample(name="a", count=1)

    path.write_text('{"name": "a", "count": 1, "extra": 2}')

    with pytest.raises(FormatError, match=r"not a valid Sample: extra"):
        read_json(path, Sample)


def test_canonical_form_does_not_depend_on_key_order() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()
    assert sha256_of({"a": 1, "b": 2}) == sha256_of({"b": 2, "a": 1})


def test_not_a_number_never_gets_into_a_hash() -> None:
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})


def test_locked_partial_of_a_living_process_is_told_from_an_abandoned_one(tmp_path: Path) -> None:
    abandoned = tmp_path / ".f.00000000.partial"
    abandoned.write_bytes(b"rest")

    write_bytes_atomic(tmp_path / "f", b"x")

    assert not abandoned.exists()


def test_writer_whose_partial_was_taken_for_abandoned_before_it_was_locked_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    removed: list[Path] = []

    def remove_first(handle: int, operation: int) -> None:
        if not removed and operation == fcntl.LOCK_EX:
            removed.extend(tmp_path.glob(".*.partial"))
            removed[0].unlink()
        lock(handle, operation)

    monkeypatch.setattr("fcntl.flock", remove_first)
    write_bytes_atomic(tmp_path / "out", b"whole")

    assert removed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == b"whole"
