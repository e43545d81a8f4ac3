"""JSON from outside: the one door for everything that is read back from a disk or a peer, within bounds."""

import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from dfqs.errors import FormatError, UsageError, printable
from dfqs.storage.files import is_foreign, naming, open_regular
from dfqs.units import format_bytes

MAX_DEPTH = 64
"""Objects and arrays inside each other; no document of ours comes near."""
_INTEGER_CHARACTERS = 20
"""Of a 64-bit integer with its sign."""


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """All bytes of a regular file that may have been put there by anybody.

    A pipe or a device is refused without waiting for it; a file that grows while it is read is read no further than
    the limit.

    Raises:
        FormatError: it is larger than `limit_bytes`.
        UsageError: there is no such file, or it is no regular file.
    """
    try:
        handle = open_regular(path, follow=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"no such file: {path}") from None
    except OSError as error:
        if not is_foreign(error):
            raise
        raise UsageError(f"{path} is {'a directory' if path.is_dir() else 'not a regular file'}") from None
    with open(handle, "rb") as file, naming(handle):
        if os.fstat(handle).st_size <= limit_bytes:
            data = file.read(limit_bytes + 1)
            if data is None:
                # Some of /proc look like files, and wait.
                raise UsageError(f"{path} is not a regular file")
            if len(data) <= limit_bytes:
                return data
    raise FormatError(f"larger than the {limit_bytes:,} bytes that a file of this kind can have", path=path)


def read_text(path: Path, limit_bytes: int, what: str, *, lenient: bool = False) -> str:
    """A text file of the user's own.

    Args:
        what: it is for, for messages: `prompt`.
        lenient: bytes that are no UTF-8 become U+FFFD.

    Raises:
        UsageError: it cannot be read, is no regular file or no UTF-8 text, or is larger than `limit_bytes`.
    """
    try:
        return read_bounded(path, limit_bytes).decode(errors="replace" if lenient else "strict")
    except FormatError:
        raise UsageError(f"{path} is larger than a {what} may be ({format_bytes(limit_bytes)})") from None
    except OSError as error:
        raise UsageError(f"the {what} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start:,}") from None


def parse_json(data: bytes | str, *, path: Path | None = None, max_keys: int | None = None) -> Any:
    """The value of a JSON text from outside: the one door for everything that is read back from a disk or a peer.

    Beyond being JSON, it holds nothing that makes trouble later: no NaN or infinity, no integer above 64 bits, no
    half of a surrogate pair (which no file can hold), no nesting deeper than `MAX_DEPTH`.

    Args:
        max_keys: of one object.

    Raises:
        FormatError: it is not that.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        if not text.strip():
            raise FormatError("not usable JSON: it is empty", path=path)
        value = json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_refuse_constant)
        if max_keys is not None or not _is_shallow_and_plain(text):
            _check_values(value, max_keys)
    except RecursionError:
        raise FormatError("nested too deeply to be a document of ours", path=path) from None
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8 text", path=path, offset=error.start) from None
    except ValueError as error:
        raise FormatError(f"not usable JSON: {printable(str(error), 200)}", path=path) from None
    return value


def readable_text(value: Any) -> Any:
    """A path, or a stranger's words, as text that any reader of JSON takes: bytes that are no UTF-8 as numbers."""
    if isinstance(value, os.PathLike):
        return os.fsencode(value).decode("utf-8", "backslashreplace")
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _is_shallow_and_plain(text: str) -> bool:
    """Whether the text alone shows that nothing in it is nested too deeply or half a character: most lines of journals,
    of which there are hundreds of thousands.
    """
    return text.count("[") + text.count("{") <= MAX_DEPTH and "\\u" not in text and text.isascii()


def _check_values(value: Any, max_keys: int | None) -> None:
    """Depth and text of everything inside; not recursive, so that no nesting can exhaust the stack."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            item.encode("utf-8")
        elif isinstance(item, list | dict):
            if depth == MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
            if isinstance(item, dict):
                if max_keys is not None and len(item) > max_keys:
                    raise ValueError(f"an object of more than {max_keys:,} keys")
                waiting.extend((key, depth + 1) for key in item)
                item = item.values()
            waiting.extend((inner, depth + 1) for inner in item)


def _integer(text: str) -> int:
    if len(text) > _INTEGER_CHARACTERS or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"an integer of more than 64 bits: {text[:24]}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number beyond every range: {text[:24]}")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")
