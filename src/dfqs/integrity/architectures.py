"""What the pinned llama.cpp knows: architectures with the keys that each reads for itself, and pre-tokenizers.

The table is `architectures.txt`, which says where in llama.cpp's source its rows stand.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

_PRE_TOKENIZERS = "tokenizer.ggml.pre"


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture's own reading; keys are without its name in front."""

    read: frozenset[str]
    required: frozenset[str]
    whole_rope: bool
    """It dies where only a part of each head is turned."""
    no_rope: bool
    """It turns nothing, whatever `rope.dimension_count` says."""


@cache
def known_architectures() -> dict[str, Architecture]:
    """By the name in `general.architecture`."""
    return {
        name: Architecture(
            read=frozenset(key.rstrip("!") for key in keys),
            required=frozenset(key.rstrip("!") for key in keys if key.endswith("!")),
            whole_rope="rope=whole" in flags,
            no_rope="rope=none" in flags,
        )
        for (name, *flags), keys in _rows()
        if name != _PRE_TOKENIZERS
    }


@cache
def known_pre_tokenizers() -> frozenset[str]:
    """What `tokenizer.ggml.pre` may be where the tokenizer is one of byte pairs."""
    return next(frozenset(words) for (name, *_), words in _rows() if name == _PRE_TOKENIZERS)


@cache
def _rows() -> list[tuple[list[str], list[str]]]:
    text = resources.files("dfqs.integrity").joinpath("architectures.txt").read_text("utf-8")
    whole = text.replace("\n  ", " ").splitlines()
    split = [line.partition(":") for line in whole if not line.startswith("#")]
    return [(head.split(), keys.split()) for head, _, keys in split]
