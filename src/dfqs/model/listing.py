"""What stands in a header, entry by entry: keys, tensors, the tokenizer. Values are decoded only as far as shown."""

import hashlib
import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field

from dfqs.gguf.metadata import INTEGER_TYPES, TEXT_LIMIT_BYTES, KeyEntry, Metadata
from dfqs.gguf.types import ValueType
from dfqs.model.files import ModelFiles
from dfqs.model.spec import CHAT_TEMPLATE, EVERY, tensor_role
from dfqs.records import Record, Text

FIRST_VALUES = 8
"""Of an array, so many are shown."""
_TOKENS = "tokenizer.ggml.tokens"
_FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix")


class KeyListing(Record):
    """One key of a header."""

    name: Text
    type: str
    """As the format calls it, in capitals; `array of STRING`."""
    count: int
    """Values: of an array all of them, else 1."""
    values: tuple[bool | int | float | Text, ...]
    """The first 8. A float that is no number is its name; a text over 64 KiB is left out."""
    bytes: int
    """Of the value as it stands in the file."""
    sha256: str
    """Of these bytes."""


class TensorListing(Record):
    """One tensor of a header."""

    name: Text
    shape: tuple[int, ...]
    """As the file has it: the fastest axis first."""
    type: str
    role: str
    bytes: int
    offset: int
    """Bytes from the start of its file."""
    shard: int = Field(ge=1)
    """Which file, from 1."""


class TokenizerListing(Record):
    """What a header says about turning text into tokens. Unknown is null."""

    model: Text | None
    """`tokenizer.ggml.model`: `gpt2`, `llama`, ..."""
    pre: Text | None
    """`tokenizer.ggml.pre`: how text is cut before it is encoded."""
    vocabulary: int | None
    merges: int | None
    special: dict[str, tuple[int, Text | None]]
    """`bos`, `eos`, ...: the token's number and its text; the text is null where there is no such token."""
    flags: dict[str, bool]
    """`add_bos_token` and its like, where the header has them."""
    chat_templates: tuple[Text, ...]
    """Names of the templates; `default` is the one that is used."""


def list_keys(model: ModelFiles, pattern: str = EVERY) -> tuple[KeyListing, ...]:
    """Keys of the file or of the first shard, in its order, whose name matches a shell pattern."""
    metadata = model.header.metadata
    return tuple(list_key(model, metadata.entry(name)) for name in metadata if fnmatchcase(name, pattern))


def list_tensors(model: ModelFiles, pattern: str = EVERY) -> tuple[TensorListing, ...]:
    """Tensors of all files, in their order, whose name matches a shell pattern."""
    return tuple(
        TensorListing(
            name=tensor.name,
            shape=tensor.shape,
            type=tensor.type.name,
            role=tensor_role(tensor.name).value,
            bytes=tensor.length,
            offset=shard.header.data_offset + tensor.offset,
            shard=number,
        )
        for number, shard in enumerate(model.shards, start=1)
        for tensor in shard.tensors
        if fnmatchcase(tensor.name, pattern)
    )


def chat_template(model: ModelFiles) -> str | None:
    """The text of the template that is used; None where there is none.

    Raises:
        FormatError: it is larger than any honest one.
    """
    return model.header.metadata.text(CHAT_TEMPLATE, limit_bytes=1 << 20)


def describe_tokenizer(model: ModelFiles) -> TokenizerListing | None:
    """The tokenizer; None where the header has none."""
    metadata = model.header.metadata
    if not any(key.startswith("tokenizer.") for key in metadata):
        return None
    return TokenizerListing(
        model=metadata.text("tokenizer.ggml.model"),
        pre=metadata.text("tokenizer.ggml.pre"),
        vocabulary=_count(metadata, _TOKENS),
        merges=_count(metadata, "tokenizer.ggml.merges"),
        special=dict(_special_tokens(metadata)),
        flags={name: flag for name in _FLAGS if (flag := metadata.boolean(f"tokenizer.ggml.{name}")) is not None},
        chat_templates=tuple(
            key.removeprefix(CHAT_TEMPLATE).removeprefix(".") or "default"
            for key in metadata
            if (key == CHAT_TEMPLATE or key.startswith(f"{CHAT_TEMPLATE}."))
            and metadata.entry(key).type is ValueType.STRING
        ),
    )


def list_key(model: ModelFiles, entry: KeyEntry) -> KeyListing:
    """One key of the file or of the first shard."""
    metadata = model.header.metadata
    size = entry.end - entry.value_start
    values: tuple[Any, ...] = ()
    if entry.type is not ValueType.STRING or size <= TEXT_LIMIT_BYTES:
        values = metadata.first(entry.name, FIRST_VALUES)
    return KeyListing(
        name=entry.name,
        type=entry.type_name,
        count=entry.count,
        values=tuple(
            _readable(value) for value in values if not isinstance(value, str) or len(value) <= TEXT_LIMIT_BYTES
        ),
        bytes=size,
        sha256=hashlib.sha256(metadata.value_bytes(entry.name)).hexdigest(),
    )


def _readable(value: Any) -> Any:
    """JSON has no word for what is no number."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _count(metadata: Metadata, name: str) -> int | None:
    entry = metadata.find(name)
    return None if entry is None or entry.type is not ValueType.ARRAY else entry.count


def _special_tokens(metadata: Metadata) -> Iterator[tuple[str, tuple[int, str | None]]]:
    tokens = metadata.find(_TOKENS)
    for key in metadata:
        name = key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")
        if key != f"tokenizer.ggml.{name}_token_id" or metadata.entry(key).type not in INTEGER_TYPES:
            continue
        number = metadata.integer(key)
        assert number is not None
        text: str | None = None
        if tokens is not None and tokens.element_type is ValueType.STRING and 0 <= number < tokens.count:
            text = str(metadata.first(_TOKENS, number + 1)[-1])
        yield name, (number, text)
