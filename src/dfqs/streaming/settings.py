"""How experts stream: one plain value from the plan that chooses to the worker that does it."""

from dataclasses import dataclass

from dfqs.streaming.verification import Recorded


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """What `dfqs.streaming.opening` does with a model."""

    cache_bytes: int
    """Of experts in memory at most, those that are read ahead included; with hints, 0 leaves it to the kernel."""
    hints: bool = False
    """See `dfqs.streaming.cache.ExpertCache`."""
    copies_borders: bool = True
    """Copy pages that two slices share with what stays; else they are left to the page cache."""
    recorded: Recorded | None = None
    """What the bytes that are read have to be, where they are checked."""
    looks_ahead: bool = True
    """Read what the next layer probably chooses while the disk would stand still; see `dfqs.streaming.lookahead`."""
