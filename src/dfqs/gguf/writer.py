"""Writes GGUF files: a header from keys and tensor shapes, then tensor bytes as they come.

The header is encoded as llama.cpp's own writer does it (trailing axes of size one are not written), so that files made
here and files made by that tool can be compared byte by byte.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import FormatError
from dfqs.gguf.layout import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    VERSION,
    align_up,
    data_section_length,
    place_tensors,
    squeeze_shape,
)
from dfqs.gguf.types import GGMLType
from dfqs.gguf.values import KeyValue, RawKeyValue, encode_string
from dfqs.progress import Progress, no_progress
from dfqs.storage.atomic import OnWhole, atomic_writer, tell_nobody

Key = KeyValue | RawKeyValue


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A tensor to be written, and where its bytes come from when their turn comes."""

    name: str
    shape: tuple[int, ...]
    """GGUF order: fastest axis first."""
    type: GGMLType
    read: Callable[[], Iterable[bytes | memoryview]]
    """Gives the payload in pieces, in order; called once."""


def encode_header(
    keys: Iterable[Key],
    tensors: Iterable[tuple[str, tuple[int, ...], GGMLType]],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
) -> bytes:
    """The bytes before the data section, padding included.

    Args:
        tensors: (name, shape, type) in file order; offsets follow from them.
        alignment: must agree with `general.alignment` where `keys` hold it; the caller sees to that.

    Raises:
        FormatError: a value that does not fit its type, a name or shape that the format cannot hold.
    """
    encoded_keys = [key.encode() for key in keys]
    count, described = 0, bytearray()
    for info in place_tensors(tensors, alignment):
        shape = squeeze_shape(info.shape)
        if len(shape) > MAX_DIMENSIONS:
            raise FormatError(f"has {len(shape)} axes, at most {MAX_DIMENSIONS} can be written", name=info.name)
        name = encode_string(info.name)
        if not 0 < len(name) - 8 <= MAX_NAME_BYTES:
            raise FormatError(f"a tensor name has 1 to {MAX_NAME_BYTES} bytes", name=info.name)
        described += name + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, info.type, info.offset)
        count += 1
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, count, len(encoded_keys)))
    out += b"".join(encoded_keys)
    out += described
    out += bytes(align_up(len(out), alignment) - len(out))
    return bytes(out)


def write_gguf(
    path: Path,
    keys: Sequence[Key],
    tensors: Sequence[TensorSource],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
    overwrite: bool = False,
    progress: Progress = no_progress,
    on_whole: OnWhole = tell_nobody,
) -> None:
    """Write a whole file, or nothing: temporary file, fsync, rename.

    Args:
        progress: in bytes of tensor data.

    Raises:
        FormatError: a tensor gave more or fewer bytes than its shape needs.
        UsageError: `path` exists and `overwrite` is false, or its directory cannot be written.
        SpaceError: the disk is full.
    """
    shapes = [(tensor.name, tensor.shape, tensor.type) for tensor in tensors]
    header = encode_header(keys, shapes, alignment=alignment)
    infos = list(place_tensors(shapes, alignment))
    total = data_section_length(infos, alignment)
    with atomic_writer(path, overwrite=overwrite, on_whole=on_whole) as file:
        file.write(header)
        done = 0
        for tensor, info in zip(tensors, infos, strict=True):
            written = 0
            for piece in tensor.read():
                written += file.write(piece)
                progress(done + written, total, tensor.name)
            if written != info.length:
                raise FormatError(f"{written:,} bytes given, its shape needs {info.length:,}", name=tensor.name)
            padding = align_up(written, alignment) - written
            file.write(bytes(padding))
            done += written + padding
        progress(done, total)
