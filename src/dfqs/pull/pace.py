"""Whether the processor is what a pull waits for, and not the network."""

import time
from collections.abc import Callable

WINDOW_S = 0.2
FULL_PROCESSORS = 0.8
"""Nearly all that receiving can have: Python's threads run one at a time, but for hashing and copying."""


class ProcessorPace:
    """How much of a processor this process takes, looked at in windows of a fifth of a second."""

    def __init__(
        self, wall_s: Callable[[], float] = time.monotonic, processor_s: Callable[[], float] = time.process_time
    ) -> None:
        self._wall_s, self._processor_s = wall_s, processor_s
        self._since_s, self._taken_s = wall_s(), processor_s()
        self._has_room = False

    def has_room(self) -> bool:
        """Whether there was room in the last whole window; False in the first."""
        now_s = self._wall_s()
        if now_s - self._since_s >= WINDOW_S:
            taken_s = self._processor_s()
            self._has_room = taken_s - self._taken_s < FULL_PROCESSORS * (now_s - self._since_s)
            self._since_s, self._taken_s = now_s, taken_s
        return self._has_room
