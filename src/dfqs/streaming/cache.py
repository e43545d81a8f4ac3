"""The experts that are in memory: brought in when chosen, given up when another needs the place."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dfqs.streaming.layout import ExpertKey, ExpertPages, PageRange, StreamLayout
from dfqs.streaming.pages import MappedFiles
from dfqs.streaming.policy import ChoiceLog, HeldKeys
from dfqs.streaming.reader import Arrival, PageReader


@dataclass(slots=True)
class StreamCounts:
    """What streaming has done."""

    passes: int = 0
    """Graphs that were computed: one a token when generating, one a batch before."""
    hits: int = 0
    misses: int = 0
    """Experts that a layer chose, in memory or not."""
    uncached: int = 0
    """Of the misses, those that found no place: their pages come through the kernel's cache."""
    read_bytes: int = 0
    wait_s: float = 0.0
    """How long the computation stood still for the disk."""


@dataclass(slots=True)
class _Held:
    inner: Arrival
    outer: Arrival


class ExpertCache:
    """Anonymous memory of at most `budget_bytes` over the mapping, filled with the experts that are used most.

    Args:
        log: is told of every choice.
    """

    def __init__(
        self,
        layout: StreamLayout,
        files: MappedFiles,
        reader: PageReader,
        budget_bytes: int,
        log: ChoiceLog | None = None,
    ) -> None:
        self.counts = StreamCounts()
        self._layout = layout
        self._files = files
        self._reader = reader
        self._log = log
        self._keys: HeldKeys[ExpertKey] = HeldKeys(layout.sizes, budget_bytes)
        self._held: dict[ExpertKey, _Held] = {}

    @property
    def used_bytes(self) -> int:
        return self._keys.used_bytes

    def begin_pass(self) -> None:
        """Another graph is about to be computed."""
        self.counts.passes += 1
        if self._log is not None:
            self._log.begin_pass()

    def require(self, layer: int, experts: Sequence[int]) -> list[Arrival]:
        """Bring the experts that a layer has chosen; returns when their first matrices are there.

        Returns:
            What must be waited for before their last matrix is used.

        Raises:
            RuntimeFailure: the disk or the file failed.
        """
        if self._log is not None:
            self._log.add(layer, experts)
        keys = [key for expert in experts if (key := (layer, expert)) in self._layout.experts]
        self._start(keys)
        held = [self._held[key] for key in keys if key in self._held]
        self.wait([entry.inner for entry in held])
        return [entry.outer for entry in held if not entry.outer.is_done]

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to bring experts that are known to be chosen soon."""
        self._start([key for expert in experts if (key := (layer, expert)) in self._layout.experts], counted=False)

    def wait(self, arrivals: Sequence[Arrival]) -> None:
        """Stand still until all are there."""
        started = time.perf_counter()
        for arrival in arrivals:
            arrival.wait()
        self.counts.wait_s += time.perf_counter() - started

    def _start(self, keys: Sequence[ExpertKey], counted: bool = True) -> None:
        late: list[tuple[PageRange, int, Arrival]] = []
        in_place: list[PageRange] = []
        for placement in self._keys.place(keys, self.counts.passes):
            pages = self._layout.experts[placement.key]
            if placement.how == "held":
                self.counts.hits += counted
                continue
            self.counts.misses += counted
            if placement.how == "no room":
                self.counts.uncached += 1
                for part in pages.ranges:
                    self._files.want_soon(part)
                in_place += pages.ranges
                continue
            addresses = self._make_room(pages, placement.victims)
            entry = _Held(Arrival(len(pages.inner)), Arrival(len(pages.outer)))
            self._held[placement.key] = entry
            self.counts.read_bytes += pages.length
            arrivals = [entry.inner] * len(pages.inner) + [entry.outer] * len(pages.outer)
            for part, address, arrival in zip(pages.ranges, addresses, arrivals, strict=True):
                if arrival is entry.inner:
                    self._reader.start(part, address, arrival)
                else:
                    late.append((part, address, arrival))
        # What is needed last is read last.
        for part, address, arrival in late:
            self._reader.start(part, address, arrival)
        for part in in_place:
            self._reader.require_intact(part, self._files.address(part))

    def _make_room(self, pages: ExpertPages, victims: Sequence[ExpertKey]) -> list[int]:
        """Anonymous memory over `pages`, one address a range: a victim's where its ranges are as long, else new."""
        moved: list[int] | None = None
        for victim in victims:
            entry = self._held.pop(victim)
            for arrival in (entry.inner, entry.outer):
                arrival.wait()
            given_up = self._layout.experts[victim]
            if moved is None and [p.length for p in given_up.ranges] == [p.length for p in pages.ranges]:
                moved = [self._files.move(old, new) for old, new in zip(given_up.ranges, pages.ranges, strict=True)]
                continue
            for part in given_up.ranges:
                self._files.uncover(part)
        return moved if moved is not None else [self._files.lay_over(part) for part in pages.ranges]
