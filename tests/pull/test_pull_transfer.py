"""Pull against a server that misbehaves in every way that servers do: never a wrong file reported as right."""

import hashlib
import time
from pathlib import Path

import pytest

from dfqs.errors import IntegrityError, NetworkError
from dfqs.integrity import verify_against
from dfqs.pull import forget_pull, plan_pull
from hub_server import FakeHub, Reply, Request
from pull_cases import CHUNK_BYTES, HASTY, Repository, single_model

SHARD_2 = "model-00002-of-00003.gguf"


def nothing_left(out: Path) -> bool:
    return not [path for path in out.parent.iterdir() if path.name.startswith(out.name)]


def test_a_pull_gives_the_bytes_of_a_merge_and_fetches_each_byte_once(repository: Repository, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    plan = repository.plan()

    result = repository.pull(out, plan)
    forget_pull(out)

    assert out.read_bytes() == repository.merged
    assert verify_against(out, repository.shards[0]).equal
    assert repository.hub.sent_bytes == repository.remote_bytes == result.fetched_bytes
    assert list(tmp_path.iterdir()) == [out]


def test_headers_cost_little_beside_the_model(repository: Repository) -> None:
    plan_pull(repository.client(), repository.hub.repo, retry=HASTY)

    # 64 KiB for each of three shards, whatever their size: nothing on a real model.
    assert repository.hub.sent_bytes <= 3 * (64 << 10) + 3 * 24


def test_a_single_file_is_fetched_as_it_is(tmp_path: Path) -> None:
    data = single_model()
    with FakeHub(files={"model-Q8_0.gguf": data, "README.md": b"x"}) as hub:
        repository = Repository(hub, [], data)
        repository.pull(tmp_path / "m.gguf")

    assert (tmp_path / "m.gguf").read_bytes() == data


def test_a_file_outside_large_file_storage_is_checked_by_its_git_hash(tmp_path: Path) -> None:
    data = single_model()
    with FakeHub(files={"m.gguf": data}, git_files=frozenset({"m.gguf"})) as hub:
        repository = Repository(hub, [], data)
        repository.pull(tmp_path / "good.gguf")
        hub.trouble = flip_always("m.gguf", 1000)
        with pytest.raises(IntegrityError, match="git:"):
            repository.pull(tmp_path / "bad.gguf")

    assert (tmp_path / "good.gguf").read_bytes() == data
    assert not (tmp_path / "bad.gguf").exists()


def test_dropped_connections_are_gone_on_with_from_the_byte_reached(repository: Repository, tmp_path: Path) -> None:
    def drop(request: Request, reply: Reply) -> None:
        if request.number % 3 == 0:
            reply.send_bytes = len(reply.body) // 2

    plan = repository.plan()
    repository.hub.trouble = drop
    repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged
    # What had arrived is not asked for again.
    assert repository.hub.sent_bytes <= repository.remote_bytes * 1.05


def test_a_truncated_body_that_claims_to_be_whole_is_not_taken_for_the_range(
    repository: Repository, tmp_path: Path
) -> None:
    def shorten(request: Request, reply: Reply) -> None:
        if request.number in (1, 4, 7):
            reply.body = reply.body[: len(reply.body) // 3]

    plan = repository.plan()
    repository.hub.trouble = shorten
    repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


@pytest.mark.thorough
def test_a_stall_is_given_up_and_the_rest_asked_for_again(repository: Repository, tmp_path: Path) -> None:
    def stall(request: Request, reply: Reply) -> None:
        if request.number == 2:
            reply.stall_after = 20_000

    plan = repository.plan()
    repository.hub.trouble = stall
    repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


@pytest.mark.thorough
def test_a_connection_that_trickles_is_given_up_though_it_never_stalls(repository: Repository, tmp_path: Path) -> None:
    def trickle(request: Request, reply: Reply) -> None:
        reply.trickle = request.number == 2

    plan = repository.plan()
    repository.hub.trouble = trickle
    repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


@pytest.mark.thorough
def test_a_server_that_only_trickles_ends_the_run_and_what_came_is_kept(repository: Repository, tmp_path: Path) -> None:
    def trickle(request: Request, reply: Reply) -> None:
        reply.trickle = request.number > 10

    plan = repository.plan()
    repository.hub.trouble = trickle
    with pytest.raises(NetworkError, match=r"only \d+ bytes came in \d+ s, on 5 connections"):
        repository.pull(tmp_path / "m.gguf", plan)

    repository.hub.trouble = None
    assert repository.pull(tmp_path / "m.gguf", plan).reused_bytes > 0
    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


@pytest.mark.thorough
@pytest.mark.parametrize("address", ["", "http://" + "a" * 20_000, "file:///etc/passwd"])
def test_storage_that_redirects_for_ever_or_elsewhere_ends_in_a_sentence(
    repository: Repository, tmp_path: Path, address: str
) -> None:
    def redirect(request: Request, reply: Reply) -> None:
        location = address or f"/blob/{request.name}?signature=1"
        reply.status, reply.body, reply.headers = 302, b"", {"Location": location}

    plan = repository.plan()
    repository.hub.trouble = redirect
    with pytest.raises(NetworkError, match="no byte came in 5 attempts"):
        repository.pull(tmp_path / "m.gguf", plan)

    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_asks_for_a_pause_gets_it_on_every_connection(
    repository: Repository, tmp_path: Path, status: int
) -> None:
    refused_at: list[float] = []
    times: list[float] = []

    def refuse(request: Request, reply: Reply) -> None:
        times.append(time.monotonic())
        if not refused_at:
            refused_at.append(time.monotonic())
            reply.status, reply.body, reply.headers = status, b"", {"Retry-After": "1"}

    plan = repository.plan()
    repository.hub.trouble = refuse
    repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged
    # Requests that were on their way apart, all wait for the second that was asked for.
    late = [t for t in times if refused_at[0] + 0.5 < t < refused_at[0] + 0.95]
    assert not late


def test_an_expired_address_is_resolved_again(repository: Repository, tmp_path: Path) -> None:
    plan = repository.plan()
    repository.hub.valid_uses = 5
    repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged
    assert max(repository.hub.resolved.values()) > 2


def test_an_address_that_never_works_ends_with_a_sentence(repository: Repository, tmp_path: Path) -> None:
    plan = repository.plan()
    repository.hub.valid_uses = 0

    with pytest.raises(NetworkError, match=r"5 attempts \(HTTP 403.*goes on from here"):
        repository.pull(tmp_path / "m.gguf", plan)

    assert not (tmp_path / "m.gguf").exists()


def test_a_server_that_ignores_range_is_streamed_once_and_not_a_chunk_at_a_time(
    repository: Repository, tmp_path: Path
) -> None:
    plan = repository.plan()

    def ignore(request: Request, reply: Reply) -> None:
        reply.status = 200
        reply.headers.pop("Content-Range")
        reply.body = repository.hub.files[request.name]

    repository.hub.trouble = ignore
    repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged
    # Three connections find out at once, each at the price of what was in flight.
    assert len(repository.hub.data_requests) <= 3 + 3 * 3


def test_a_plan_can_be_made_where_range_is_ignored(repository: Repository) -> None:
    def ignore(request: Request, reply: Reply) -> None:
        reply.status = 200
        reply.headers.pop("Content-Range", None)
        reply.body = repository.hub.files[request.name]

    repository.hub.trouble = ignore

    assert repository.plan().file_bytes == len(repository.merged)


def test_another_range_than_asked_for_is_never_written(repository: Repository, tmp_path: Path) -> None:
    def shift(request: Request, reply: Reply) -> None:
        if request.number in (0, 3) and request.start:
            data = repository.hub.files[request.name]
            reply.body = data[: len(reply.body)]
            reply.headers["Content-Range"] = f"bytes 0-{len(reply.body) - 1}/{len(data)}"

    plan = repository.plan()
    repository.hub.trouble = shift
    result = repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged
    assert result.refetched_chunks == ()


@pytest.mark.thorough
@pytest.mark.parametrize("claimed", ["bytes garbage", "bytes 0-" + "9" * 5000 + "/" + "9" * 5000, "bytes ²-³/*"])
def test_a_range_that_cannot_be_read_is_another_range(repository: Repository, tmp_path: Path, claimed: str) -> None:
    def lie(request: Request, reply: Reply) -> None:
        if request.number == 3:
            reply.headers["Content-Range"] = claimed

    plan = repository.plan()
    repository.hub.trouble = lie
    repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


def test_a_proxys_login_page_is_called_one(repository: Repository, tmp_path: Path) -> None:
    def portal(request: Request, reply: Reply) -> None:
        reply.status, reply.body, reply.headers = 200, b"<html>log in</html>", {"Content-Type": "text/html"}

    plan = repository.plan()
    repository.hub.trouble = portal
    with pytest.raises(NetworkError, match="a web page came in its place"):
        repository.pull(tmp_path / "m.gguf", plan)


def test_wrong_bytes_in_one_range_are_found_named_and_fetched_again(repository: Repository, tmp_path: Path) -> None:
    place = 5 * CHUNK_BYTES + 77

    def flip(request: Request, reply: Reply) -> None:
        if request.name == SHARD_2 and request.start <= place < request.end and request.attempt == 0:
            body = bytearray(reply.body)
            body[place - request.start] ^= 1
            reply.body = bytes(body)

    plan = repository.plan()
    repository.hub.trouble = flip
    result = repository.pull(tmp_path / "m.gguf", plan)

    assert (tmp_path / "m.gguf").read_bytes() == repository.merged
    (named,) = result.refetched_chunks
    assert named == f"{SHARD_2} bytes {5 * CHUNK_BYTES:,} to {6 * CHUNK_BYTES:,} had come wrong"
    # The other shards were not fetched again.
    assert repository.hub.sent_bytes == repository.remote_bytes + len(repository.hub.files[SHARD_2])


def flip_always(name: str, place: int) -> "Flip":
    return Flip(name, place)


class Flip:
    """One byte is wrong whenever it is asked for."""

    def __init__(self, name: str, place: int) -> None:
        self.name, self.place = name, place

    def __call__(self, request: Request, reply: Reply) -> None:
        if request.name == self.name and request.start <= self.place < request.end:
            body = bytearray(reply.body)
            body[self.place - request.start] ^= 1
            reply.body = bytes(body)


def test_bytes_that_stay_wrong_are_refused_and_nothing_is_published(repository: Repository, tmp_path: Path) -> None:
    plan = repository.plan()
    repository.hub.trouble = flip_always(SHARD_2, 200_000)

    with pytest.raises(IntegrityError, match=rf"{SHARD_2}.*promises sha256:.*twice.*nothing was published"):
        repository.pull(tmp_path / "m.gguf", plan)

    assert not (tmp_path / "m.gguf").exists()
    repository.hub.trouble = None
    repository.pull(tmp_path / "m.gguf", plan)
    assert (tmp_path / "m.gguf").read_bytes() == repository.merged


def test_a_wrong_byte_in_padding_or_in_a_shard_s_header_is_seen_too(repository: Repository, tmp_path: Path) -> None:
    plan = repository.plan()
    repository.hub.trouble = flip_always(SHARD_2, 30)

    with pytest.raises(IntegrityError, match=SHARD_2):
        repository.pull(tmp_path / "m.gguf", plan)


def test_a_hash_that_the_hub_never_had_is_refused(repository: Repository, tmp_path: Path) -> None:
    repository.hub.promised[SHARD_2] = "00" * 32

    with pytest.raises(IntegrityError, match="promises sha256:0000"):
        repository.pull(tmp_path / "m.gguf")


def test_a_file_that_changes_between_ranges_is_noticed_when_it_changes(repository: Repository, tmp_path: Path) -> None:
    plan = repository.plan()
    changed = bytearray(repository.hub.files[SHARD_2])
    changed[-1000:] = bytes(1000)

    def change(request: Request, reply: Reply) -> None:
        if request.name == SHARD_2 and request.start > 2 * CHUNK_BYTES:
            repository.hub.files[SHARD_2] = bytes(changed)

    repository.hub.trouble = change
    with pytest.raises(IntegrityError, match="changed on the Hub while it was fetched"):
        repository.pull(tmp_path / "m.gguf", plan)

    assert not (tmp_path / "m.gguf").exists()


def test_a_file_that_changes_while_the_hub_says_it_did_not_is_caught_by_its_hash(
    repository: Repository, tmp_path: Path
) -> None:
    plan = repository.plan()
    repository.hub.promised[SHARD_2] = hashlib.sha256(repository.hub.files[SHARD_2]).hexdigest()
    changed = bytearray(repository.hub.files[SHARD_2])
    changed[-1000:] = bytes(1000)

    def change(request: Request, reply: Reply) -> None:
        if request.name == SHARD_2 and request.start > 2 * CHUNK_BYTES:
            repository.hub.files[SHARD_2] = bytes(changed)

    repository.hub.trouble = change
    with pytest.raises(IntegrityError, match="twice"):
        repository.pull(tmp_path / "m.gguf", plan)


@pytest.mark.parametrize("change", [-100, 100])
def test_a_file_of_another_length_than_planned_is_refused(repository: Repository, tmp_path: Path, change: int) -> None:
    plan = repository.plan()
    data = repository.hub.files[SHARD_2]
    repository.hub.files[SHARD_2] = data[:change] if change < 0 else data + bytes(change)

    with pytest.raises(IntegrityError, match=r"changed on the (Hub|server)"):
        repository.pull(tmp_path / "m.gguf", plan)
