"""Stubs: files of which llama.cpp reads the header, with a hole in place of the weights.

All of the header is there that a file is refused for, or that its memory depends on: keys, tokens, tensors. Of the
merges of a tokenizer only the first is kept: llama.cpp puts them in a table and asks no more of them before there is a
text, and that takes a quarter of a second of a large vocabulary.

Making tables of 129,280 tokens takes more than twice that, and of them only their number counts for memory. So there
are stubs without them, too: what such a model takes is the same, and whether it would be refused for its tokens is
asked apart.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from dfqs.gguf import Header, ValueType
from dfqs.gguf.layout import align_up
from dfqs.gguf.shard_names import ShardName
from dfqs.gguf.values import string, u32
from dfqs.storage.atomic import storage_errors

_MERGES, _TOKENS, _TOKENIZER = "tokenizer.ggml.merges", "tokenizer.ggml.tokens", "tokenizer."
_ARCHITECTURE = "general.architecture"
_COUNT = struct.Struct("<Q")
_KEY_COUNT_OFFSET = 16
"""Of the number of keys, from the start of a file."""


def write_stubs(headers: Sequence[Header], directory: Path, *, tokens: bool = True) -> Path:
    """Write a stub for each file of a model, named so that llama.cpp finds them; returns the first's path.

    Args:
        tokens: with the tokenizer.
    """
    count = len(headers)
    prefix = "stub" if tokens else "stub-without-tokens"
    names = [f"{prefix}.gguf"] if count == 1 else [str(ShardName(prefix, i + 1, count)) for i in range(count)]
    paths = [write_stub(header, directory / name, tokens=tokens) for header, name in zip(headers, names, strict=True)]
    return paths[0]


def has_tokens(headers: Sequence[Header]) -> bool:
    """Whether there is a tokenizer to leave out."""
    return headers[0].metadata.find(_TOKENS) is not None and bool(headers[0].metadata.text(_ARCHITECTURE))


def write_stub(header: Header, path: Path, *, tokens: bool = True) -> Path:
    """Write `header` and a hole as long as its data; returns `path`."""
    short = _with_one_merge(header) if tokens else _without_tokens(header)
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


def _without_tokens(header: Header) -> bytes:
    """The header of a model that has as many tokens and does not say which (llama.cpp's tokenizer `no_vocab`)."""
    tokens = header.metadata.find(_TOKENS)
    if tokens is None:
        return header.raw
    raw, size_key = header.raw, f"{header.metadata.text(_ARCHITECTURE)}.vocab_size"
    kept = [e for e in header.entries if not e.name.startswith(_TOKENIZER) and e.name != size_key]
    added = [string("tokenizer.ggml.model", "no_vocab"), u32(size_key, tokens.count)]
    keys = b"".join(raw[entry.start : entry.end] for entry in kept) + b"".join(key.encode() for key in added)
    count = _COUNT.pack(len(kept) + len(added))
    first, last = header.entries[0].start, header.entries[-1].end
    return raw[:_KEY_COUNT_OFFSET] + count + raw[_KEY_COUNT_OFFSET + _COUNT.size : first] + keys + raw[last:]
