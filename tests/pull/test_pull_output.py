"""What a pull leaves on the disk, whom it trusts, and how it goes on: files, locks, tokens, room."""

import hashlib
import threading
from pathlib import Path

import pytest

from dfqs.errors import NetworkError, SpaceError, UsageError
from dfqs.pull import RetryPolicy, plan_pull, pull
from hub_server import FakeHub, Reply, Request
from pull_cases import CHUNK_BYTES, HASTY, Repository

SHARD_2 = "model-00002-of-00003.gguf"


def test_a_server_that_dies_for_good_leaves_what_was_fetched_for_the_next_run(
    repository: Repository, tmp_path: Path
) -> None:
    plan = repository.plan()

    def die(request: Request, reply: Reply) -> None:
        if request.number >= 20:
            reply.send_bytes = 0

    repository.hub.trouble = die
    with pytest.raises(NetworkError, match="goes on from here"):
        repository.pull(tmp_path / "m.gguf", plan)
    first = repository.hub.sent_bytes
    repository.hub.trouble = None
    repository.hub.reset_counts()
    result = repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged
    assert first + repository.hub.sent_bytes <= repository.remote_bytes + 3 * CHUNK_BYTES
    assert result.reused_bytes + result.fetched_bytes == repository.remote_bytes


def test_what_the_disk_lost_since_is_fetched_again_and_the_rest_is_not(repository: Repository, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    plan = repository.plan()

    def die(request: Request, reply: Reply) -> None:
        if request.number >= 12:
            reply.send_bytes = 0

    repository.hub.trouble = die
    with pytest.raises(NetworkError):
        repository.pull(out, plan)
    part = out.with_name("m.gguf.part")
    with part.open("r+b") as file:
        # As a power loss does: the journal says that it is written, the disk never had it.
        file.seek(plan.layouts[0].pieces[1].offset + 10_000)
        file.write(bytes(64))
    repository.hub.trouble = None
    result = repository.pull(out, plan)

    assert out.read_bytes() == repository.merged
    assert [line for line in result.refetched_chunks if "not on the disk as recorded" in line]


def test_a_resume_with_other_chunks_goes_on_with_those_it_began_with(repository: Repository, tmp_path: Path) -> None:
    def die(request: Request, reply: Reply) -> None:
        if request.number >= 12:
            reply.send_bytes = 0

    repository.hub.trouble = die
    with pytest.raises(NetworkError):
        repository.pull(tmp_path / "m.gguf")
    repository.hub.trouble = None

    result = repository.pull(tmp_path / "m.gguf", repository.plan(3 * CHUNK_BYTES))

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged
    assert result.reused_bytes > 0
    assert result.reused_bytes + result.fetched_bytes == repository.remote_bytes


def test_a_lost_part_file_is_not_believed_to_be_there(repository: Repository, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    plan = repository.plan()

    def die(request: Request, reply: Reply) -> None:
        if request.name == "model-00003-of-00003.gguf":
            reply.send_bytes = 0

    repository.hub.trouble = die
    with pytest.raises(NetworkError):
        repository.pull(out, plan)
    assert b'"verified":0' in out.with_name("m.gguf.pull-journal").read_bytes()
    out.with_name("m.gguf.part").unlink()
    repository.hub.trouble = None

    repository.pull(out, plan)

    assert out.read_bytes() == repository.merged


def test_an_interrupt_ends_a_pull_at_once_even_when_every_connection_stalls(
    repository: Repository, tmp_path: Path
) -> None:
    plan = repository.plan()
    stalled = threading.Event()

    def stall(request: Request, reply: Reply) -> None:
        reply.stall_after = 100
        if request.number >= 2:
            stalled.set()

    def interrupt(done: int, total: int | None = None, note: str = "") -> None:
        if stalled.is_set():
            raise KeyboardInterrupt

    repository.hub.trouble = stall
    retry = RetryPolicy(stall_s=60)
    with pytest.raises(KeyboardInterrupt):
        pull(
            plan,
            repository.client(),
            tmp_path / "m.gguf",
            connections=3,
            retry=retry,
            use_cache=False,
            progress=interrupt,
        )

    assert not [t for t in threading.enumerate() if t.name.startswith("pull-")]


def test_the_token_goes_to_the_hub_and_never_to_the_storage(made: tuple[list[Path], bytes], tmp_path: Path) -> None:
    shards, merged = made
    with FakeHub(files={path.name: path.read_bytes() for path in shards}, token="hf_secret") as hub:
        repository = Repository(hub, shards, merged)
        client = repository.client("hf_secret")
        plan = plan_pull(client, hub.repo, retry=HASTY, connections=2)
        pull(plan, client, tmp_path / "m.gguf", retry=HASTY, use_cache=False)

        assert (tmp_path / "m.gguf").read_bytes() == merged
        assert set(hub.storage_tokens) == {None}


def test_an_output_that_exists_is_not_touched_and_nothing_is_fetched(repository: Repository, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"mine")
    plan = repository.plan()

    with pytest.raises(UsageError, match="exists already"):
        repository.pull(out, plan)

    assert out.read_bytes() == b"mine"
    assert repository.hub.sent_bytes == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_disk_without_room_is_found_before_a_byte_of_data(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    plan = repository.plan()
    usage = SimpleNamespace(total=10, used=9, free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    with pytest.raises(SpaceError, match=r"1 B free, .* are needed; nothing was fetched"):
        repository.pull(tmp_path / "m.gguf", plan)

    assert repository.hub.sent_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_between_the_check_and_the_taking_of_space_leaves_nothing(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from dfqs.pull import output

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    plan = repository.plan()
    monkeypatch.setattr(output, "fallocate", full)

    with pytest.raises(SpaceError, match="disk is full"):
        repository.pull(tmp_path / "m.gguf", plan)

    assert repository.hub.sent_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_two_pulls_of_one_output_do_not_write_into_each_other(repository: Repository, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    plan = repository.plan()
    failures: list[str] = []

    def second(done: int, total: int | None = None, note: str = "") -> None:
        if not failures:
            with pytest.raises(UsageError) as refused:
                repository.pull(out, plan)
            failures.append(str(refused.value))

    pull(plan, repository.client(), out, connections=2, retry=HASTY, use_cache=False, progress=second)

    assert "another dfqs pull" in failures[0]
    assert out.read_bytes() == repository.merged


@pytest.mark.parametrize("suffix", [".part", ".part.rest", ".pull-journal"])
def test_a_link_planted_under_a_working_file_s_name_is_not_written_through(
    repository: Repository, tmp_path: Path, suffix: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f"m.gguf{suffix}").symlink_to(victim)

    with pytest.raises((UsageError, OSError)):
        repository.pull(tmp_path / "m.gguf")

    assert victim.read_bytes() == b"precious"


def test_another_programs_part_file_is_not_written_over(repository: Repository, tmp_path: Path) -> None:
    other = tmp_path / "m.gguf.part"
    other.write_bytes(b"half a download by another program")

    with pytest.raises(UsageError, match=r"m\.gguf\.part is in the way and belongs to no pull"):
        repository.pull(tmp_path / "m.gguf")

    assert other.read_bytes() == b"half a download by another program"
    assert [path.name for path in tmp_path.glob("m.gguf*")] == ["m.gguf.part"]
    repository.pull(tmp_path / "m.gguf", restart=True)
    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


def test_an_unfinished_pull_of_other_files_is_not_mixed_with_these(repository: Repository, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    plan = repository.plan()

    def die(request: Request, reply: Reply) -> None:
        if request.number > 6:
            reply.send_bytes = 0

    repository.hub.trouble = die
    with pytest.raises(NetworkError):
        repository.pull(out, plan)
    repository.hub.trouble = None
    changed = bytearray(repository.hub.files[SHARD_2])
    changed[-1000:] = bytes(1000)
    repository.hub.files[SHARD_2] = bytes(changed)
    other = repository.plan()

    with pytest.raises(UsageError, match=r"another pull.*--restart"):
        repository.pull(out, other)
    repository.pull(out, other, restart=True)

    assert hashlib.sha256(out.read_bytes()).hexdigest() != hashlib.sha256(repository.merged).hexdigest()
