"""What llama.cpp says in its log only: sizes of its buffers, and why it failed.

These are the sentences of a pinned build, not of ours, and there is no other way to learn them; no other module reads
a log line. What is not found here is unknown, never zero.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dfqs.runtime.library import Library

_BUFFER_LINE = re.compile(r":\s+(\S+)\s+(.*?)\s*buffer size =\s*([\d.]+) MiB")
_CACHE_LINE = re.compile(
    r"(?P<who>\w*): size =\s*(?P<size>[\d.]+) MiB \(\s*(?P<cells>\d+) cells,\s*(?P<layers>\d+) layers"
)
_CACHE_NAME = re.compile(r"creating\s+(?P<name>\S.*?)\s+(?:KV )?cache(?:, size =|\s*$)")
_FLASH_ATTENTION = re.compile(r"Flash Attention (enabled|disabled)|flash_attn\s+= (enabled|disabled)")
_GRAPH_NODES = re.compile(r"graph: nodes = (\d+)|graph nodes\s+= (\d+)")
_SERVER_ERROR = re.compile(r"[\d.]+ E (?P<text>.+)")
_CACHE_WORDS = {"non-SWA": "full attention", "SWA": "sliding window"}
"""The log's names of the two halves of a cache, in the words of this project."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """One allocation as llama.cpp reports it (in hundredths of a MiB)."""

    device: str
    """As llama.cpp calls it (`CPU`); empty for caches, which are reported over all devices."""
    kind: str
    """`model`, `cache` (KV, and states of recurrent layers), `compute`, `output`, or an architecture's own
    (`DSV4 ... state`)."""
    bytes: int
    name: str = ""
    """Of a cache where there are several: `sliding window`, `DSV4 CSA compressed`; `recurrent` of recurrent layers."""
    cells: int | None = None
    """Of a cache: tokens, or groups of tokens, that it has room for in each layer."""
    layers: int | None = None
    """Of a cache: layers that it is of."""


def parse_graph_nodes(lines: Sequence[str]) -> int | None:
    """Nodes of the graph that a context computes; None where the log does not say."""
    found = [match for line in lines if (match := _GRAPH_NODES.search(line)) is not None]
    return int(found[-1][1] or found[-1][2]) if found else None


def parse_buffers(lines: Sequence[str]) -> tuple[Buffer, ...]:
    """Allocations named in log lines such as `CPU compute buffer size = 104.77 MiB`."""
    found = []
    name = ""
    for line in lines:
        if (named := _CACHE_NAME.search(line)) is not None:
            name = _CACHE_WORDS.get(named["name"], named["name"])
        cache = _CACHE_LINE.search(line)
        if cache is not None:
            own = "recurrent" if "recurrent" in cache["who"] else name
            cells, layers = int(cache["cells"]), int(cache["layers"])
            found.append(Buffer("", "cache", _bytes_of(cache["size"]), own, cells, layers))
            name = ""
        match = _BUFFER_LINE.search(line)
        # The cells' own line says more: with simulated allocations the buffer line says 0.
        if match is not None and match[2] not in ("KV", "RS"):
            found.append(Buffer(match[1], match[2], _bytes_of(match[3])))
    return tuple(found)


def parse_flash_attention(lines: Sequence[str]) -> bool | None:
    """Whether a context has flash attention, also where that was left to llama.cpp; None where it did not say."""
    found = [match[1] or match[2] for line in lines if (match := _FLASH_ATTENTION.search(line)) is not None]
    return found[-1] == "enabled" if found else None


def _bytes_of(mebibytes: str) -> int:
    return round(float(mebibytes) * (1 << 20))


def logged_reason(library: Library, mark: int) -> str:
    """The first two errors logged: the first names the cause, later ones repeat that it failed."""
    errors = library.log.errors_since(mark)
    return "; ".join(errors[:2]) or "it gave no reason"


def server_errors(lines: Sequence[str]) -> list[str]:
    """What llama-server logged as errors, oldest first: `0.00.014.130 E srv load_model: failed to load model`."""
    return [match["text"] for line in lines if (match := _SERVER_ERROR.match(line))]
