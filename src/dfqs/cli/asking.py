"""Questions to whoever sits at the terminal. Where nobody does, the answer has to be an option."""

import sys

from dfqs.cli.output import err, escape_controls
from dfqs.errors import UsageError


def confirm(question: str, what: str, option: str = "--yes") -> bool:
    """Ask on stderr, and read the answer from the terminal; anything but y or yes is no.

    Args:
        what: the same as a thing to do, for where nobody can be asked.
        option: that answers beforehand.

    Raises:
        UsageError: there is no terminal to ask at.
    """
    if not (sys.stdin.isatty() and err.is_terminal):
        raise UsageError(f"nobody is here to ask; {option} makes it {what}")
    err.print(f"{escape_controls(question)} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
