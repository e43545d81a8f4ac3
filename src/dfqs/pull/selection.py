"""Which files of a repository are meant: sets of shards and single files, and a pattern that leaves one of them."""

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath

from dfqs.errors import ShardError, UsageError, printable
from dfqs.gguf.numbered_names import may_be_model, place_of, whole_name
from dfqs.gguf.shard_names import parse_shard_name
from dfqs.pull.hub import Listing, RemoteFile
from dfqs.units import format_bytes

_COMPANIONS = ("mmproj", "imatrix")
"""Files beside a model that are no models; only a pattern that names them chooses them."""
_LISTED = 40
_LARGEST_GAP = 26


@dataclass(frozen=True, slots=True)
class Choice:
    """One model of a repository: a single file, a set of shards in order, or one file in pieces.

    Until a header has been read this is what the names say.
    """

    name: str
    """What a pattern is matched with: the path without the shard's number, or `*` for it where another has that."""
    files: tuple[RemoteFile, ...]
    expected_files: int
    """How many files the names say there are."""
    joined: bool = False
    """Its files laid end to end are the model."""
    numbered: bool = False
    """Its files have numbers, but not as llama.cpp numbers shards: what they are only the first header says."""

    @property
    def file_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def sharded(self) -> bool:
        """Whether its files are shards, if only one."""
        return (
            not (self.joined or self.numbered) and parse_shard_name(PurePosixPath(self.files[0].name).name) is not None
        )

    @property
    def complete(self) -> bool:
        """Whether every file is there that the names speak of."""
        return self.numbered or len(self.files) == self.expected_files


def list_choices(files: Sequence[RemoteFile]) -> tuple[Choice, ...]:
    """Group a repository's files into models."""
    groups: dict[tuple[str, str], dict[int, RemoteFile]] = {}
    choices = []
    for file in files:
        place = place_of(file.name)
        if place is not None:
            groups.setdefault((place.kind, place.group), {})[place.number] = file
        elif may_be_model(file.name):
            choices.append(Choice(file.name, (file,), 1))
    named: list[tuple[str, Choice]] = []
    for (kind, group), members in groups.items():
        ordered = tuple(members[number] for number in sorted(members))
        first = place_of(ordered[0].name)
        assert first is not None
        count = first.count
        if kind == "pieces":
            numbers = sorted(members)
            if count is None:
                # `x.gguf.md` is no piece: pieces count on from the first, and one that is missing leaves a small gap.
                gap = next((i for i, (a, b) in enumerate(pairwise(numbers), 1) if b - a > _LARGEST_GAP), len(numbers))
                numbers, ordered = numbers[:gap], ordered[:gap]
                if numbers[0] > 1 or len(numbers) == 1:
                    continue
            expected = count or numbers[-1] - numbers[0] + 1
            named.append((group, Choice(whole_name(ordered[0].name), ordered, expected, joined=True)))
        elif kind == "numbered":
            named.append((group, Choice(group, ordered, count or len(ordered), numbered=True)))
        else:
            named.append((group, Choice(whole_name(ordered[0].name), ordered, count or len(ordered))))
    taken = Counter(choice.name for choice in (*choices, *(choice for _, choice in named)))
    choices += [replace(choice, name=group) if taken[choice.name] > 1 else choice for group, choice in named]
    return tuple(sorted(choices, key=lambda choice: choice.name))


def choose(listing: Listing, pattern: str | None) -> Choice:
    """The one model that is meant.

    Args:
        pattern: a part of the name (`Q4_K_M`), or a shell pattern with `*`; case does not matter.

    Raises:
        UsageError: none or several are meant; the message lists them.
        ShardError: the set is not complete in the repository.
    """
    choices = list_choices(listing.files)
    if pattern is None:
        found = [c for c in choices if not any(word in c.name.lower() for word in _COMPANIONS)] or list(choices)
    else:
        # A whole path is that file's, whatever marks of a pattern are in it.
        found = [c for c in choices if pattern == c.name or any(pattern == file.name for file in c.files)]
        if len(found) != 1:
            found = [c for c in choices if _matches(c, pattern)]
            exact = [c for c in found if _is_exactly(c, pattern)]
            found = exact if len(exact) == 1 else found
    where = f"{listing.repo}@{listing.revision}"
    if not choices:
        odd = f" ({len(listing.unusable)} with names or sizes that cannot be trusted)" if listing.unusable else ""
        raise UsageError(f"{where} has no GGUF files{odd}")
    if not found:
        raise UsageError(
            f"nothing in {where} matches '{printable(pattern or '')}'; it has:", *describe_choices(choices)
        )
    if len(found) > 1:
        raise UsageError(f"{where} has several models; add a pattern that leaves one:", *describe_choices(found))
    chosen = found[0]
    if not chosen.complete:
        what = "pieces" if chosen.joined else "shards"
        raise ShardError(
            f"{len(chosen.files):,} of {chosen.expected_files:,} {what} are in the repository; the set is incomplete",
            path=f"{where}/{printable(chosen.name)}",
        )
    return chosen


def describe_choices(choices: Sequence[Choice]) -> list[str]:
    """One line each, with size and number of files."""
    lines = []
    for choice in choices[:_LISTED]:
        what = "pieces of one file" if choice.joined else "numbered files" if choice.numbered else "shards"
        files = f", {len(choice.files)} {what}" if len(choice.files) > 1 else ""
        lines.append(f"  {printable(choice.name, 120)}  {format_bytes(choice.file_bytes)}{files}")
    if len(choices) > _LISTED:
        lines.append(f"  and {len(choices) - _LISTED:,} more")
    return lines


def _matches(choice: Choice, pattern: str) -> bool:
    wanted = pattern.lower()
    if any(mark in wanted for mark in "*?["):
        names = [choice.name, PurePosixPath(choice.name).name, *(file.name for file in choice.files)]
        return any(fnmatch.fnmatchcase(name.lower(), wanted) for name in names)
    return any(wanted in name.lower() for name in (choice.name, *(file.name for file in choice.files)))


def _is_exactly(choice: Choice, pattern: str) -> bool:
    """The pattern is the whole name, or a word of it: `Q4_K` does not mean `Q4_K_M` where both are there."""
    name = choice.name.lower().removesuffix(".gguf")
    wanted = pattern.lower().removesuffix(".gguf")
    return name == wanted or name.endswith(("-" + wanted, "/" + wanted, "." + wanted))
