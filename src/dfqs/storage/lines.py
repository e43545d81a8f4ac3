"""Records of journals as lines: a checksum against torn writes, a seal against strangers, JSON.

A line is 16 hexadecimal digits of a SHA-256 of the rest, a space, JSON. Where journals of its kind are sealed
(`dfqs.storage.seal`), the seal and a space stand before the JSON. A seal is of a record and of the seal before it, so
no record can be left out, put elsewhere, or taken from another journal.

A plain line is JSON alone: what it says is a user's own, to be read with any tool.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dfqs.errors import FormatError, IntegrityError
from dfqs.storage.disk import DiskFile
from dfqs.storage.documents import parse_json
from dfqs.storage.seal import SEAL_DIGITS, Sealer

MAX_COMMAS = 1_000_000
"""In a record. Bounds the values in it, and with them the memory that reading it takes."""
_DIGEST_DIGITS = 16
_READ_BYTES = 1 << 20
_SCHEMA = re.compile(rb'(?:[0-9a-f]{1,32} ){0,2}\{"(?:schema|format)": ?"(dfqs\.[a-z-]{1,40}/[0-9]{1,4})"')
"""Of a first line, also as 0.1 wrote it: with a CRC, or with no checksum before the JSON."""
_TORN = re.compile(rb'[0-9a-f]{0,16}|[0-9a-f]{16} ([0-9a-f]{0,32}|([0-9a-f]{32} )?\{("[^\n]*)?)')
"""The beginning of a first line of ours."""


def encode_plain(record: dict[str, Any]) -> bytes:
    """A record as a plain line."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def encode_line(record: dict[str, Any], seal_before: str = "", *, sealer: Sealer | None = None) -> tuple[bytes, str]:
    """A record as a line, and its seal.

    Args:
        sealer: of journals of its kind; None: no seal is made.
    """
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    if sealer is None:
        return _digest(text) + b" " + text + b"\n", ""
    seal = sealer.make_seal(seal_before.encode() + text)
    rest = seal.encode() + b" " + text
    return _digest(rest) + b" " + rest + b"\n", seal


def decode_line(
    line: bytes, path: Path, work: str, *, sealed: bool = False, plain: bool = False
) -> tuple[dict[str, Any], str, bytes]:
    """The record of a whole line, its seal, and its text.

    Args:
        work: what a journal of this kind is of, for messages.

    Raises:
        IntegrityError: it is no usable JSON object.
    """
    text = line.rstrip(b"\n") if plain else line[_DIGEST_DIGITS + 1 :].rstrip(b"\n")
    seal = b""
    if sealed:
        seal, _, text = text.partition(b" ")
    try:
        if text.count(b",") > MAX_COMMAS:
            raise FormatError(f"more values than a {work} has")
        record = parse_json(text)
    except FormatError as error:
        raise IntegrityError(f"{path} is no journal of a {work}: {error}") from None
    if not isinstance(record, dict):
        raise IntegrityError(f"{path} is no journal of a {work}: a record that is no object")
    return record, seal.decode("ascii", "replace")[:SEAL_DIGITS], text


def is_whole(line: bytes) -> bool:
    """Whether a line, with its end, is as it was written."""
    digest, _, rest = line.partition(b" ")
    return line.endswith(b"\n") and len(digest) == _DIGEST_DIGITS and _digest(rest.removesuffix(b"\n")) == digest


def is_whole_plain(line: bytes) -> bool:
    """Whether a plain line, with its end, is an object: no part of one is."""
    try:
        return line.endswith(b"\n") and isinstance(parse_json(line), dict)
    except FormatError:
        return False


def is_torn_first(data: bytes) -> bool:
    """Whether this is what a loss of power leaves of a first line: nothing, zeroes, or its beginning."""
    return _TORN.fullmatch(data.rstrip(b"\0")) is not None


def schema_of(line: bytes) -> str | None:
    """What a first line says that it begins, also where 0.1 wrote it; None: no journal of dfqs."""
    match = _SCHEMA.match(line)
    return match[1].decode() if match else None


def read_lines(file: DiskFile, limit_bytes: int, line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line with its end) of the first `limit_bytes` of a file.

    A line of more than `line_bytes` is given as no bytes. What stands behind the last end of line is no line.
    """
    rest, start = b"", 0
    for offset in range(0, limit_bytes, _READ_BYTES):
        data = file.read_at(offset, min(_READ_BYTES, limit_bytes - offset))
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield start, line + b"\n" if len(line) < line_bytes else b""
            start += len(line) + 1
        if len(data) < _READ_BYTES:
            return
        if len(rest) > line_bytes:
            yield start, b""
            start, rest = start + len(rest), b""


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_DIGEST_DIGITS].encode()
