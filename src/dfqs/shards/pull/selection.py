"""Which files of a repository are meant: sets of shards and single files, and a pattern that leaves one of them."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dfqs.errors import ShardError, UsageError, printable
from dfqs.shards.names import MAX_SHARDS, parse_shard_name
from dfqs.shards.pull.hub import Listing, RemoteFile
from dfqs.units import format_bytes

_COMPANIONS = ("mmproj", "imatrix")
"""Files beside a model that are no models; only a pattern that names them chooses them."""
_LISTED = 40


@dataclass(frozen=True, slots=True)
class Choice:
    """One model of a repository: a single file, or a set of shards in order."""

    name: str
    """What a pattern is matched with: the path without the shard's number."""
    files: tuple[RemoteFile, ...]
    expected_files: int
    """How many shards the names say there are."""

    @property
    def file_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def sharded(self) -> bool:
        """Whether its files are shards, if only one."""
        return parse_shard_name(PurePosixPath(self.files[0].name).name) is not None


def list_choices(files: Sequence[RemoteFile]) -> tuple[Choice, ...]:
    """Group a repository's files into models."""
    sets: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    choices = []
    for file in files:
        path = PurePosixPath(file.name)
        shard = parse_shard_name(path.name)
        if shard is None or shard.count > MAX_SHARDS:
            choices.append(Choice(file.name, (file,), 1))
        else:
            prefix = str(path.with_name(f"{shard.prefix}.gguf"))
            sets.setdefault((prefix, shard.count), {})[shard.number] = file
    for (name, count), members in sets.items():
        choices.append(Choice(name, tuple(members[number] for number in sorted(members)), count))
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
        found = [c for c in choices if _matches(c, pattern)]
        exact = [c for c in found if _is_exactly(c, pattern)]
        found = exact if len(exact) == 1 else found
    where = f"{listing.repo}@{listing.revision}"
    if not choices:
        odd = f" ({len(listing.unusable)} with names or sizes that cannot be trusted)" if listing.unusable else ""
        raise UsageError(f"{where} has no GGUF files{odd}")
    if not found:
        raise UsageError(f"nothing in {where} matches '{pattern}'; it has:\n{describe_choices(choices)}")
    if len(found) > 1:
        raise UsageError(f"{where} has several models; add a pattern that leaves one:\n{describe_choices(found)}")
    chosen = found[0]
    if len(chosen.files) != chosen.expected_files:
        raise ShardError(
            f"{len(chosen.files):,} of {chosen.expected_files:,} shards are in the repository; the set is incomplete",
            path=f"{where}/{printable(chosen.name)}",
        )
    return chosen


def describe_choices(choices: Sequence[Choice]) -> str:
    """One line each, with size and number of files."""
    lines = []
    for choice in choices[:_LISTED]:
        files = f", {len(choice.files)} shards" if len(choice.files) > 1 else ""
        lines.append(f"  {printable(choice.name, 120)}  {format_bytes(choice.file_bytes)}{files}")
    if len(choices) > _LISTED:
        lines.append(f"  and {len(choices) - _LISTED:,} more")
    return "\n".join(lines)


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
