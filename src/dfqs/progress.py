"""How long work tells its caller where it is. The command line draws it; the library never prints."""

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on. `done` and `total` are in the unit that the work's docstring names (bytes, tokens...)."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None: ...


class Tell(Protocol):
    """Called with a sentence on what holds the work up (a server that is asked again), when it begins to."""

    def __call__(self, message: str, /) -> None: ...


def in_stages(progress: Progress) -> Progress:
    """The same for work in stages that each count from 0: what earlier ones did counts as done."""
    before = last = 0

    def tell(done: int, total: int | None = None, note: str = "") -> None:
        nonlocal before, last
        if before + done < last:
            before = last
        last = before + done
        progress(last, None if total is None else before + total, note)

    return tell


def no_progress(done: int, total: int | None = None, note: str = "") -> None:
    """Says nothing."""


def untold(message: str, /) -> None:
    """Says nothing."""
