"""What the system refuses, in words: what, where, and what to do about it. Loaded only where it refused something."""

import errno
import os
from pathlib import Path

_ADVICE = {
    errno.ENOSPC: "free some space and run this again",
    errno.EDQUOT: "this user may take no more of the disk; free some space and run this again",
    errno.EROFS: "name a place that can be written",
    errno.EFBIG: "its file system, or a limit of this process (ulimit -f), takes no file so large; name another place",
    errno.EMFILE: "this process may open no more; allow more (ulimit -n)",
    errno.ENFILE: "this machine may open no more; end other programs, or allow more (fs.file-max)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle, or are too many",
    errno.EPIPE: "the program at the other end of a pipe has gone",
}
_SHOWN = 300
"""Letters of a name; a longer one would hide what is said about it."""


def describe_refusal(error: OSError) -> str:
    """The system's sentence with the file before it, as every other error has it, and what to do if that is known."""
    given = error.filename
    name = "" if given is None else os.fsdecode(given) if isinstance(given, bytes) else str(given)
    if error.errno == errno.ENOENT and not Path(name).is_absolute() and not _has_directory():
        return "the directory that this runs in was removed; change to one that is there"
    words = error.strerror or str(error)
    if name:
        words = f"{name if len(name) <= _SHOWN else f'{name[:_SHOWN]}...'}: {words}"
    advice = _ADVICE.get(error.errno or 0)
    return f"{words}; {advice}" if advice else words


def _has_directory() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True
