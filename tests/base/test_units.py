"""Numbers as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfqs.errors import UsageError
from dfqs.units import format_bytes, format_count, format_duration, format_number_of, format_rate, parse_size


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (62_121_601_312, "62.1 GB"), (999_999, "1.0 MB"), (3e15, "3000 TB")],
)
def test_bytes_are_decimal_as_hubs_and_disks_count(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    "count, text", [(999, "999"), (13_799_632_471, "13.8 B"), (284_332_240_471, "284.3 B"), (49_152, "49.2 K")]
)
def test_parameters_are_counted_in_b_for_thousand_millions(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    "seconds, text", [(0.0123, "12 ms"), (59.96, "1 min 0 s"), (75.2, "1 min 15 s"), (7300, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_no_rate_is_made_out_of_no_time() -> None:
    assert format_rate(5, 0, "tokens") == "- tokens/s"
    assert format_rate(5, 2, "tokens") == "2.5 tokens/s"


@pytest.mark.parametrize(
    "text, size",
    [
        ("2G", 2_000_000_000),
        ("500M", 500_000_000),
        ("1.5GB", 1_500_000_000),
        ("256MiB", 256 << 20),
        ("7", 7),
        ("2Gi", 2 << 30),
    ],
)
def test_sizes_are_understood(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "0", "2X", "1e9", "0.1", "²"])
def test_nonsense_is_not_taken_for_a_size(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@given(st.integers(1, 10**18))
def test_whole_numbers_of_bytes_keep_every_digit(count: int) -> None:
    assert parse_size(str(count)) == count


NUMBERS = st.one_of(
    st.floats(), st.integers(), st.sampled_from([10**400, -(10**400), 0, -1, 1e308, float("inf"), float("-inf")])
)


@given(NUMBERS, NUMBERS)
def test_no_number_from_a_file_is_too_strange_to_be_written(number: float, seconds: float) -> None:
    for text in (
        format_bytes(number),
        format_count(number),
        format_duration(number),
        format_rate(number, seconds, "tokens"),
    ):
        assert isinstance(text, str)
        assert text


def test_one_thing_is_not_called_many() -> None:
    assert [format_number_of(count, "model") for count in (0, 1, 1200)] == ["0 models", "1 model", "1,200 models"]
