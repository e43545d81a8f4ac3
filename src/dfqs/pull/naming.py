"""What the names of a repository's files say: shards, numbered files that may be shards, pieces of one file.

Names only group files; whether a group is a set of shards, one file in pieces or several models is read off the header
of its first file.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from dfqs.gguf.shard_names import MAX_SHARDS, parse_shard_name

_NUMBERED = re.compile(
    r"(?P<before>.+?[-._]?(?:part|split|piece)?[-._]?)(?<!\d)(?P<number>\d{1,10})(?P<after>[-._]?of[-._]?(?P<count>\d{1,10})\.gguf)",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
"""`m-1-of-3.gguf`, `m-00000-of-00002.gguf`, `m-00001-of-00002.GGUF`, `m.part1of3.gguf`."""
_PIECE = re.compile(
    r"(?P<before>.+\.gguf[-._]?(?:part|split|piece)?[-._]?)(?P<number>\d{1,5}|[a-z]{1,3})"
    r"(?P<after>(?:[-._]?of[-._]?(?P<count>\d{1,5}))?)",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
"""`m.gguf.aa`, `m.gguf.001`, `m.gguf.part1of3`, `m.gguf-split-b`."""
_GGUF_END = re.compile(r".+\.gguf", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """A file's place in a group of files."""

    group: str
    """The path with `*` (or `?`) in place of the number: the same for every file of the group, and a pattern for it."""
    number: int
    """Counts from 0 or 1 as the names do; letters count from 0."""
    count: int | None
    """How many files the name says there are."""
    kind: str
    """"shards" (named as llama.cpp does), "numbered" (otherwise), or "pieces" (the number comes after `.gguf`)."""


def place_of(path: str) -> Place | None:
    """A file's place in its group; None for a file that stands alone."""
    pure = PurePosixPath(path)
    shard = parse_shard_name(pure.name)
    if shard is not None:
        if shard.count > MAX_SHARDS:
            return None
        group = str(pure.with_name(f"{shard.prefix}-*-of-{shard.count:05d}.gguf"))
        return Place(group, shard.number, shard.count, "shards")
    count: int | None
    if (match := _NUMBERED.fullmatch(pure.name)) is not None:
        number, count, kind = int(match["number"]), int(match["count"]), "numbered"
    elif (match := _PIECE.fullmatch(pure.name)) is not None:
        number, kind = _counted(match["number"]), "pieces"
        count = int(match["count"]) if match["count"] else None
    else:
        return None
    if count is not None and not (1 <= count <= MAX_SHARDS and number <= count):
        return None
    # As many `?` as letters: `x.gguf.a` is no piece of the same file as `x.gguf.aa`.
    hole = "*" if match["number"].isdigit() else "?" * len(match["number"])
    group = str(pure.with_name(f"{match['before']}{hole}{match['after']}"))
    return Place(group, number, count, kind)


def may_be_model(path: str) -> bool:
    """Whether a file of a repository may be a GGUF model or a part of one, by its name."""
    return _GGUF_END.fullmatch(path) is not None or _PIECE.fullmatch(path) is not None


def whole_name(path: str) -> str:
    """The path of the file that a group's files make: without number, with `.gguf` at its end."""
    pure = PurePosixPath(path)
    shard = parse_shard_name(pure.name)
    if shard is not None:
        return str(pure.with_name(f"{shard.prefix}.gguf"))
    if (match := _NUMBERED.fullmatch(pure.name) or _PIECE.fullmatch(pure.name)) is None:
        return path
    stem = re.sub(r"(\.gguf)?[-._]*(part|split|piece)?[-._]*$", "", match["before"], flags=re.IGNORECASE)
    return str(pure.with_name(f"{stem or 'model'}.gguf"))


def _counted(number: str) -> int:
    """Digits as they are; letters in the order in which `split` counts them: a, b, ... or aa, ab, ..."""
    if number.isdigit():
        return int(number)
    value = 0
    for letter in number.lower():
        value = value * 26 + ord(letter) - ord("a")
    return value
