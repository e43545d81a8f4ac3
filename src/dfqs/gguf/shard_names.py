"""How shards are named: `PREFIX-00001-of-00003.gguf`, as llama.cpp's `llama_split_path` writes and expects it.

Names of other shards follow from the name of the first and the number of shards; nothing inside a file ever becomes
part of a path.
"""

import re
from dataclasses import dataclass
from pathlib import Path

MAX_SHARDS = 65535
"""`split.count` is a 16-bit number."""

_NAME = re.compile(r"(.+)-(\d{5,10})-of-(\d{5,10})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ShardName:
    """One shard's place in a set. `number` counts from 1, as in the name."""

    prefix: str
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.prefix}-{self.number:05d}-of-{self.count:05d}.gguf"

    def sibling(self, number: int) -> "ShardName":
        """The name of another shard of the set."""
        return ShardName(self.prefix, number, self.count)


def parse_shard_name(name: str) -> ShardName | None:
    """The parts of a file name (no directory), or None when it is no shard's name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    found = ShardName(match[1], int(match[2]), int(match[3]))
    return found if str(found) == name and 1 <= found.number <= found.count else None


def shard_paths(first: Path, count: int) -> list[Path]:
    """Where the shards of a set lie, the first one's path given.

    Raises:
        ValueError: `first` is not named as a shard.
    """
    name = parse_shard_name(first.name)
    if name is None:
        raise ValueError(f"{first.name} is not the name of a shard")
    base = ShardName(name.prefix, 1, count)
    return [first.with_name(str(base.sibling(number))) for number in range(1, count + 1)]


def merged_path(first: Path) -> Path:
    """Where the merged file goes when nothing else is said: `PREFIX.gguf` beside the shards."""
    name = parse_shard_name(first.name)
    return first.with_name(f"{name.prefix}.gguf" if name else f"{first.stem}.merged.gguf")


def files_of(path: Path) -> list[Path]:
    """The file itself, and where its name is a shard's all files of that set that are there."""
    name = parse_shard_name(path.name)
    if name is None:
        return [path]
    # By what stands there, not by counting: a name can claim any number of shards.
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    return [path, *(other for other in beside if _is_sibling(parse_shard_name(other.name), name))]


def _is_sibling(other: ShardName | None, name: ShardName) -> bool:
    return other is not None and (other.prefix, other.count) == (name.prefix, name.count)
