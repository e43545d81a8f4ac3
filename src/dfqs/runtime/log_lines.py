"""What llama.cpp says in its log only: sizes of its buffers, and why it failed.

These are the sentences of a pinned build, not of ours, and there is no other way to learn them; no other module reads
a log line. What is not found here is unknown, never zero.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dfqs.runtime.library import Library

_BUFFER_LINE = re.compile(r":\s+(\S+)\s+(.*?)\s*buffer size =\s*([\d.]+) MiB")
_CACHE_LINE = re.compile(r": size =\s*([\d.]+) MiB \(\s*\d+ cells")
_SERVER_ERROR = re.compile(r"[\d.]+ E (?P<text>.+)")


@dataclass(frozen=True, slots=True)
class Buffer:
    """One allocation as llama.cpp reports it (in hundredths of a MiB)."""

    device: str
    """As llama.cpp calls it (`CPU`); empty for caches, which are reported over all devices."""
    kind: str
    """`model`, `cache` (KV, and states of recurrent layers), `compute`, `output`, or an architecture's own
    (`DSV4 ... state`)."""
    bytes: int


def parse_buffers(lines: Sequence[str]) -> tuple[Buffer, ...]:
    """Allocations named in log lines such as `CPU compute buffer size = 104.77 MiB`."""
    found = []
    for line in lines:
        cache = _CACHE_LINE.search(line)
        if cache is not None:
            found.append(Buffer("", "cache", _bytes_of(cache[1])))
        match = _BUFFER_LINE.search(line)
        # The cells' own line says more: with simulated allocations the buffer line says 0.
        if match is not None and match[2] not in ("KV", "RS"):
            found.append(Buffer(match[1], match[2], _bytes_of(match[3])))
    return tuple(found)


def _bytes_of(mebibytes: str) -> int:
    return round(float(mebibytes) * (1 << 20))


def logged_reason(library: Library, mark: int) -> str:
    """The first two errors logged: the first names the cause, later ones repeat that it failed."""
    errors = library.log.errors_since(mark)
    return "; ".join(errors[:2]) or "it gave no reason"


def server_errors(lines: Sequence[str]) -> list[str]:
    """What llama-server logged as errors, oldest first: `0.00.014.130 E srv load_model: failed to load model`."""
    return [match["text"] for line in lines if (match := _SERVER_ERROR.match(line))]
