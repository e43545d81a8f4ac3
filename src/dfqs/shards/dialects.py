"""The table of dialects, `dialects.toml`: how programs write an architecture, and llama.cpp's words for it. Pure."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

LAYER = "blk.*."
"""Stands for every layer in the names of the table."""
_LAYER_NAME = re.compile(r"blk\.(0|[1-9]\d{0,5})\.")


@dataclass(frozen=True, slots=True)
class Upstream:
    """What llama.cpp asks of a file of one architecture, and what of it other facts tell."""

    needed: tuple[str, ...]
    """Keys, without the architecture's name in front."""
    derived: Mapping[str, str]
    """Key -> formula (`dialect_formulas`)."""
    untold: Mapping[str, str]
    """Key -> why nothing in a file tells it."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One program's way of writing an architecture."""

    name: str
    architecture: str
    source: str
    """Where it was read."""
    marks: frozenset[str]
    """Tensors whose names show that a file was written for this program."""
    keys: Mapping[str, str]
    """Its name of a key -> llama.cpp's."""
    constants: Mapping[str, int | float | bool]
    """What it computes with where its mark is there, whatever a file says."""
    tensors: Mapping[str, str]
    joined: Mapping[str, tuple[str, ...]]
    """A tensor -> those whose rows it holds one behind the other, in equal parts."""

    def is_written_in(self, keys: Iterable[str], tensors: Iterable[str]) -> bool:
        """Whether a file has any of its names.

        Args:
            keys: without the architecture's name.
        """
        patterns = self.tensors.keys() | self.joined.keys()
        return any(key in self.keys for key in keys) or any(split_layer(name)[0] in patterns for name in tensors)


@cache
def known_upstream() -> Mapping[str, Upstream]:
    """By architecture."""
    return {
        row["name"]: Upstream(tuple(row["needed"].split()), row["derived"], row.get("untold", {}))
        for row in _table()["architecture"]
    }


@cache
def known_dialects() -> tuple[Dialect, ...]:
    """All of the table."""
    return tuple(
        Dialect(
            name=row["name"],
            architecture=row["architecture"],
            source=row["source"],
            marks=frozenset(row.get("marks", "").split()),
            keys=row.get("keys", {}),
            constants=row.get("constants", {}),
            tensors=row.get("tensors", {}),
            joined={name: tuple(parts.split()) for name, parts in row.get("joined", {}).items()},
        )
        for row in _table()["dialect"]
    )


def find_dialects(architecture: str, keys: Iterable[str], tensors: Iterable[str]) -> tuple[Dialect, ...]:
    """Those whose names a file has.

    Args:
        keys: as they stand in the file.
    """
    prefix = f"{architecture}."
    bare = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
    names = list(tensors)
    of_it = (dialect for dialect in known_dialects() if dialect.architecture == architecture)
    return tuple(dialect for dialect in of_it if dialect.is_written_in(bare, names))


def split_layer(name: str) -> tuple[str, str]:
    """A tensor's name as the table has it, and what stands for its layer: `blk.*.attn_q_a.weight`, `blk.7.`."""
    match = _LAYER_NAME.match(name)
    if match is None:
        return name, ""
    return LAYER + name[match.end() :], match[0]


def in_layer(pattern: str, layer: str) -> str:
    """The other way."""
    return layer + pattern.removeprefix(LAYER) if pattern.startswith(LAYER) else pattern


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files("dfqs.shards").joinpath("dialects.toml").read_text("utf-8"))
