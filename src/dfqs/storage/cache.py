"""Where dfqs keeps what is this user's and not a model's: what it fetched or built, and the key of its journals."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.storage.locks import open_locked


def cache_directory() -> Path:
    """`DFQS_CACHE`, else `$XDG_CACHE_HOME/dfqs`, else `~/.cache/dfqs`. It need not exist.

    Raises:
        UsageError: this user has no home directory, and neither variable is set.
    """
    if own := os.environ.get("DFQS_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        # The specification of these variables has relative ones ignored.
        return Path(base) / "dfqs"
    try:
        return Path.home() / ".cache/dfqs"
    except RuntimeError:
        raise UsageError("this user has no home directory to keep a cache in; set DFQS_CACHE to a directory") from None


@contextlib.contextmanager
def cache_lock(name: str) -> Iterator[None]:
    """Makes the cache's directory if need be, and lets one process at a time do the work called `name` in it.

    Raises:
        UsageError: the directory cannot be made or written; names the variable that moves it.
    """
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = open_locked(directory / f".{name}.lock", "", wait_s=None)
    except OSError as error:
        raise UsageError(
            f"cannot write in the cache directory {directory} ({error.strerror}); set DFQS_CACHE to another one"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def state_directory() -> Path:
    """Where dfqs keeps what a user would miss: `DFQS_CACHE`/state where that is set, else `$XDG_STATE_HOME/dfqs`, else
    `~/.local/state/dfqs`. It need not exist.

    Raises:
        UsageError: this user has no home directory, and no variable names one.
    """
    if own := os.environ.get("DFQS_CACHE"):
        return Path(own) / "state"
    base = os.environ.get("XDG_STATE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "dfqs"
    try:
        return Path.home() / ".local" / "state" / "dfqs"
    except RuntimeError:
        raise UsageError("this user has no home directory to keep back-ups in; set DFQS_CACHE to a directory") from None
