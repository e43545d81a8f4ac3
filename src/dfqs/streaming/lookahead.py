"""Reading what the next layer will probably choose while the disk would stand still.

While a layer computes, nothing else is known to be wanted, and the disk waits. So the matrices that are guessed are
read meanwhile, one at a time, into memory beside the model; what is chosen indeed moves over the mapping without being
copied, what is not is forgotten. A guess that was not begun before the layer has chosen is dropped, so a wrong one
delays what is wanted by the rest of one read at most, and never takes the place of an expert that is held.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from dfqs.errors import DfqsError
from dfqs.streaming.layout import ExpertPages, PageRange, StreamLayout
from dfqs.streaming.pages import MappedFiles
from dfqs.streaming.reader import Arrival, Job, PageReader

_TRIED = 48
"""After so many reads for a layer it is known whether guessing helps."""
_WORTH = 0.25
"""Share of them that have to be wanted; disk that stands still costs nothing, what disturbs it does."""
_OF_CACHE = 8
"""Guesses may take one part in so many of the cache."""
_MATRICES = 3
"""Of an expert: gate, up, down."""


@dataclass(frozen=True, slots=True)
class GuessRoom:
    """Memory for guesses."""

    places: int
    """Matrices that can be guessed at a time; 0: nothing is guessed."""
    length: int
    """Of the largest, in bytes."""

    @property
    def bytes(self) -> int:
        return self.places * self.length


def plan_guess_room(layout: StreamLayout, used: int, cache_bytes: int) -> GuessRoom:
    """What of a cache is for guesses; nothing where it is too small to spare that.

    Args:
        used: experts that a token uses in a layer.
    """
    length = max(pages.length for expert in layout.experts.values() for pages in expert.ranges)
    # Half of what a layer uses: what a disk gives while a layer computes is rarely more.
    room = GuessRoom(max(used * _MATRICES // 2, 1), length)
    # Not where a batch's layer, or everything, fits without it only.
    wholes = (layout.largest_layer_bytes, layout.experts_bytes)
    spoils = any(cache_bytes - room.bytes < whole <= cache_bytes for whole in wholes)
    return GuessRoom(0, length) if spoils or room.bytes * _OF_CACHE > cache_bytes else room


@dataclass(slots=True)
class _Guess:
    layer: int
    pages: PageRange
    memory: int
    arrival: Arrival
    error: str | DfqsError | None = "it was not read"


class LookAhead:
    """Guesses that are read, for one layer at a time. All calls from the thread that computes.

    Args:
        room: of whole pages.
    """

    def __init__(self, files: MappedFiles, reader: PageReader, room: GuessRoom) -> None:
        self.read_bytes = 0
        self.used_bytes = 0
        """Of those, what was chosen indeed."""
        self._files = files
        self._reader = reader
        self._memory = [files.new_memory(room.length) for _ in range(room.places)]
        self._guesses: dict[PageRange, _Guess] = {}
        self._jobs: dict[Job, _Guess] = {}
        """Of the layer that has not chosen yet."""
        self._reads: Counter[int] = Counter()
        self._wanted: Counter[int] = Counter()

    @property
    def unused_bytes(self) -> int:
        """Read for nothing."""
        return self.read_bytes - self.used_bytes

    def is_worth(self, layer: int) -> bool:
        """Whether guesses for a layer have been right often enough."""
        return self._reads[layer] < _TRIED or self._wanted[layer] >= _WORTH * self._reads[layer]

    def begin(self, layer: int, experts: Sequence[ExpertPages]) -> None:
        """Read as much of these as there is time for, the first ones first."""
        self.settle()
        parts = [part for expert in experts for part in expert.ranges]
        self._guesses = {
            part: _Guess(layer, part, memory, Arrival(1)) for part, memory in zip(parts, self._memory, strict=False)
        }
        self._jobs = {partial(self._read, guess): guess for guess in self._guesses.values()}
        self._reader.offer(tuple(self._jobs))

    def settle(self) -> None:
        """The layer has chosen: begin no other read."""
        if not self._jobs:
            return
        for job in self._reader.offer(()):
            del self._guesses[self._jobs.pop(job).pages]
        for guess in self._jobs.values():
            self._reads[guess.layer] += 1
            self.read_bytes += guess.pages.length
        self._jobs = {}

    def take(self, pages: PageRange) -> _Guess | None:
        """What was read of a matrix that is wanted, to be given to `move_in`; None where nothing was."""
        guess = self._guesses.pop(pages, None)
        if guess is not None:
            self._wanted[guess.layer] += 1
            self.used_bytes += pages.length
        return guess

    def move_in(self, guess: _Guess, left: PageRange | None) -> str | DfqsError | None:
        """In a reader's thread: have a guess in its place. Its memory gets that over `left` in exchange.

        Returns:
            What is wrong, where it could not be read.
        """
        guess.arrival.wait()
        if guess.error is None:
            self._files.move_in(guess.memory, guess.pages, left)
        return guess.error

    def _read(self, guess: _Guess) -> None:
        # Memory is taken anew only where another read has finished with it: reads here come one after another, and
        # none while something is wanted.
        try:
            guess.error = self._reader.read_now(guess.pages, guess.memory)
        except DfqsError as error:
            guess.error = error
        finally:
            guess.arrival.count_down(None)
