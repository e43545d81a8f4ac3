"""Experts that stand one tensor each (`blk.0.ffn_gate.3.weight`, the form of 2023) stacked as they are now.

A stack is its experts' bytes one after the other, in the order of their numbers: rows are quantized each by itself, so
no value changes whatever the type. The stack stands where the first of its experts stood.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dfqs.errors import FormatError
from dfqs.gguf.layout import TensorInfo
from dfqs.gguf.types import GGMLType

_ALONE = re.compile(r"(blk\.\d{1,6}\.ffn_(?:gate|up|down))(?:_exps)?\.(\d{1,6})\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Stack:
    """A tensor of the repaired model."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    parts: tuple[TensorInfo, ...]
    """Tensors of the damaged file whose bytes it is, in order: its experts, or the one tensor that it is already."""


def has_lone_experts(tensors: tuple[TensorInfo, ...]) -> bool:
    """Whether any tensor is one expert of a layer."""
    return any(_ALONE.fullmatch(tensor.name) for tensor in tensors)


def stack_experts(tensors: tuple[TensorInfo, ...], experts: int, path: str) -> Iterator[Stack]:
    """The model's tensors with every layer's experts stacked.

    Args:
        experts: as many as a layer has to have.

    Raises:
        FormatError: an expert is missing or there twice, or those of a layer differ in shape or type.
    """
    groups: dict[str, dict[int, TensorInfo]] = {}
    for tensor in tensors:
        if match := _ALONE.fullmatch(tensor.name):
            members = groups.setdefault(f"{match[1]}_exps.{match[3]}", {})
            if int(match[2]) in members:
                raise FormatError(f"expert {int(match[2])} stands twice", path=path, name=tensor.name)
            members[int(match[2])] = tensor
    names = {tensor.name for tensor in tensors}
    done: set[str] = set()
    for tensor in tensors:
        match = _ALONE.fullmatch(tensor.name)
        if match is None:
            yield Stack(tensor.name, tensor.shape, tensor.type, (tensor,))
            continue
        name = f"{match[1]}_exps.{match[3]}"
        if name not in done:
            done.add(name)
            if name in names:
                raise FormatError("stands beside experts of the same layer that stand alone", path=path, name=name)
            yield _stack(name, groups[name], experts, path)


def _stack(name: str, members: dict[int, TensorInfo], experts: int, path: str) -> Stack:
    missing = [number for number in range(experts) if number not in members]
    if missing or len(members) != experts:
        what = f"expert {missing[0]} is missing" if missing else f"{len(members)} experts stand there"
        raise FormatError(f"{what}, the model says it has {experts} a layer; fetch it again", path=path, name=name)
    parts = tuple(members[number] for number in range(experts))
    first = parts[0]
    for part in parts:
        if (part.shape, part.type) != (first.shape, first.type):
            raise FormatError(
                f"is {part.type.name} {list(part.shape)}, expert 0 of its layer {first.type.name} {list(first.shape)}: "
                "they cannot be one tensor",
                path=path,
                name=part.name,
            )
    return Stack(name, (*first.shape, experts), first.type, parts)
