"""The experts that are in memory: brought in when chosen, given up when another needs the place."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from dfqs.streaming.layout import ExpertKey, PageRange, StreamLayout
from dfqs.streaming.lookahead import LookAhead
from dfqs.streaming.pages import MappedFiles
from dfqs.streaming.policy import ChoiceLog, HeldKeys, Placement
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

    def wait(self) -> None:
        self.inner.wait()
        self.outer.wait()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a layer's choice is waiting for."""

    first: tuple[Arrival, ...]
    """Of matrices gate and up."""
    last: tuple[Arrival, ...]
    """Of matrix down, which is needed when those are multiplied."""


class ExpertCache:
    """At most `budget_bytes` of experts in memory, those that are used most.

    Either in anonymous memory laid over the mapping and read past the kernel's page cache; or, with `hints`, in the
    page cache, which is told what to read and what to drop. Hints make nobody wait: a page that is touched before it
    is there is waited for where it is touched.

    Args:
        budget_bytes: with hints, 0 leaves it to the kernel what is dropped.
        log: is told of every choice.
        ahead: reads what is guessed; None where nothing is.
    """

    def __init__(
        self,
        layout: StreamLayout,
        files: MappedFiles,
        reader: PageReader,
        budget_bytes: int,
        log: ChoiceLog | None = None,
        *,
        hints: bool = False,
        ahead: LookAhead | None = None,
    ) -> None:
        self.counts = StreamCounts()
        self._layout = layout
        self._files = files
        self._reader = reader
        self._log = log
        self._hints = hints
        self._ahead = ahead
        self._keys: HeldKeys[ExpertKey] = HeldKeys(layout.sizes, budget_bytes)
        self._held: dict[ExpertKey, _Held] = {}
        self._taken_from: dict[ExpertKey, _Held] = {}
        """Experts that were given up -> who got their memory."""

    @property
    def used_bytes(self) -> int:
        return self._keys.used_bytes

    @property
    def budget_bytes(self) -> int:
        return self._keys.budget_bytes

    def begin_pass(self) -> None:
        """Another graph is about to be computed."""
        self.counts.passes += 1
        if self._log is not None:
            self._log.begin_pass()

    def require(self, layer: int, experts: Sequence[int]) -> Wanted:
        """Begin to bring the experts that a layer has chosen."""
        if self._log is not None:
            self._log.add(layer, experts)
        if self._ahead is not None:
            self._ahead.settle()
        keys = [key for expert in experts if (key := (layer, expert)) in self._layout.experts]
        self._start(keys)
        held = [self._held[key] for key in keys if key in self._held]
        return Wanted(tuple(entry.inner for entry in held), tuple(entry.outer for entry in held))

    def guesses_for(self, layer: int) -> bool:
        """Whether it would help to know what a layer probably chooses."""
        return self._ahead is not None and self._ahead.is_worth(layer)

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        """Read what a layer probably chooses, the surest first, while nothing that is wanted is read."""
        if self._ahead is not None:
            keys = [(layer, expert) for expert in experts]
            self._ahead.begin(layer, [self._layout.experts[key] for key in keys if self._is_missing(key)])

    def _is_missing(self, key: ExpertKey) -> bool:
        return key in self._layout.experts and key not in self._keys

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to bring experts that are known to be chosen soon."""
        self._start([key for expert in experts if (key := (layer, expert)) in self._layout.experts], counted=False)

    def wait(self, arrivals: Sequence[Arrival]) -> None:
        """Stand still until all are there."""
        if not arrivals:
            return
        started = time.perf_counter()
        for arrival in arrivals:
            arrival.wait()
        self.counts.wait_s += time.perf_counter() - started

    def _start(self, keys: Sequence[ExpertKey], counted: bool = True) -> None:
        late: list[tuple[PageRange, Arrival, PageRange | None]] = []
        hinted: list[Placement[ExpertKey]] = []
        for placement in self._keys.place(keys, self.counts.passes):
            if placement.how == "held":
                self.counts.hits += counted
                continue
            self.counts.misses += counted
            pages = self._layout.experts[placement.key]
            if placement.how == "no room":
                self.counts.uncached += 1
            if self._hints or placement.how == "no room":
                hinted.append(placement)
                continue
            entry = _Held(Arrival(len(pages.inner)), Arrival(len(pages.outer)))
            left = self._make_room(placement.key, placement.victims, entry)
            self._held[placement.key] = entry
            self.counts.read_bytes += pages.length
            inner = len(pages.inner)
            for part, old in zip(pages.inner, left[:inner], strict=True):
                self._bring(part, entry.inner, old)
            late += ((part, entry.outer, old) for part, old in zip(pages.outer, left[inner:], strict=True))
        # What is needed last is read last.
        for part, arrival, old in late:
            self._bring(part, arrival, old)
        if hinted:
            self._hint(hinted)

    def _bring(self, part: PageRange, arrival: Arrival, old: PageRange | None) -> None:
        """Have a range of pages read, over the memory of another (`old`) or new one; or take it from what was guessed.

        Whoever reads moves the memory, beside the others: a megabyte of pages takes as long as computing with them.
        """
        guessed = self._ahead.take(part) if self._ahead is not None else None
        if self._ahead is not None and guessed is not None:
            self._reader.bring(partial(self._ahead.move_in, guessed, old), arrival)
            return
        files = self._files
        prepare = partial(files.lay_over, part) if old is None else partial(files.move, old, part)
        self._reader.start(part, files.address(part), arrival, prepare)

    def _hint(self, placements: Sequence[Placement[ExpertKey]]) -> None:
        """Have the kernel read what is wanted, and drop what is given up.

        Both take their time, up to a tenth of a millisecond a megabyte: that of the reader's threads.
        """
        wanted = [self._layout.experts[placement.key] for placement in placements]
        for part in (*(p for pages in wanted for p in pages.inner), *(p for pages in wanted for p in pages.outer)):
            self._reader.do(partial(self._files.want_soon, part))
        for pages in wanted:
            for part in pages.ranges:
                self._reader.require_intact(part, self._files.address(part))
        for placement in placements:
            if placement.how == "brought":
                self.counts.read_bytes += self._layout.experts[placement.key].length
            for victim in placement.victims:
                for part in self._layout.experts[victim].ranges:
                    self._reader.do(partial(self._files.forget, part))

    def _make_room(self, key: ExpertKey, victims: Sequence[ExpertKey], taker: _Held) -> tuple[PageRange | None, ...]:
        """For each range of a key that of a victim whose memory it gets: where ranges are as long; else None."""
        pages = self._layout.experts[key]
        if (left := self._taken_from.pop(key, None)) is not None:
            # Its memory is on the way to another.
            left.wait()
        taken: tuple[PageRange, ...] = ()
        for victim in victims:
            self._held.pop(victim).wait()
            given_up = self._layout.experts[victim].ranges
            if not taken and [p.length for p in given_up] == [p.length for p in pages.ranges]:
                self._taken_from[victim] = taker
                taken = given_up
                continue
            for part in given_up:
                self._files.uncover(part)
        return taken or (None,) * len(pages.ranges)
