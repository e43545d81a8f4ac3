"""One shard as its header describes it, and the reading of a whole set."""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import FormatError, ShardError, UsageError
from dfqs.gguf import FileSource, Header, HeaderBudget, TensorInfo, layout_problems, parse_header, read_header
from dfqs.gguf.shard_names import MAX_SHARDS, ShardName, parse_shard_name, shard_paths
from dfqs.storage.identity import FileStamp, settled_stamp

SPLIT_NO = "split.no"
SPLIT_COUNT = "split.count"
SPLIT_TENSORS_COUNT = "split.tensors.count"
SPLIT_KEYS = (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS_COUNT)
STALE_COUNT_FIX = "`dfqs repair MODEL -o OUT` sets split.count to 0, as in a whole model"
_LAYER = re.compile(r"blk\.(\d+)\.")
NAMED_MISSING = 3
"""So many missing shards are named one by one; a set may claim 65,535."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: where it is, and its header. What it holds has been checked against its own bytes only."""

    source: str
    """Path or address."""
    header: Header
    stamp: FileStamp | None = None
    """Which local file it was when the header was read."""

    @property
    def path(self) -> Path:
        """Where it lies, for a local shard."""
        return Path(self.source)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return self.header.tensors

    def split_number(self, key: str) -> int | None:
        """The value of one of the `split.` keys.

        Raises:
            ShardError: it is not a whole number.
        """
        value = self.header.metadata.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ShardError("must be a whole number", path=self.source, name=key)
        return value


def read_shards(first: Path) -> tuple[Shard, ...]:
    """Read the headers of a whole set of local shards, given the first.

    Raises:
        ShardError: not a shard, a shard is missing, truncated, or has bytes after its last tensor.
        UsageError: a later shard was given in place of the first, or a file cannot be read.
        FormatError: a header lies.
    """
    budget = HeaderBudget()
    shard = _read_shard(Path(first), budget)
    try:
        count = read_shard_count(shard)
    except ShardError:
        if pieces := importlib.import_module("dfqs.gguf.pieces").find_raw_pieces(Path(first)):
            raise ShardError(
                f"is the first of {len(pieces.paths)} raw pieces of one file, not a shard; "
                f"`dfqs repair {Path(first).name} -o OUT` joins them",
                path=first,
            ) from None
        raise
    paths = shard_paths(Path(first), count)
    try:
        refuse_missing(paths)
    except ShardError as error:
        if not is_whole_model(shard.header, Path(first)):
            raise
        whole = f"or, as the first has every tensor, it is a whole model, not a shard: {STALE_COUNT_FIX}"
        raise ShardError(f"{error.detail}; {whole}", path=error.path) from None
    check_layout(shard)
    shards = [shard]
    for path in paths[1:]:
        later = _read_shard(path, budget)
        check_layout(later)
        shards.append(later)
    return tuple(shards)


def _read_shard(path: Path, budget: HeaderBudget) -> Shard:
    with FileSource(path) as source:
        # Before the header: what is written meanwhile shows as a change.
        stamp = settled_stamp(source.fileno())
        try:
            return Shard(str(path), parse_header(source, budget=budget), stamp)
        except FormatError as error:
            raise importlib.import_module("dfqs.gguf.foreign").explained(source, error) from None


def read_model_shards(path: Path) -> tuple[Shard, ...]:
    """The shards of the model that `path` begins; a whole file counts as a set of one.

    Raises:
        ShardError, UsageError, FormatError: as `read_shards`, and where the file's own layout is not sound.
    """
    header = read_header(path)
    if (header.metadata.find(SPLIT_COUNT) is None) or header.metadata.integer(SPLIT_COUNT) in (0, 1):
        return (Shard(str(path), header),)
    if is_whole_model(header, Path(path)):
        return (Shard(str(path), header),)
    return read_shards(path)


def is_whole_model(header: Header, path: Path) -> bool:
    """Whether a file that calls itself the first of several shards holds the whole model: the key is left over.

    It is, where it has all tensors by its own count; and where it is not even named as a shard and every layer is
    there, with what comes before and after the layers.
    """
    metadata = header.metadata
    if (metadata.integer(SPLIT_COUNT) or 0) < 2 or metadata.integer(SPLIT_NO):
        return False
    declared = metadata.integer(SPLIT_TENSORS_COUNT)
    if declared == len(header.tensors):
        return True
    if parse_shard_name(path.name) is not None:
        return False
    layers = metadata.integer(f"{metadata.text('general.architecture')}.block_count")
    present = {int(match[1]) for tensor in header.tensors if (match := _LAYER.match(tensor.name))}
    complete = bool(present) and layers == len(present) == max(present) + 1
    return complete and header.has_tensor("token_embd.weight") and any("output_norm" in t.name for t in header.tensors)


def read_shard_count(shard: Shard) -> int:
    """How many shards the set has, by the first one's keys and name.

    Raises:
        ShardError: not a shard, or named for another set than its keys say.
        UsageError: it is not the first shard.
    """
    count = shard.split_number(SPLIT_COUNT)
    name = parse_shard_name(Path(shard.source).name)
    # Named as the first of so many, the key is not left over: later shards may hold no tensor.
    in_its_set = name is not None and (name.number, name.count) == (1, count)
    if not in_its_set and is_whole_model(shard.header, Path(shard.source)):
        raise ShardError(f"a whole model, not a shard; {STALE_COUNT_FIX}", path=shard.source, name=SPLIT_COUNT)
    if count is None or count == 0:
        kind = "a whole model, not a shard" if count == 0 or name is None else "named as a shard but is none"
        hint = "" if count == 0 or name is None else "; `dfqs repair` joins raw pieces made by `split -b`"
        raise ShardError(f"{kind} (split.count is {'missing' if count is None else 0}){hint}", path=shard.source)
    if not 1 <= count <= MAX_SHARDS:
        raise ShardError(f"{count} shards; a set has 1 to {MAX_SHARDS:,}", path=shard.source, name=SPLIT_COUNT)
    number = shard.split_number(SPLIT_NO)
    if number is None:
        raise ShardError("the key is missing; this is not a shard", path=shard.source, name=SPLIT_NO)
    if name is None:
        example = ShardName("PREFIX", 1, count)
        raise ShardError(f"a shard must be named like {example}, so that the others are found", path=shard.source)
    if number != 0:
        first = name.sibling(1)
        raise UsageError(f"{shard.source} is shard {number + 1} of {count}; give the first one, {first}")
    if (name.number, name.count) != (1, count):
        raise ShardError(
            f"its name says shard {name.number} of {name.count}, its keys say 1 of {count}; was it renamed?",
            path=shard.source,
        )
    return count


def refuse_missing(paths: list[Path]) -> None:
    """Name what is missing before anything large is read.

    Raises:
        ShardError: at least one shard is not there.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        named = ", ".join(path.name for path in missing[:NAMED_MISSING])
        more = f" and {len(missing) - NAMED_MISSING:,} more" if len(missing) > NAMED_MISSING else ""
        raise ShardError(f"{len(missing):,} of {len(paths):,} shards missing: {named}{more}", path=paths[0].parent)


def check_layout(shard: Shard) -> None:
    """Make sure that a shard's tensors lie where llama.cpp expects them, and that nothing comes after them.

    Raises:
        ShardError: truncated, gaps or overlaps, or trailing bytes.
    """
    for problem in layout_problems(shard.header):
        raise ShardError(problem.detail, path=problem.path, offset=problem.offset, name=problem.name)
    extra = shard.header.file_size - max(shard.header.end_of_data, shard.header.data_offset)
    if extra > 0:
        raise ShardError(
            f"{extra:,} bytes stand after its last tensor, which no writer of shards leaves; `dfqs verify` says what "
            f"they are, and `truncate -s {shard.header.end_of_data}` removes them",
            path=shard.source,
            offset=shard.header.end_of_data,
        )


def iter_tensors(shards: tuple[Shard, ...]) -> Iterator[tuple[int, TensorInfo]]:
    """(index of shard, tensor) in the order of the merged file."""
    for index, shard in enumerate(shards):
        for tensor in shard.tensors:
            yield index, tensor
