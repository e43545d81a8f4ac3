"""The cases whose outcome was recorded from llama-gguf-split, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shard_inputs import (
    model_entries,
    model_tensors,
    write_gguf_py_shards,
    write_model,
    write_shards,
    write_tiny,
)

PEER_SOURCE = "llama.cpp as the source distribution of xllamacpp 2026.10.11549 carries it (b11549)"


@dataclass(frozen=True)
class SplitCase:
    write: Callable[[Path], Path]
    peer_options: tuple[str, ...]
    max_bytes: int | None = None
    max_tensors: int | None = None
    no_tensor_first_split: bool = False


SPLITS: dict[str, SplitCase] = {
    "default": SplitCase(write_model, ()),
    "max-tensors-5": SplitCase(write_model, ("--split-max-tensors", "5"), max_tensors=5),
    "max-tensors-1": SplitCase(write_tiny, ("--split-max-tensors", "1"), max_tensors=1),
    "max-size-1M": SplitCase(write_model, ("--split-max-size", "1M"), max_bytes=1_000_000),
    "no-tensor-first": SplitCase(
        write_model,
        ("--no-tensor-first-split", "--split-max-tensors", "20"),
        max_tensors=20,
        no_tensor_first_split=True,
    ),
    "no-tensor-first-size": SplitCase(
        write_model,
        ("--no-tensor-first-split", "--split-max-size", "1M"),
        max_bytes=1_000_000,
        no_tensor_first_split=True,
    ),
}


def _hand_packed(directory: Path, *, keys_first: bool = False) -> list[Path]:
    tensors = model_tensors()
    groups = [tensors[:7], tensors[7:31], tensors[31:]]
    return write_shards(directory, model_entries(), groups, keys_first=keys_first)


def _keys_first(directory: Path) -> list[Path]:
    return _hand_packed(directory, keys_first=True)


def _single(directory: Path) -> list[Path]:
    return write_shards(directory, model_entries(), [model_tensors()])


FOREIGN_SHARDS: dict[str, Callable[[Path], list[Path]]] = {
    "gguf-py": write_gguf_py_shards,
    "hand-packed": _hand_packed,
    "split-keys-first": _keys_first,
    "single-shard": _single,
}
