"""Strings are stepped over by their lengths: in runs where they are short, one by one where they are not, and no
further than the bytes that are there."""

import struct
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfqs.errors import FormatError
from dfqs.gguf import BytesSource
from dfqs.gguf.cursor import HEADER_LIMIT_BYTES, RUN, SHORT_BYTES, Cursor


def encoded(lengths: list[int]) -> bytes:
    # Payloads of zeroes and of what looks like lengths: nothing but the position says which is which.
    return b"".join(struct.pack("<Q", length) + (b"\x03\0\0\0\0\0\0\0" * length)[:length] for length in lengths)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2 * SHORT_BYTES), min_size=1, max_size=4),
    st.integers(1, 3 * RUN + 5),
    st.binary(max_size=20),
)
def test_the_end_is_where_the_lengths_say(pattern: list[int], count: int, behind: bytes) -> None:
    lengths = (pattern * count)[:count]
    cursor = Cursor(BytesSource(encoded(lengths) + behind), 0, HEADER_LIMIT_BYTES)

    cursor.skip_strings(count, "tokens")

    assert cursor.position == sum(lengths) + 8 * count


@pytest.mark.parametrize("place", [0, RUN - 1, RUN, 2 * RUN, 3 * RUN - 1])
@pytest.mark.parametrize("lie", [1 << 20, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_length_that_lies_is_refused_where_it_stands_however_it_hides_among_short_ones(place: int, lie: int) -> None:
    lengths = [4] * (3 * RUN)
    data = bytearray(encoded(lengths))
    starts = list(accumulate([8 + length for length in lengths], initial=0))
    data[starts[place] : starts[place] + 8] = struct.pack("<Q", lie)
    cursor = Cursor(BytesSource(bytes(data)), 0, HEADER_LIMIT_BYTES)

    with pytest.raises(FormatError, match="a string") as caught:
        cursor.skip_strings(len(lengths), "tokens")

    assert caught.value.offset == starts[place]


@pytest.mark.parametrize("missing", [1, 4, 8, 9, 12, 13])
def test_strings_that_are_cut_short_are_refused(missing: int) -> None:
    lengths = [4] * (2 * RUN)
    cursor = Cursor(BytesSource(encoded(lengths)[:-missing]), 0, HEADER_LIMIT_BYTES)

    with pytest.raises(FormatError, match="cut short"):
        cursor.skip_strings(len(lengths), "tokens")
