"""Stubs: files of which llama.cpp reads the header, with a hole in place of the weights.

All of the header is there that a file is refused for, or that its memory depends on: keys, tokens, tensors. Of the
merges of a tokenizer only the first is kept: llama.cpp puts them in a table and asks no more of them before there is a
text, and that takes a quarter of a second of a large vocabulary.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from dfqs.gguf import Header, ValueType
from dfqs.gguf.layout import align_up
from dfqs.gguf.shard_names import ShardName
from dfqs.storage.atomic import storage_errors

_MERGES = "tokenizer.ggml.merges"
_COUNT = struct.Struct("<Q")


def write_stubs(headers: Sequence[Header], directory: Path) -> Path:
    """Write a stub for each file of a model, named so that llama.cpp finds them; returns the first's path."""
    count = len(headers)
    names = ["stub.gguf"] if count == 1 else [str(ShardName("stub", i + 1, count)) for i in range(count)]
    paths = [write_stub(header, directory / name) for header, name in zip(headers, names, strict=True)]
    return paths[0]


def write_stub(header: Header, path: Path) -> Path:
    """Write `header` and a hole as long as its data; returns `path`."""
    short = _with_one_merge(header)
    data_offset = align_up(len(short), header.alignment)
    with storage_errors(path), path.open("xb") as file:
        file.write(short)
        file.truncate(data_offset + header.file_size - header.data_offset)
    return path


def _with_one_merge(header: Header) -> bytes:
    raw, entry = header.raw, header.metadata.find(_MERGES)
    if entry is None or entry.element_type is not ValueType.STRING or entry.count < 2:
        return raw
    first_end = entry.value_start + _COUNT.size + _COUNT.unpack_from(raw, entry.value_start)[0]
    before = raw[: entry.value_start - _COUNT.size]
    return before + _COUNT.pack(1) + raw[entry.value_start : first_end] + raw[entry.end :]
