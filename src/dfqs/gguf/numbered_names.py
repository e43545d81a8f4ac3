"""What the names of files say, here or in a repository: shards, numbered files that may be shards, pieces of one file.

Names only group files; whether a group is a set of shards, one file in pieces or several models is read off the header
of its first file.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from dfqs.gguf.shard_names import MAX_SHARDS, parse_shard_name

_NUMBERED = re.compile(
    r"(?P<before>.+?[-._ ]?(?:part|split|piece)?[-._ ]?)(?<!\d)(?P<number>\d{1,10})"
    r"(?P<after>[-._ ]?of[-._ ]?(?P<count>\d{1,10})\.gguf)",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
"""`m-1-of-3.gguf`, `m-00000-of-00002.gguf`, `m-00001-of-00002.GGUF`, `m.part1of3.gguf`, `m_1 of 3.gguf`."""
_PIECE = re.compile(
    r"(?P<before>.+\.gguf[-._ ]?(?:part|split|piece)?[-._ ]?)(?P<number>\d{1,5}|[a-z]{1,3})"
    r"(?P<after>(?:[-._ ]?of[-._ ]?(?P<count>\d{1,5}))?)",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
"""`m.gguf.aa`, `m.gguf.001`, `m.gguf.part1of3`, `m.gguf-split-b`."""
_COUNTED = re.compile(
    r"(?P<before>.*?)(?P<number>\d{1,250}|(?<![a-z])[a-z]{1,3})"
    r"(?P<after>(?:[-._ ]?of[-._ ]?(?P<count>\d{1,250}))?(?:\.gguf)?)",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
"""Whatever counts at its end: `m-2.gguf`, `m.001`, and also `README.md`."""
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


def place_of(path: str, *, anyhow: bool = False) -> Place | None:
    """A file's place in its group; None for a file that stands alone.

    Args:
        anyhow: take whatever counts in a name, also without `.gguf` before it and beyond every count (as "numbered"):
            for files whose bytes tell whether they belong together.
    """
    pure = PurePosixPath(path)
    shard = parse_shard_name(pure.name)
    if shard is not None and shard.count <= MAX_SHARDS:
        group = str(pure.with_name(f"{shard.prefix}-*-of-{shard.count:05d}.gguf"))
        return Place(group, shard.number, shard.count, "shards")
    match = (_NUMBERED.fullmatch(pure.name) or _PIECE.fullmatch(pure.name)) if shard is None else None
    if match is not None and _makes_sense(match):
        return _place(pure, match, "numbered" if match.re is _NUMBERED else "pieces")
    counted = _COUNTED.fullmatch(pure.name) if anyhow else None
    return None if counted is None else _place(pure, counted, "numbered")


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
    stem = re.sub(r"(\.gguf)?[-._ ]*(part|split|piece)?[-._ ]*$", "", match["before"], flags=re.IGNORECASE)
    return str(pure.with_name(f"{stem or 'model'}.gguf"))


def _makes_sense(match: re.Match[str]) -> bool:
    """Whether there can be a file of that number among so many."""
    count = match["count"]
    return count is None or (1 <= int(count) <= MAX_SHARDS and _counted(match["number"]) <= int(count))


def _place(path: PurePosixPath, match: re.Match[str], kind: str) -> Place:
    # As many `?` as letters: `x.gguf.a` is no piece of the same file as `x.gguf.aa`.
    hole = "*" if match["number"].isdigit() else "?" * len(match["number"])
    group = str(path.with_name(f"{match['before']}{hole}{match['after']}"))
    return Place(group, _counted(match["number"]), int(match["count"]) if match["count"] else None, kind)


def _counted(number: str) -> int:
    """Digits as they are; letters in the order in which `split` counts them: a, b, ... or aa, ab, ..."""
    if number.isdigit():
        return int(number)
    value = 0
    for letter in number.lower():
        value = value * 26 + ord(letter) - ord("a")
    return value
