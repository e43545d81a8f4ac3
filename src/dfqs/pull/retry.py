"""How long to wait for a server, and how often to ask again."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from dfqs.progress import Tell, untold
from dfqs.units import format_duration

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
"""Answers that may be another the next time."""
BUSY_STATUS = frozenset({429, 503})
"""Of these, answers that ask for patience; the others are a fault, which waiting seldom mends."""
LONGEST_RETRY_AFTER_S = 300.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to give up. Failures count in a row: a byte that arrives begins the count anew."""

    attempts: int = 8
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    stall_s: float = 30.0
    """So long nothing may arrive on a connection before it is given up."""
    slowest_bytes_per_s: int = 1024
    """A connection that is slower than this for `stall_s` is given up too: another may be faster."""
    tell: Tell = untold
    """Called at each wait with what was answered and when it goes on; from any thread."""

    def wait_s(self, attempt: int, told_s: float | None = None) -> float:
        """How long before asking again: what the server said, or twice as long each time, spread by chance so that
        many connections do not come back at once."""
        if told_s is not None:
            return min(told_s, LONGEST_RETRY_AFTER_S)
        longest = min(self.first_wait_s * 2.0**attempt, self.longest_wait_s)
        return random.uniform(longest / 2, longest)

    def tell_wait(self, what: str, seconds: float, attempt: int, attempts: int) -> None:
        """
        Args:
            what: happened.
            attempt: that comes after the wait, of `attempts`; both count repeats only.
        """
        self.tell(f"{what}; asking again in {format_duration(seconds)} ({attempt} of {attempts})")


def retry_after_s(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date (RFC 9110, section 10.2.3)."""
    if not value:
        return None
    try:
        return max(float(value), 0.0) if value.strip().isdigit() else _seconds_until(value)
    except (ValueError, TypeError):
        return None


def _seconds_until(date: str) -> float:
    when = parsedate_to_datetime(date)
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max((when - datetime.now(UTC)).total_seconds(), 0.0)
