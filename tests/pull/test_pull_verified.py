"""What gets a model's name is what was verified: storage that lies once, writers behind a running pull, kills."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_pull_selection import point_to

from dfqs.cli.main import run
from dfqs.errors import IntegrityError, UsageError
from dfqs.model.hashes import ModelDigest, hash_model
from dfqs.pull import PullResult, forget_pull, pull
from dfqs.pull import output as output_module
from dfqs.storage.atomic import publish_file
from hub_server import FakeHub, Reply, Request
from pull_cases import HASTY, Repository, single_model

SHARD_1 = "model-00001-of-00003.gguf"


def pull_recorded(repository: Repository, out: Path, **options: object) -> PullResult:
    plan = options.pop("plan", None) or repository.plan()
    return pull(
        plan,  # type: ignore[arg-type]
        repository.client(),
        out,
        connections=3,
        retry=HASTY,
        use_cache=False,
        recorder_for=ModelDigest,
        **options,  # type: ignore[arg-type]
    )


class LieInPlanning:
    """What is read for planning has some bytes in place of others; everything later is right."""

    def __init__(self, old: bytes, new: bytes) -> None:
        assert len(old) == len(new)
        self.old, self.new, self.told = old, new, 0
        self.planning = True

    def __call__(self, request: Request, reply: Reply) -> None:
        if self.planning and self.old in reply.body:
            reply.body = reply.body.replace(self.old, self.new)
            self.told += 1


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"llama.context_length\x04\x00\x00\x00\x80", b"llama.context_length\x04\x00\x00\x00\x40"),
        (b"blk.0.attn_norm.weight", b"blk.9.attn_norm.weight"),
        (b"blk.5.odd.bias", b"blk.5.eve.bias"),
    ],
)
def test_a_header_that_lied_once_while_planning_does_not_get_into_the_model_or_its_manifest(
    repository: Repository, tmp_path: Path, old: bytes, new: bytes
) -> None:
    lie = LieInPlanning(old, new)
    repository.hub.trouble = lie
    plan = repository.plan()
    lie.planning = False

    result = pull_recorded(repository, tmp_path / "m.gguf", plan=plan)

    assert lie.told == 1
    assert (tmp_path / "m.gguf").read_bytes() == repository.merged
    assert any("header that the pull was planned with had come wrong" in line for line in result.refetched_chunks)
    assert isinstance(result.recorder, ModelDigest)
    assert result.recorder.result() == hash_model(tmp_path / "m.gguf")


def test_a_header_that_put_bytes_in_wrong_places_ends_the_pull_and_the_same_command_begins_anew(
    repository: Repository, tmp_path: Path
) -> None:
    # 33 numbers and 40 take the same room where offsets are multiples of 32: nothing else in the plan contradicts it.
    before = b"blk.0.odd.bias" + (1).to_bytes(4, "little")
    lie = LieInPlanning(before + (33).to_bytes(8, "little"), before + (40).to_bytes(8, "little"))
    repository.hub.trouble = lie
    plan = repository.plan()
    lie.planning = False
    assert lie.told == 1

    with pytest.raises(IntegrityError, match=r"another header when the pull was planned.*begins anew"):
        pull_recorded(repository, tmp_path / "m.gguf", plan=plan)

    assert list(tmp_path.iterdir()) == []
    pull_recorded(repository, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


def test_a_lie_when_going_on_is_found_too(repository: Repository, tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None = None, note: str = "") -> None:
        if done > repository.remote_bytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_recorded(repository, tmp_path / "m.gguf", progress=interrupt)
    lie = LieInPlanning(b"blk.0.attn_norm.weight", b"blk.9.attn_norm.weight")
    repository.hub.trouble = lie
    plan = repository.plan()
    lie.planning = False

    assert pull_recorded(repository, tmp_path / "m.gguf", plan=plan).reused_bytes
    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


@pytest.mark.parametrize("git", [False, True])
def test_a_single_file_s_header_is_held_against_the_plan(tmp_path: Path, git: bool) -> None:
    data = single_model()
    with FakeHub(files={"m.gguf": data}, git_files=frozenset({"m.gguf"} if git else ())) as hub:
        repository = Repository(hub, [], data)
        lie = LieInPlanning(b"blk.0.odd.bias", b"blk.0.eve.bias")
        hub.trouble = lie
        plan = repository.plan()
        lie.planning = False
        result = pull_recorded(repository, tmp_path / "m.gguf", plan=plan)

    assert lie.told
    assert (tmp_path / "m.gguf").read_bytes() == data
    assert isinstance(result.recorder, ModelDigest)
    assert result.recorder.result() == hash_model(tmp_path / "m.gguf")


def write_through_another_handle(part: Path) -> None:
    with part.open("r+b") as file:
        file.seek(part.stat().st_size // 3)
        file.write(b"stranger")


def write_and_set_the_time_back(part: Path) -> None:
    status = part.stat()
    write_through_another_handle(part)
    os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_rename(part: Path) -> None:
    other = part.with_name("other")
    other.write_bytes(part.read_bytes())
    write_through_another_handle(other)
    other.rename(part)


def write_into_padding(part: Path) -> None:
    # The last bytes of the model are padding of an odd-sized tensor or data; either way they are not those hashed.
    with part.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\1\1\1")


def cut_short(part: Path) -> None:
    os.truncate(part, 5000)


FOREIGN_WRITES = [write_through_another_handle, replace_by_rename, write_into_padding, cut_short]


@pytest.mark.thorough
@pytest.mark.parametrize("write", [*FOREIGN_WRITES, write_and_set_the_time_back])
@pytest.mark.parametrize("moment", ["last fetched", "checking", "before the name"])
def test_a_part_that_another_program_wrote_to_is_never_published(
    repository: Repository, tmp_path: Path, write: Callable[[Path], None], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (write, moment) == (write_and_set_the_time_back, "before the name"):
        pytest.skip("in the moment of the renaming the time of writing is all there is to see it by")
    out = tmp_path / "m.gguf"
    plan = repository.plan()
    done_once: list[int] = []

    def strike() -> None:
        if not done_once:
            done_once.append(1)
            write(output_module.part_path(out))

    def fetching(done: int, total: int | None = None, note: str = "") -> None:
        if moment == "last fetched" and done == total:
            strike()

    def checking(done: int, total: int | None = None, note: str = "") -> None:
        if moment == "checking" and done == total:
            strike()

    plain = publish_file

    def publish(*args: Any, **options: Any) -> None:
        if moment == "before the name":
            strike()
        plain(*args, **options)

    monkeypatch.setattr(output_module, "publish_file", publish)
    try:
        pull_recorded(repository, out, plan=plan, progress=fetching, checking=checking)
    except Exception as error:
        assert isinstance(error, IntegrityError | UsageError) or "cut short" in str(error)
    assert done_once
    assert not out.exists() or out.read_bytes() == repository.merged
    monkeypatch.setattr(output_module, "publish_file", plain)
    pull_recorded(repository, out)
    assert out.read_bytes() == repository.merged


def test_a_finished_model_is_done_already_whatever_is_left_beside_it(repository: Repository, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    pull_recorded(repository, out)
    with_all = pull_recorded(repository, out)
    forget_pull(out)
    repository.hub.reset_counts()
    with_nothing = pull_recorded(repository, out)

    assert with_all.done_already and with_nothing.done_already
    assert repository.hub.sent_bytes == 0
    out.write_bytes(bytes(len(repository.merged)))
    with pytest.raises(UsageError, match="exists already"):
        pull_recorded(repository, out)


def test_a_finished_model_with_a_stranger_s_header_is_not_called_done(repository: Repository, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    pull_recorded(repository, out)
    out.write_bytes(repository.merged.replace(b"blk.0.odd.bias", b"blk.0.eve.bias"))

    with pytest.raises(IntegrityError, match="changed since it was pulled"):
        pull_recorded(repository, out)


def test_after_a_kill_past_the_naming_the_same_command_writes_the_manifest_and_says_done_already(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point_to(repository.hub, monkeypatch)
    out = tmp_path / "m.gguf"
    pull_recorded(repository, out)

    assert run(["pull", "owner/model", "-o", str(out), "--no-cache"]) == 0
    assert "done already" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "m.gguf.manifest.json").read_text())
    assert manifest["file_sha256"] == hash_model(out).file_sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "m.gguf.manifest.json"]
    assert run(["verify", str(out), "--manifest", str(tmp_path / "m.gguf.manifest.json")]) == 0


@pytest.mark.parametrize("suffix", ["", ".part", ".part.rest", ".pull-journal", ".manifest.json"])
def test_a_pipe_under_a_name_that_a_pull_writes_is_refused_and_nobody_waits_for_it(
    repository: Repository, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(repository.hub, monkeypatch)
    pipe = tmp_path / f"m.gguf{suffix}"
    os.mkfifo(pipe)

    assert run(["pull", "owner/model", "-o", str(tmp_path / "m.gguf"), "--no-cache"]) == 2

    assert pipe.is_fifo()
    assert not (tmp_path / "m.gguf").is_file()


def test_a_manifest_that_is_there_is_not_replaced(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_to(repository.hub, monkeypatch)
    (tmp_path / "m.gguf.manifest.json").write_text("the publisher's own")

    assert run(["pull", "owner/model", "-o", str(tmp_path / "m.gguf"), "--no-cache"]) == 2

    assert (tmp_path / "m.gguf.manifest.json").read_text() == "the publisher's own"
