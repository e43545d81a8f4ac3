"""Journal records as lines: a checksum against torn writes, a seal against strangers, JSON.

Each line is 16 hexadecimal digits of a SHA-256 of the rest, a space, the seal (`dfqs.seal`), a space, JSON. A seal is
of a record and of the seal before it, so no record can be left out or put elsewhere.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from dfqs.errors import FormatError, IntegrityError
from dfqs.records import parse_json
from dfqs.seal import SEAL_DIGITS, is_sealed, key_path, make_seal

MAX_COMMAS = 1_000_000
"""In a record. Bounds the values in it, and with them the memory that reading it takes."""
_DIGEST_DIGITS = 16
_PURPOSE = "merge-journal"


def encode_line(record: dict[str, Any], seal_before: str) -> tuple[bytes, str]:
    """A record as a line, and its seal."""
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()
    seal = make_seal(_PURPOSE, seal_before.encode() + text)
    rest = seal.encode() + b" " + text
    return _digest(rest) + b" " + rest + b"\n", seal


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:_DIGEST_DIGITS].encode()


def whole_lines(data: bytes, path: Path) -> list[bytes]:
    """The whole records; the next one goes behind them. What follows the last whole one must be no record."""
    lines = data.split(b"\n")
    whole = 0
    while whole < len(lines) and _is_whole(lines[whole]):
        whole += 1
    if any(map(_is_whole, lines[whole + 1 :])):
        at = sum(len(line) + 1 for line in lines[:whole])
        raise IntegrityError(f"{path} is damaged at byte {at:,}; nothing is changed by it")
    return lines[:whole]


def _is_whole(line: bytes) -> bool:
    digest, _, rest = line.partition(b" ")
    return len(digest) == _DIGEST_DIGITS and _digest(rest) == digest


def decode_lines(lines: list[bytes], path: Path, format_: str, *, trusted: bool) -> tuple[list[dict[str, Any]], str]:
    """The records, and the last one's seal.

    Args:
        format_: what the first record must begin with.
        trusted: whoever made the seals.

    Raises:
        IntegrityError: they are of another version, not of this user and machine, or not usable JSON.
    """
    records: list[dict[str, Any]] = []
    seal = ""
    for number, line in enumerate(lines):
        found, _, text = line[_DIGEST_DIGITS + 1 :].partition(b" ")
        if number == 0 and not text.startswith(f'{{"format":"{format_}",'.encode()):
            raise IntegrityError(f"{path} has another format than {format_}, which this version of dfqs reads")
        if not trusted and not is_sealed(_PURPOSE, seal.encode() + text, found.decode("ascii", "replace")):
            raise IntegrityError(f"{path} was not written by this user's dfqs on this machine. {how_to_go_on(path)}")
        seal = found.decode("ascii", "replace")[:SEAL_DIGITS]
        try:
            if text.count(b",") > MAX_COMMAS:
                raise FormatError("more values than a merge has")
            record = parse_json(text)
        except FormatError as error:
            raise IntegrityError(f"{path} is no journal of a merge: {error}") from None
        if not isinstance(record, dict):
            raise IntegrityError(f"{path} is no journal of a merge: a record that is no object")
        records.append(record)
    return records, seal


def how_to_go_on(path: Path) -> str:
    """What to do with a journal that is not ours by its seal."""
    return (
        f"If it came with the folder, delete {path.name}. If you began this merge yourself (and its key, {key_path()}, "
        "is gone), give --trust-journal"
    )
