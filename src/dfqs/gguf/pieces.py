"""Raw pieces: a file cut by size alone (`split -b`, archive splitters). They rejoin by concatenation.

The first piece has the whole header and looks truncated; the others look like noise. What tells them is their names,
which count on in letters or digits, and their sizes, which add up to what the header promises.
"""

from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import FormatError
from dfqs.gguf import parse_header
from dfqs.gguf.layout import MAGIC
from dfqs.gguf.numbered_names import place_of
from dfqs.gguf.shard_names import parse_shard_name
from dfqs.storage.files import naming


@dataclass(frozen=True, slots=True)
class RawPieces:
    """A first piece and those that follow it by name."""

    paths: tuple[Path, ...]
    joined_bytes: int
    expected_bytes: int
    """What the header in the first piece promises."""

    @property
    def complete(self) -> bool:
        """Whether joining them gives the promised length."""
        return self.joined_bytes == self.expected_bytes


def find_raw_pieces(path: Path) -> RawPieces | None:
    """The pieces that `path` (any of them) belongs to; None when it is no such piece.

    A single truncated file, with nothing beside it that could be its rest, is no piece.
    """
    family = _family(path)
    first = next((p for p in family if _starts_as_gguf(p)), None)
    if first is None:
        return None
    members = [p for p in family[family.index(first) :] if p == first or not _starts_as_gguf(p)]
    if len(members) < 2 or path.name not in {p.name for p in members}:
        return None
    try:
        header = parse_header(first)
    except FormatError:
        return None
    name = parse_shard_name(first.name)
    if name is not None and header.metadata.get("split.count") == name.count:
        # A shard cut short, and beside it other shards that are no GGUF (pointers, say).
        return None
    expected = max(header.end_of_data, header.data_offset)
    if first.stat().st_size >= expected:
        return None
    return RawPieces(tuple(members), sum(p.stat().st_size for p in members), expected)


def _family(path: Path) -> list[Path]:
    """Files beside `path` whose names differ from its name in the number alone, in counting order."""
    own = place_of(path.name, anyhow=True)
    if own is None or not path.parent.is_dir():
        return []
    found: list[tuple[int, str, Path]] = []
    for other in path.parent.iterdir():
        place = place_of(other.name, anyhow=True)
        if place is not None and (place.kind, place.group) == (own.kind, own.group) and _is_file(other):
            found.append((place.number, other.name, other))
    return [entry[2] for entry in sorted(found)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        # A link into a folder of somebody else's.
        return False


def _starts_as_gguf(path: Path) -> bool:
    with path.open("rb") as file, naming(file.fileno()):
        return file.read(len(MAGIC)) == MAGIC
