"""Where dfqs keeps what is this user's and not a model's: what it fetched or built, and the key of its journals."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.storage.locks import open_locked

_MOVES = "set DFQS_CACHE to a directory"


class NoHome(UsageError):
    """This user has no home directory (a container's user that is a number, a service). Nothing can be kept in one;
    who only looks whether something was kept takes it as nothing."""


def home_directory(purpose: str, advice: str) -> Path:
    """This user's home directory.

    Args:
        purpose: what it is asked for, after "no home directory".
        advice: what to do where there is none.

    Raises:
        NoHome: there is none.
    """
    # An empty or relative HOME would put things into the root directory, or wherever the user is at the moment.
    with contextlib.suppress(RuntimeError):
        if os.environ.get("HOME") != "" and (home := Path.home()).is_absolute():
            return home
    raise NoHome(f"this user has no home directory{purpose}; {advice}")


def cache_directory() -> Path:
    """`DFQS_CACHE`, else `$XDG_CACHE_HOME/dfqs`, else `~/.cache/dfqs`. It need not exist.

    Raises:
        NoHome: this user has no home directory, and neither variable is set.
    """
    if own := os.environ.get("DFQS_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        # The specification of these variables has relative ones ignored.
        return Path(base) / "dfqs"
    return home_directory(" to keep a cache in", _MOVES) / ".cache/dfqs"


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
        NoHome: this user has no home directory, and no variable names one.
    """
    if own := os.environ.get("DFQS_CACHE"):
        return Path(own) / "state"
    base = os.environ.get("XDG_STATE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "dfqs"
    return home_directory(" to keep back-ups in", _MOVES) / ".local" / "state" / "dfqs"
