"""A merge's journal can have come with a folder: what it says is done only when this user's dfqs wrote it."""

import base64
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.errors import DfqsError, IntegrityError, UsageError
from dfqs.inplace import abort_merge, is_unfinished, merge_inplace, plan_inplace, resume_merge
from dfqs.inplace.execute import Place, begin
from dfqs.inplace.job import Job
from dfqs.inplace.journal import KIND, SCHEMA, Journal, journal_path, unfinished_beside, working_path
from dfqs.shards import plan_merge
from dfqs.storage.disk import LocalDisk
from dfqs.storage.lines import encode_line
from dfqs.storage.seal import Sealer, key_path
from inplace_cases import assert_tensors, shards_fixture  # noqa: F401 - fixtures
from memory_limits import LIMIT_BYTES, peak_under_limit
from shard_inputs import sha256


@pytest.fixture(autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path_factory.mktemp("cache")))


def unfinished(shards: list[Path], out: Path) -> dict[str, Any]:
    """A merge cut off when it was ready; its job as the journal has it."""
    journal = begin(LocalDisk(), plan_inplace(plan_merge(shards[0]), out, "consume").job, Place(out, shards[0].parent))
    journal.close()
    return {"schema": SCHEMA, "owner": os.geteuid(), **journal.job.to_json()}


def write_records(out: Path, *records: Any) -> None:
    """A journal that is sealed as it should be, whatever it says."""
    data, seal = b"", ""
    for record in records:
        line, seal = encode_line(record, seal, sealer=KIND.sealer())
        data += line
    journal_path(out).write_bytes(data)


def snapshot(folder: Path) -> dict[str, str]:
    return {str(path): sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_strangers_journal_does_not_have_a_file_of_the_folder_deleted(tmp_path: Path) -> None:
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(b"anything")
    (tmp_path / "thesis.docx").write_bytes(b"x" * 1200)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(96))
    sources = [
        {"name": "m-00001-of-00002.gguf", "bytes": 1, "tail_sha256": ""},
        {"name": "thesis.docx", "bytes": 1200, "tail_sha256": ""},
    ]
    job = {"mode": "consume", "freeing": "punch", "file_bytes": 100, "header_bytes": 4, "header_sha256": "0"}
    records = [
        {"schema": SCHEMA, **job, "copies": [], "sources": sources, "resident": None},
        {"state": "sealed", "copy": 0, "done": 0},
    ]
    data = b""
    for record in records:
        rest = b"0" * 32 + b" " + json.dumps(record, separators=(",", ":")).encode()
        data += hashlib.sha256(rest).hexdigest()[:16].encode() + b" " + rest + b"\n"
    (tmp_path / "m.gguf.merge-journal").write_bytes(data)
    before = snapshot(tmp_path)

    for option in ("--consume", "--in-place", "--abort"):
        assert run(["merge", str(tmp_path / "m-00001-of-00002.gguf"), option]) == 3

    assert snapshot(tmp_path) == before


def test_journal_of_ours_that_names_other_files_than_the_shards_is_refused(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    job = unfinished(shards, out)
    (shards[0].parent / "thesis.docx").write_bytes(b"x" * job["sources"][1]["bytes"])
    job["sources"][1]["name"] = "thesis.docx"
    write_records(out, job, {"state": "ready", "copy": 0, "done": 0})
    before = snapshot(tmp_path)

    steps: tuple[Callable[[], object], ...] = (
        lambda: resume_merge(shards[0], out, "consume"),
        lambda: abort_merge(shards[0], out),
    )
    for step in steps:
        with pytest.raises(IntegrityError, match="names other files than the 3 shards"):
            step()

    assert snapshot(tmp_path) == before


def test_journal_whose_key_is_gone_is_refused_and_says_how_to_go_on(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    unfinished(shards, out)
    key_path().unlink()
    before = snapshot(tmp_path)

    with pytest.raises(IntegrityError, match=r"not written by this user's dfqs .*delete.*--trust-journal"):
        resume_merge(shards[0], out, "consume")
    with pytest.raises(IntegrityError, match=r"--trust-journal"):
        abort_merge(shards[0], out)

    assert snapshot(tmp_path) == before
    resume_merge(shards[0], out, "consume", trust_journal=True)
    assert_tensors(out)


def test_abort_of_a_trusted_journal_gives_the_shards_back(shards: list[Path], tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    unfinished(shards, tmp_path / "out.gguf")
    key_path().unlink()

    abort_merge(shards[0], tmp_path / "out.gguf", trust_journal=True)

    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("change", ["left out", "exchanged", "other key", "edited"])
def test_records_that_were_tampered_with_are_refused(change: str, shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    unfinished(shards, out)
    journal = Journal.open(LocalDisk(), out)
    assert journal is not None
    journal.note_stamps(0)
    journal.note_stamps(1)
    journal.close()
    lines = journal_path(out).read_bytes().rstrip(b"\0").splitlines(keepends=True)
    if change == "left out":
        del lines[1]
    elif change == "exchanged":
        lines[2:4] = lines[3:1:-1]
    elif change == "other key":
        key_path().write_bytes(os.urandom(32))
    else:
        rest = lines[1].split(b" ", 1)[1].replace(b"ready", b"sealed").rstrip(b"\n")
        lines[1] = hashlib.sha256(rest).hexdigest()[:16].encode() + b" " + rest + b"\n"
    journal_path(out).write_bytes(b"".join(lines))
    before = snapshot(tmp_path)

    with pytest.raises(IntegrityError, match="was not written by this user's dfqs"):
        resume_merge(shards[0], out, "consume")

    assert snapshot(tmp_path) == before


def test_no_merge_begins_without_a_place_for_the_key(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "file" / "cache"))
    before = snapshot(tmp_path)

    with pytest.raises(UsageError, match="set DFQS_CACHE"):
        merge_inplace(plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", "consume"))

    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_journal_that_is_no_file_is_a_sentence(
    make: Callable[[Path], None], shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    make(journal_path(out))

    assert is_unfinished(out)
    with pytest.raises(UsageError, match="no regular file"):
        resume_merge(shards[0], out, "consume")
    assert all(path.exists() for path in shards)


def test_link_named_like_a_journal_is_not_followed(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    precious = tmp_path / "precious"
    precious.write_bytes(b"")
    journal_path(out).symlink_to(precious)

    with pytest.raises(UsageError, match="no regular file"):
        resume_merge(shards[0], out, "consume")

    assert precious.exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_working_file_that_is_no_file_is_a_sentence(
    make: Callable[[Path], None], shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    unfinished(shards, out)
    working_path(out).unlink()
    make(working_path(out))

    with pytest.raises(DfqsError, match="is not the file that this merge made"):
        resume_merge(shards[0], out, "consume")


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 5000, b"0123", b"0123456789abcdef 01", b"0" * 16 + b" " + b"0" * 32 + b' {"f']
)
def test_journal_torn_before_it_counted_is_begun_anew(data: bytes, shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    journal_path(out).write_bytes(data)

    assert resume_merge(shards[0], out, "consume") is None
    assert not is_unfinished(out)


def test_file_that_is_no_torn_journal_is_not_removed(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    journal_path(out).write_bytes(b"my notes")

    with pytest.raises(IntegrityError, match="look at it and remove it"):
        resume_merge(shards[0], out, "consume")

    assert journal_path(out).read_bytes() == b"my notes"


def test_strangers_journal_is_no_reason_to_send_somebody_to_another_output(shards: list[Path]) -> None:
    out = shards[0].with_name("out.gguf")
    unfinished(shards, out)

    assert unfinished_beside(shards[0]) == out
    key_path().unlink()
    assert unfinished_beside(shards[0]) is None


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


def packed_zeroes(mebibytes: int) -> str:
    """As `packed`, out of one packed mebibyte repeated: this is made whichever test is run."""
    packer = zlib.compressobj()
    first, piece = (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    checksum = ((mebibytes << 20) % 65521 << 16 | 1).to_bytes(4, "big")
    return base64.b64encode(first + piece * (mebibytes - 1) + packer.flush()[:-4] + checksum).decode()


RESIDENT = {"shard": 0, "insert_at": 0, "gap": 0, "old_bytes": 1, "old_head": "", "old_tail": packed(b"")}
BROKEN: dict[str, dict[str, Any]] = {
    "sizes as text": {"file_bytes": "1"},
    "sizes as a fraction": {"file_bytes": 1.5},
    "a size that is true": {"header_bytes": True},
    "a negative size": {"header_bytes": -1},
    "a header longer than the file": {"header_bytes": 1 << 50},
    "no hash": {"header_sha256": [[]]},
    "sources as text": {"sources": ""},
    "no sources": {"sources": []},
    "a source that is a number": {"sources": [1]},
    "a source without fields": {"sources": [{}]},
    "no copies": {"copies": None},
    "a copy of text": {"copies": [[1, "AAAA", 1, 9000]]},
    "a copy of fractions": {"copies": [[1e300, 256, 2400, 2208]]},
    "a copy that is short": {"copies": [[1, 2]]},
    "a copy from no shard": {"copies": [[99, 0, 1, 1 << 20]]},
    "a copy from before the first shard": {"copies": [[-1, 480, 1, 672]]},
    "a copy from beyond a shard": {"copies": [[0, 1 << 40, 1, 1 << 20]]},
    "a copy to beyond the output": {"copies": [[0, 0, 1, 1 << 60]]},
    "a copy into the header": {"copies": [[0, 0, 1, 0]]},
    "a mode that is a list": {"mode": []},
    "a resident in consume": {"resident": RESIDENT},
    "a resident that is text": {"mode": "in-place", "resident": "x"},
    "a resident that is no shard": {"mode": "in-place", "resident": {**RESIDENT, "shard": 7}},
    "a header that is no base64": {"mode": "in-place", "resident": {**RESIDENT, "old_tail": "\N{SNOWMAN}"}},
    "a header that is not packed": {"mode": "in-place", "resident": {**RESIDENT, "old_tail": "AAAA"}},
    "a packed header that is cut": {"mode": "in-place", "resident": {**RESIDENT, "old_tail": packed(b"x" * 99)[:12]}},
    "a first 24 bytes that are none": {"mode": "in-place", "resident": {**RESIDENT, "old_head": "zz"}},
    "a header of gigabytes": {"mode": "in-place", "resident": {**RESIDENT, "old_tail": packed_zeroes(200)}},
}


@pytest.mark.thorough
@pytest.mark.parametrize("what", BROKEN)
def test_job_that_makes_no_sense_is_a_sentence_and_changes_nothing(
    what: str, shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    write_records(out, {**unfinished(shards, out), **BROKEN[what]}, {"state": "ready", "copy": 0, "done": 0})
    before = snapshot(tmp_path)

    steps: tuple[Callable[[], object], ...] = (
        lambda: resume_merge(shards[0], out, "consume"),
        lambda: abort_merge(shards[0], out),
    )
    for step in steps:
        with pytest.raises(IntegrityError, match="is no journal of a merge"):
            step()

    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "record",
    [
        {"state": "gone", "copy": 0, "done": 0},
        {"state": 7, "copy": 0, "done": 0},
        {"copy": 0},
        {"state": "moving", "copy": 99, "done": 0},
        {"state": "moving", "copy": -1, "done": 0},
        {"state": "moving", "copy": 0, "done": 1 << 60},
        {"state": "moving", "copy": True, "done": 0},
        {"state": "moving", "copy": 0.5, "done": 0},
        {"state": "moving", "copy": 0, "done": 0, "shard": 9, "sha256": "x"},
        {"state": "moving", "copy": 0, "done": 0, "shard": 0, "sha256": []},
        {"state": "moving", "copy": 0, "done": 0, "free": [0, 5, 1, 0]},
        {"state": "moving", "copy": 0, "done": 0, "free": {}},
        {"state": "ready", "copy": 0, "done": 0, "working": [1]},
        {"known": 9, "stamps": []},
        {"known": 0, "stamps": [{"inode": 1}]},
        {"refused": "x"},
        [],
        "text",
    ],
)
def test_record_that_makes_no_sense_is_a_sentence_and_changes_nothing(
    record: Any, shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    write_records(out, unfinished(shards, out), record)
    before = snapshot(tmp_path)

    with pytest.raises(IntegrityError, match=r"makes no sense|a record that is no object"):
        resume_merge(shards[0], out, "consume")

    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xa8",
        b"[" * 3000,
        b'{"state":' * 3000,
        b"NaN",
        b'{"state":Infinity}',
        b'{"state":"\\ud800"}',
        b"9" * 5000,
    ],
)
def test_text_that_is_no_usable_json_is_a_sentence(text: bytes, shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    first, seal = encode_line(unfinished(shards, out), sealer=KIND.sealer())
    sealed = Sealer("merge-journal").make_seal(seal.encode() + text).encode() + b" " + text
    line = hashlib.sha256(sealed).hexdigest()[:16].encode() + b" " + sealed + b"\n"
    journal_path(out).write_bytes(first + line)

    with pytest.raises(IntegrityError, match="is no journal of a merge"):
        resume_merge(shards[0], out, "consume")


@pytest.mark.thorough
def test_job_of_the_largest_model_comes_back_as_it_was(shards: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    job = unfinished(shards, out)
    job["sources"] = [
        {**job["sources"][0], "name": f"model-{number:05d}-of-03000.gguf", "bytes": 1 << 36}
        for number in range(1, 3001)
    ]
    end = job["header_bytes"]
    job["copies"] = [[n // 34, (n % 34) << 20, 1 << 20, end + (n << 20)] for n in range(100_000)]
    job["file_bytes"] = end + (100_000 << 20)
    write_records(out, job)

    journal = Journal.open(LocalDisk(), out)

    assert journal is not None and len(journal.job.copies) == 100_000
    assert journal.job == Job.from_json(json.loads(json.dumps(journal.job.to_json())))
    journal.close()


@pytest.mark.thorough
@pytest.mark.parametrize("filling", ["[],", '"ab",'])
def test_journal_of_the_largest_size_stays_within_the_limit_of_memory(
    filling: str, shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.gguf"
    text = f'{{"schema":"{SCHEMA}","copies":[{filling * ((23 << 20) // len(filling))}0]}}'.encode()
    rest = b"0" * 32 + b" " + text
    journal_path(out).write_bytes(hashlib.sha256(rest).hexdigest()[:16].encode() + b" " + rest + b"\n")

    command = ["merge", str(shards[0]), "-o", str(out), "--consume", "--trust-journal"]
    done = peak_under_limit([sys.executable, "-m", "dfqs", *command])

    assert done.returncode == 3, done.stderr
    assert done.peak_bytes < LIMIT_BYTES
    assert "Traceback" not in done.stderr and "out.gguf.merge-journal" in done.stderr
