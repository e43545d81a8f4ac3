"""The door through which everything stored comes back: bounded, and nothing in it that makes trouble later."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.errors import DfqsError, FormatError, UsageError
from dfqs.records import MAX_DEPTH, Record, parse_json, parse_record, read_bounded, read_json


class Point(Record):
    x: int
    y: int = 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not usable JSON"),
        (b"\x92", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH}"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), f"nested deeper than {MAX_DEPTH}"),
        (b'{"x": Infinity}', "Infinity is no number"),
        (b'{"x": -Infinity}', "-Infinity is no number"),
        (b"[NaN]", "NaN is no number"),
        (b"[1e999]", "beyond every range"),
        (b"[" + b"9" * 5000 + b"]", "more than 64 bits"),
        (b"[18446744073709551616]", "more than 64 bits"),
        (b'["\\ud800"]', "surrogates not allowed"),
        (b'{"\\udfff": 1}', "surrogates not allowed"),
    ],
)
def test_json_that_would_make_trouble_later_is_refused_at_the_door(text: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        parse_json(text)


def test_the_largest_integers_and_the_deepest_document_pass_so_that_no_honest_one_is_refused() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH

    assert parse_json(b"[18446744073709551615, -9223372036854775808]") == [2**64 - 1, -(2**63)]
    assert json.dumps(parse_json(deepest)).encode() == deepest


@pytest.mark.thorough
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_end_in_another_exception_than_our_own(data: bytes) -> None:
    for read in (parse_json, lambda data: parse_record(data, Point)):
        with contextlib.suppress(DfqsError):
            read(data)


def test_a_record_is_refused_with_the_place_and_without_the_escapes_of_a_strangers_key() -> None:
    with pytest.raises(FormatError, match=r"not a valid Point: \\x1b\[31mred: Extra inputs"):
        parse_record(json.dumps({"x": 1, "\x1b[31mred": 2}), Point)


def test_a_file_one_byte_over_its_kinds_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "point.json"
    path.write_bytes(b'{"x": 1}'.ljust(100))
    assert read_json(path, Point, limit_bytes=100).x == 1

    path.write_bytes(b'{"x": 1}'.ljust(101))
    with pytest.raises(FormatError, match="larger than the 100 bytes"):
        read_json(path, Point, limit_bytes=100)


def test_pipes_and_devices_are_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/proc/kmsg"), tmp_path):
        # The kernel's messages, where there are some: what has no end of its own ends at the limit.
        with pytest.raises((UsageError, FormatError, OSError)):
            read_bounded(path, 10)
