"""Where the model's server is at the moment: it may be gone, and come again as another process on another socket."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class EngineState:
    """Written by who starts the server, read by the front; each field is one value, so no lock is needed."""

    path: Path | None = None
    """Its socket; None while there is none."""
    epoch: int = 0
    """How many there have been."""
    failures: dict[int, str] = field(default_factory=dict)
    """Epoch -> why it ended."""
    final: str | None = None
    """Why nothing will be answered any more."""
    answered: int = 0
    """Whole answers of status 200 to requests that compute, in the present epoch."""
    restarts: int = 0

    def up(self, path: Path) -> None:
        """A server answers at `path`."""
        self.epoch += 1
        self.answered = 0
        self.path = path

    def down(self, why: str) -> None:
        """The server is gone."""
        self.failures[self.epoch] = why
        self.path = None

    def end(self, why: str) -> None:
        """The server is gone, and none will follow."""
        self.down(why)
        self.final = why
