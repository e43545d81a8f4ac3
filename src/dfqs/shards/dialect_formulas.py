"""Values of missing keys out of tensors' shapes and other keys, by the formulas of `dialects.toml`. Pure."""

import re
from collections.abc import Callable, Mapping

from dfqs.gguf.metadata import LAYERS_LIMIT
from dfqs.shards.dialects import LAYER, in_layer, split_layer

Shapes = Mapping[str, tuple[int, ...]]
"""By llama.cpp's names."""
KeyOf = Callable[[str], int | None]
"""A whole number of the header, by the name without the architecture; None: there is none."""
Answer = int | tuple[int, ...]

_AXIS = re.compile(r"([^\[\]]+)\[(\d)\]")


class Untold(Exception):
    """A formula's parts are not there, or do not agree; says which."""


def evaluate(formula: str, shapes: Shapes, key_of: KeyOf) -> Answer:
    """The value of a formula.

    Raises:
        Untold: nothing tells it.
    """
    head, _, rest = formula.partition(" ")
    if head == "leading":
        return _leading(rest, shapes)
    if head == "each":
        return _each(rest, shapes, key_of("block_count"))
    words = formula.split(" ")
    value = _term(words[0], shapes, key_of)
    for operator, word in zip(words[1::2], words[2::2], strict=True):
        other = _term(word, shapes, key_of)
        if operator == "*":
            value *= other
            continue
        if other <= 0 or value % other:
            raise Untold(f"{value:,} cannot be divided by {word} = {other:,}")
        value //= other
    if not 0 < value < 1 << 32:
        raise Untold(f"{formula} would be {value:,}")
    return value


def _term(word: str, shapes: Shapes, key_of: KeyOf) -> int:
    if word.startswith("key:"):
        value = key_of(word.removeprefix("key:"))
        if value is None:
            raise Untold(f"there is no {word.removeprefix('key:')} either")
        return value
    pattern, axis = _axis_of(word)
    found = {name: shape[axis] for name, shape in _of_pattern(pattern, shapes) if axis < len(shape)}
    if not found:
        raise Untold(f"there is no {pattern} with such an axis")
    if len(set(found.values())) > 1:
        least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
        raise Untold(f"layers differ: {least} has {found[least]:,}, {most} {found[most]:,}")
    return next(iter(found.values()))


def _leading(pattern: str, shapes: Shapes) -> int:
    count = 0
    while in_layer(pattern, f"blk.{count}.") in shapes:
        count += 1
    later = [name for name, _ in _of_pattern(pattern, shapes)]
    if len(later) != count:
        raise Untold(f"{pattern} is in layers that do not follow each other")
    return count


def _each(word: str, shapes: Shapes, layers: int | None) -> tuple[int, ...]:
    if layers is None or not 0 < layers <= LAYERS_LIMIT:
        raise Untold("there is no block_count that says how many layers there are")
    pattern, axis = _axis_of(word)
    found = []
    for layer in range(layers):
        shape = shapes.get(in_layer(pattern, f"blk.{layer}."), ())
        found.append(shape[axis] if axis < len(shape) else 0)
    if not any(found):
        raise Untold(f"there is no {pattern}")
    return tuple(found)


def _axis_of(word: str) -> tuple[str, int]:
    match = _AXIS.fullmatch(word)
    assert match is not None, word
    return match[1], int(match[2])


def _of_pattern(pattern: str, shapes: Shapes) -> list[tuple[str, tuple[int, ...]]]:
    if not pattern.startswith(LAYER):
        return [(pattern, shapes[pattern])] if pattern in shapes else []
    return [(name, shape) for name, shape in shapes.items() if split_layer(name)[0] == pattern]
