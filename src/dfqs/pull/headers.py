"""Headers of remote files, read by ranges, within limits that no model comes near and no lie gets past."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from dfqs.errors import FormatError, ShardError, UsageError, printable
from dfqs.gguf import Header, parse_header
from dfqs.gguf.layout import MAGIC
from dfqs.gguf.shard import SPLIT_COUNT
from dfqs.pull.hub import Hub, Listing
from dfqs.pull.ranges import RangeClient, RemoteSource
from dfqs.pull.retry import RetryPolicy
from dfqs.pull.selection import Choice, choose, describe_choices

FIRST_LIMIT_BYTES = 160 << 20
"""Read of the first header at most; a vocabulary of 260,000 tokens with merges makes 20 MB."""
LATER_LIMIT_BYTES = 8 << 20
"""A later shard has tensor descriptions alone: 100 bytes each."""
MAX_TENSORS = 200_000
"""Of all shards together. A model with every expert a tensor of its own has some 50,000; a description in memory takes
ten times its bytes in the file."""
MAX_KEYS = 65_536


def read_remote_headers(
    hub: Hub,
    repo: str,
    *,
    revision: str = "main",
    pattern: str | None = None,
    retry: RetryPolicy | None = None,
    connections: int = 8,
) -> tuple[Listing, Choice, tuple[Header, ...]]:
    """The headers of the model that is meant, one for each of its files, in order.

    Raises:
        UsageError: no such repository, no permission, or several models are meant.
        ShardError: the set of shards is incomplete.
        FormatError: a header lies.
        NetworkError: the Hub cannot be reached.
        IntegrityError: a header larger than any model's.
    """
    listing = hub.list_repo(repo, revision)
    choice = choose(listing, pattern)
    budget = _Budget()
    with (
        RangeClient(hub, listing, retry=retry, connections=connections) as client,
        ThreadPoolExecutor(max_workers=connections, thread_name_prefix="header") as pool,
    ):
        try:
            # The first alone: where it is broken, the others are not asked for.
            source = RemoteSource(client, choice.files if choice.joined else choice.files[:1], FIRST_LIMIT_BYTES)
            first = _read_header(source, budget)
            choice = settle(choice, first)
            if not choice.sharded:
                # Pieces have one header between them, and that is read.
                return listing, choice, (replace(first, file_size=choice.file_bytes),)
            later = pool.map(
                lambda file: _read_header(RemoteSource(client, (file,), LATER_LIMIT_BYTES), budget), choice.files[1:]
            )
            return listing, choice, (first, *later)
        except BaseException:
            # Leaving the pool waits for its threads: end what they wait for.
            pool.shutdown(wait=False, cancel_futures=True)
            client.abort()
            raise


class _Budget:
    """How many tensors and keys may still come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tensors = MAX_TENSORS
        self._keys = MAX_KEYS

    def spend(self, name: str, tensors: int, keys: int) -> None:
        with self._lock:
            self._tensors -= tensors
            self._keys -= keys
            if self._tensors < 0 or self._keys < 0:
                message = f"claims {tensors:,} tensors and {keys:,} keys; no model has so many in all its files"
                raise FormatError(message, path=printable(name))


def settle(choice: Choice, first: Header) -> Choice:
    """What a group of numbered files is, now that the header of the first has been read.

    Raises:
        UsageError: they are several models.
        ShardError: they are shards, but not named as shards.
    """
    if choice.joined or len(choice.files) == 1:
        return replace(choice, numbered=False)
    cut_short = first.end_of_data > first.file_size
    if cut_short and first.metadata.get(SPLIT_COUNT, 0) == 0 and first.end_of_data == choice.file_bytes:
        return replace(choice, joined=True, numbered=False)
    if not choice.numbered:
        return choice
    if first.metadata.get(SPLIT_COUNT, 0) not in (0, 1):
        raise ShardError(
            f"{len(choice.files):,} shards, which are not named like PREFIX-00001-of-00003.gguf, as shards must be to "
            "be put together; fetch its files, rename them and `dfqs merge` them",
            path=printable(choice.name),
            name=SPLIT_COUNT,
        )
    listed = describe_choices([Choice(file.name, (file,), 1) for file in choice.files])
    raise UsageError("these are models of their own; add the name of one:", *listed)


def _read_header(source: RemoteSource, budget: _Budget) -> Header:
    head = source.read_at(0, 24)
    if head[:4] == MAGIC and len(head) == 24:
        budget.spend(source.name, int.from_bytes(head[8:16], "little"), int.from_bytes(head[16:24], "little"))
    return parse_header(source)
