"""A small file cannot make a reader take gigabytes: at the limits it is read, beyond them refused in a sentence."""

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfqs.errors import FormatError
from dfqs.gguf import BytesSource, ValueType, array, encode_header, parse_header, string
from dfqs.gguf.cursor import HEADER_LIMIT_BYTES
from dfqs.gguf.metadata import ELEMENTS_LIMIT, TEXT_LIMIT_BYTES, VALUE_LIMIT_BYTES
from dfqs.integrity.manifest import MANIFEST_LIMIT_BYTES
from gguf_builder import SMALL_KEYS, write_small
from memory_limits import MIB, peak_under_limit

ACCEPTED_BYTES = 500 * MIB
HUGE_BYTES = HEADER_LIMIT_BYTES - 4096


def entry(name: str, type_: int, length: int) -> bytes:
    """A key whose value is `length` bytes of a hole: a string (8), or an array (9) of bytes."""
    head = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", type_)
    return head + (struct.pack("<IQ", 0, length) if type_ == 9 else struct.pack("<Q", length))


def write_with_hole(path: Path, name: str, type_: int, length: int = HUGE_BYTES) -> Path:
    """A model of some kilobytes whose key `name` is a hole of `length` bytes."""
    keys = [key for key in SMALL_KEYS if key.name != name]
    # One key more than is written; it comes last, and its value is the hole.
    head = bytearray(encode_header(keys, [], alignment=1))
    struct.pack_into("<Q", head, 16, len(keys) + 1)
    data = bytes(head) + entry(name, type_, length)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + length + 64)
    return path


def write_end_to_end(path: Path) -> Path:
    """Twelve whole files, each with a header of 50 MiB."""
    with path.open("wb") as file:
        for _ in range(12):
            head = bytearray(encode_header(SMALL_KEYS, [], alignment=1))
            struct.pack_into("<Q", head, 16, len(SMALL_KEYS) + 1)
            file.write(head + entry("padding", 9, 50 * MIB))
            file.seek(50 * MIB, 1)
        file.truncate(file.tell())
    return path


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "a class of bytes": lambda path: write_with_hole(path, "dfqs.class", 9),
    "a class of text": lambda path: write_with_hole(path, "dfqs.class", 8),
    "a name of bytes": lambda path: write_with_hole(path, "general.name", 9),
    "a name of text": lambda path: write_with_hole(path, "general.name", 8),
    "an architecture of text": lambda path: write_with_hole(path, "general.architecture", 8),
    "layers of bytes": lambda path: write_with_hole(path, "llama.block_count", 9),
    "a count of shards of bytes": lambda path: write_with_hole(path, "split.count", 9),
    "headers end to end": write_end_to_end,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_header_full_of_a_hole_costs_no_more_than_its_bytes(what: str, tmp_path: Path) -> None:
    path = HOSTILE[what](tmp_path / "hostile.gguf")
    verbs = f"""
from dfqs.cli.main import run
for words in (["inspect"], ["verify", "--json"], ["repair", "--dry-run", "-o", {str(tmp_path / "out.gguf")!r}]):
    assert run([words[0], {str(path)!r}, *words[1:]]) in (0, 1, 2, 3)
assert run(["find", {str(tmp_path)!r}]) == 0
"""
    done = peak_under_limit(verbs)

    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert done.peak_bytes < ACCEPTED_BYTES


def test_a_manifest_of_any_size_is_refused_by_its_size(tmp_path: Path) -> None:
    model = write_small(tmp_path / "m.gguf")
    manifest = tmp_path / "m.json"
    with manifest.open("wb") as file:
        file.write(b'{"tensors": [')
        file.truncate(MANIFEST_LIMIT_BYTES + 1)

    done = peak_under_limit([sys.executable, "-m", "dfqs", "verify", model, "--manifest", manifest])

    assert done.returncode == 3
    assert "larger than the 33,554,432 bytes" in done.stderr
    assert done.peak_bytes < 150 * MIB


def test_a_manifest_at_its_limit_costs_no_more_than_is_accepted(tmp_path: Path) -> None:
    model = write_small(tmp_path / "m.gguf")
    manifest = tmp_path / "m.json"
    tensor = b'{"name":"t","type":"F32","shape":[1],"bytes":4,"sha256":"' + b"0" * 64 + b'"},'
    head = b'{"file_name":"m","tensors":['
    manifest.write_bytes(head + tensor * ((MANIFEST_LIMIT_BYTES - len(head)) // len(tensor)))

    done = peak_under_limit([sys.executable, "-m", "dfqs", "verify", model, "--manifest", manifest])

    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert done.peak_bytes < ACCEPTED_BYTES


def header_of(*keys: object) -> Any:
    return parse_header(BytesSource(encode_header(keys, [])))  # type: ignore[arg-type]


def test_a_value_is_read_up_to_its_limit_and_not_beyond() -> None:
    at, beyond = "x" * TEXT_LIMIT_BYTES, "x" * (TEXT_LIMIT_BYTES + 1)

    assert header_of(string("general.name", at)).metadata.text("general.name") == at
    with pytest.raises(FormatError, match=r"general\.name.*65,537 bytes|65,545 bytes"):
        header_of(string("general.name", beyond)).metadata.text("general.name")


def test_an_array_is_read_up_to_its_limit_and_not_beyond() -> None:
    at = header_of(array("a", ValueType.UINT8, bytes(ELEMENTS_LIMIT)))
    beyond = header_of(array("a", ValueType.UINT8, bytes(ELEMENTS_LIMIT + 1)))

    assert len(at.metadata["a"]) == ELEMENTS_LIMIT
    with pytest.raises(FormatError, match="1,048,577 values"):
        beyond.metadata["a"]
    assert VALUE_LIMIT_BYTES > ELEMENTS_LIMIT


def test_the_type_decides_before_a_value_is_built() -> None:
    metadata = header_of(
        array("a", ValueType.UINT32, [1, 2]), string("s", "1"), array("t", ValueType.STRING, ["x"])
    ).metadata

    assert (metadata.integer("a"), metadata.integer("s"), metadata.text("a"), metadata.boolean("s")) == (None,) * 4
    assert metadata.integers("a") == (1, 2)
    assert metadata.integers("t") is None
    assert metadata.integer("missing") is metadata.text("missing") is metadata.integers("missing") is None
