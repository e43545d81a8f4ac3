"""Shard files about to be written, whoever writes them: names, headers with their `split.*` keys, places of tensors."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.gguf import KeyValue, align_up, encode_header, i32, u16, u32
from dfqs.gguf.layout import DEFAULT_ALIGNMENT, place_tensors
from dfqs.gguf.shard import SPLIT_COUNT, SPLIT_KEYS, SPLIT_NO, SPLIT_TENSORS_COUNT
from dfqs.gguf.shard_names import MAX_SHARDS, ShardName
from dfqs.gguf.types import GGMLType
from dfqs.gguf.writer import Key
from dfqs.storage.atomic import publish_file

GGUF_SPLIT_ORDER = (SPLIT_NO, SPLIT_TENSORS_COUNT, SPLIT_COUNT)
"""llama-gguf-split knows the count last, and writes it last."""
QUANTIZE_ORDER = (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS_COUNT)
"""As llama-quantize."""
ALIGNMENT_KEY = "general.alignment"
MAX_ALIGNMENT = 1 << 16
"""Pages of no machine are larger."""


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One file: its header, and where its tensors go."""

    path: Path
    header: bytes
    offsets: tuple[int, ...]
    """Of the tensors, counted from the start of the file."""
    file_bytes: int


def new_shard_paths(directory: Path, prefix: str, count: int) -> list[Path]:
    """`PREFIX-00001-of-0000N.gguf` and so on.

    Raises:
        UsageError: so many cannot be numbered.
    """
    if count > MAX_SHARDS:
        raise UsageError(f"{count:,} shards; a set has at most {MAX_SHARDS:,}: allow larger ones")
    return [directory / str(ShardName(prefix, number, count)) for number in range(1, count + 1)]


def split_keys(index: int, count: int, tensors: int, order: Sequence[str]) -> list[KeyValue]:
    """The keys that say which shard this is (`index` counts from 0) and what the set holds."""
    keys = {
        SPLIT_NO: u16(SPLIT_NO, index),
        SPLIT_COUNT: u16(SPLIT_COUNT, count),
        SPLIT_TENSORS_COUNT: i32(SPLIT_TENSORS_COUNT, tensors),
    }
    return [keys[name] for name in order]


def aligned_keys(keys: Sequence[Key], alignment: int) -> tuple[Key, ...]:
    """Keys of a file whose tensors are aligned to so many bytes; `general.alignment` stands before `split.` keys."""
    kept = [key for key in keys if key.name != ALIGNMENT_KEY]
    if alignment == DEFAULT_ALIGNMENT:
        return tuple(kept)
    place = next((index for index, key in enumerate(kept) if key.name in SPLIT_KEYS), len(kept))
    return (*kept[:place], u32(ALIGNMENT_KEY, alignment), *kept[place:])


def check_alignment(alignment: int | None) -> int | None:
    """
    Raises:
        UsageError: no power of two, or none that makes sense.
    """
    if alignment is None or (DEFAULT_ALIGNMENT <= alignment <= MAX_ALIGNMENT and not alignment & (alignment - 1)):
        return alignment
    raise UsageError(
        f"--align {alignment}: a power of two from {DEFAULT_ALIGNMENT} (GGUF's own) to {MAX_ALIGNMENT:,} bytes; "
        "4096 is a page of most machines"
    )


def lay_out_file(
    path: Path, keys: Sequence[Key], shapes: Sequence[tuple[str, tuple[int, ...], GGMLType]], alignment: int
) -> FileLayout:
    """The header, and each tensor behind the one before it; the last is padded too."""
    header = encode_header(keys, shapes, alignment=alignment)
    placed = list(place_tensors(shapes, alignment))
    end = align_up(placed[-1].offset + placed[-1].length, alignment) if placed else 0
    return FileLayout(path, header, tuple(len(header) + info.offset for info in placed), len(header) + end)


def publish_shards(
    files: Iterable[tuple[Path, Path]],
    *,
    overwrite: bool = False,
    on_published: Callable[[Path], object] = lambda _path: None,
) -> None:
    """Give files under a temporary name the one that is theirs: `(temporary, path)`, the first shard last.

    Without the first one no program takes the others for a model.
    """
    for temporary, path in reversed(list(files)):
        publish_file(temporary, path, overwrite=overwrite)
        on_published(path)
