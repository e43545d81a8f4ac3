"""Mutations that know the form: JSON values, sealed lines, GGUF fields; and bytes, where nothing else is left."""

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

# What a text cannot say through `json.dumps`: put in after it, where its place was marked.
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e400",
    "9" * 400,
    "9" * 5000,
    "[" * 2000,
    '{"a":' * 2000,
    '"\\ud800"',
    '"\\udc00x"',
    "tru",
    "",
    '"\\u009b31m"',
    '"\x1b[2J"',
    "1e-400",
    "-0",
    "00",
    "\xff",
)
STRINGS = (
    "",
    "x",
    "../x",
    "/etc/passwd",
    "[/x]",
    "[red]",
    "\x1b[31mred",
    "\x9b2J",
    "a\nb",
    "\x00",
    "%s{0}",
    "é" * 40,
    "\u202e",
    "A" * 5000,
    "nan",
    "-1",
    "1e999",
    "Q8_0",
    "F32",
    "a" * 64,
    "\\",
    "😀",
)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    255,
    256,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    0.5,
    -0.0,
    1e308,
    -1e308,
    5e-324,
    True,
    False,
)
_MARK = re.compile(r'"@@raw(\d+)@@"')


def value(rng: random.Random) -> Any:
    """Any JSON value of the kind that makes trouble."""
    kind = rng.randrange(10)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(STRINGS)
    if kind == 6:
        return f"@@raw{rng.randrange(len(RAW))}@@"
    return rng.choice([None, [], {}, [[]], [None], {"a": 1}, [1, "x"], [0] * 300])


def _nodes(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a value."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        item = waiting.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else []
        for key in keys:
            found.append((item, key))
            waiting.append(item[key])
    return found


def mutate_json(rng: random.Random, document: Any) -> Any:
    """A copy with one to four places changed."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        nodes = _nodes(document)
        if not nodes or rng.random() < 0.01:
            document = value(rng)
            continue
        container, key = rng.choice(nodes)
        action = rng.randrange(12)
        if action == 0 and isinstance(container, dict):
            del container[key]
        elif action == 1 and isinstance(container, dict):
            container[rng.choice(STRINGS)] = value(rng)
        elif action == 2 and isinstance(container, list):
            container.insert(key, value(rng))
        elif action == 3 and isinstance(container, list):
            del container[key]
        elif action == 4 and isinstance(container, list) and len(container) < 200:
            container.extend([container[key]] * rng.choice((1, 3, 50)))
        elif action == 5:
            other, place = rng.choice(nodes)
            container[key] = json.loads(json.dumps(other[place])) if place in _keys(other) else None
        elif action == 6 and isinstance(container[key], int | float):
            container[key] = rng.choice(
                (container[key] + 1, container[key] - 1, -container[key], float(container[key]))
            )
        elif action == 7 and isinstance(container[key], str):
            container[key] = container[key] + rng.choice(STRINGS)
        else:
            container[key] = value(rng)
    return document


def _keys(container: Any) -> Any:
    return container if isinstance(container, dict) else range(len(container))


def dump(document: Any) -> bytes:
    """The text, with what JSON cannot say where it was marked."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return _MARK.sub(lambda match: RAW[int(match[1])], text).encode("utf-8", "surrogatepass")


def mutate_json_text(rng: random.Random, data: bytes) -> bytes:
    """One JSON document mutated; now and then as bytes only."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data)
    if rng.random() < 0.05:
        return mutate_bytes(rng, data)
    return dump(mutate_json(rng, document))


Seal = Callable[[bytes], bytes]


def mutate_lines(rng: random.Random, data: bytes, seal: Seal = bytes) -> bytes:
    """JSON lines: one mutated, dropped, doubled or moved. `seal` makes a line of a JSON text that will be believed."""
    lines = [line for line in data.split(b"\n") if line]
    if not lines or rng.random() < 0.03:
        return mutate_bytes(rng, b"".join(seal(line) + b"\n" for line in lines))
    at = rng.randrange(len(lines))
    action = rng.randrange(12)
    if action == 0:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif action == 1:
        del lines[at]
    elif action == 2:
        rng.shuffle(lines)
    elif action == 3:
        lines[at] = rng.choice(RAW).encode("utf-8", "surrogatepass")
    else:
        lines[at] = mutate_json_text(rng, lines[at])
    return b"".join(seal(line) + b"\n" for line in lines)


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flips, cuts, insertions and copies."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        action = rng.randrange(6)
        if action == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            del out[at:]
        elif action == 2:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
        elif action == 3 and at < len(out):
            out[at] = rng.choice((0, 255, 127, 128, 10, 27, 0x9B))
        elif action == 4:
            size = rng.randrange(1, 32)
            out[at:at] = out[at : at + size]
        else:
            del out[at : at + rng.randrange(1, 16)]
    return bytes(out)


_TOML_VALUE = re.compile(r"(?m)(?<==)\s*[^\n]+$|^\[+[^\n]+|^\w+(?= =)")
_TOML = (
    "1e999",
    "nan",
    "inf",
    "-1",
    "[]",
    "{}",
    "[[1]]",
    "true",
    '"\\u009b"',
    '"\\U0001F600"',
    '"../x"',
    "1979-05-27",
    "9" * 400,
    "[" * 500,
    '"0-99999999999"',
    '"0-9,,"',
    '"5-1"',
    '""',
    '"F64"',
    "'x'",
    "{a = 1}",
    "0x" + "f" * 40,
)


def mutate_toml(rng: random.Random, data: bytes) -> bytes:
    """A recipe with a value, a key or a heading exchanged."""
    text = data.decode("utf-8", "replace")
    places = list(_TOML_VALUE.finditer(text))
    if not places or rng.random() < 0.2:
        return mutate_bytes(rng, data)
    place = rng.choice(places)
    new = rng.choice((*_TOML, rng.choice(places)[0], json.dumps(rng.choice(STRINGS), ensure_ascii=False)))
    return (text[: place.start()] + new + text[place.end() :]).encode("utf-8", "replace")


_WHOLE = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    31,
    32,
    33,
    63,
    64,
    65,
    255,
    256,
    65_535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    (1 << 62) - 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def gguf_fields(data: bytes) -> list[tuple[int, int]]:
    """(offset, bytes) of every number in a sound GGUF header: counts, lengths, types, values, dimensions, offsets."""
    fields = [(4, 4), (8, 8), (16, 8)]
    position = 24

    def number(size: int) -> int:
        nonlocal position
        fields.append((position, size))
        position += size
        return int.from_bytes(data[position - size : position], "little")

    def string() -> None:
        nonlocal position
        position += number(8)

    def item(kind: int) -> None:
        if kind == 8:
            string()
        elif kind == 9:
            inner, count = number(4), number(8)
            for _ in range(count):
                item(inner)
        else:
            number(_SCALARS[kind])

    tensors, keys = struct.unpack_from("<QQ", data, 8)
    for _ in range(keys):
        string()
        item(number(4))
    for _ in range(tensors):
        string()
        for _ in range(number(4)):
            number(8)
        number(4)
        number(8)
    return fields


def mutate_gguf(rng: random.Random, data: bytes) -> bytes:
    """Numbers of the header changed, or its names, or (seldom) any bytes."""
    try:
        fields = gguf_fields(data)
    except (KeyError, IndexError, struct.error, RecursionError, MemoryError):
        fields = []
    if not fields or rng.random() < 0.15:
        return mutate_bytes(rng, data)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, size = rng.choice(fields)
        if rng.random() < 0.2:
            # What stands behind a length is a name; a control character there goes far.
            out[at + size : at + size + 1] = rng.choice((b"\x9b", b"\x1b", b"\xff", b"[", b"\x00"))
            continue
        old = int.from_bytes(out[at : at + size], "little")
        new = rng.choice((*_WHOLE, old + 1, old - 1, old * 2, rng.randrange(256))) % (1 << (8 * size))
        out[at : at + size] = new.to_bytes(size, "little")
    return bytes(out)
