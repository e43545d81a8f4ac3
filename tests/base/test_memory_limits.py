"""The measure itself: a limit that holds nothing would let every test of one pass."""

import sys

from memory_limits import MIB, peak_under_limit


def test_what_a_process_took_is_measured_not_what_its_starter_has() -> None:
    small = peak_under_limit("print('done')")
    large = peak_under_limit("print(len(b'x' * (200 << 20)))")

    assert small.returncode == large.returncode == 0
    assert small.stdout == "done\n"
    assert 200 * MIB < large.peak_bytes < small.peak_bytes + 220 * MIB
    assert small.peak_bytes < 40 * MIB


def test_a_process_that_takes_more_than_the_limit_fails_and_is_seen_to() -> None:
    over = peak_under_limit([sys.executable, "-c", "b'x' * (300 << 20)"], 200 * MIB)

    assert over.returncode == 1
    assert "MemoryError" in over.stderr
    assert over.peak_bytes < 200 * MIB
