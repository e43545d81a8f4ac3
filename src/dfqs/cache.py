"""Where dfqs keeps what is this user's and not a model's: what it fetched or built, and the key of its journals."""

import os
from pathlib import Path

from dfqs.errors import UsageError


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
