"""Files that take seconds to make and that no test changes: made once a run, however many processes share the tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqs.storage.locks import open_locked


def shared_directory(factory: pytest.TempPathFactory) -> Path:
    """Of this run: with pytest-xdist, the processes' own directories lie in it."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def build_once(factory: pytest.TempPathFactory, name: str, write: Callable[[Path], object]) -> Path:
    """The file `name` of this run, which `write` makes where it is not there yet; complete, or not there.

    It is made in a directory of its own, so that what is written beside a file lies beside it and nobody else's.
    """
    directory = shared_directory(factory) / f"shared-{name}"
    directory.mkdir(exist_ok=True)
    path = directory / name
    lock = open_locked(directory.with_suffix(".lock"), "never busy: it is waited for", wait_s=None)
    try:
        if not path.exists():
            unfinished = directory / f"unfinished-{name}"
            write(unfinished)
            unfinished.rename(path)
    finally:
        os.close(lock)
    return path
