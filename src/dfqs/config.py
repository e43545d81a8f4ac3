"""Defaults that the user keeps: a TOML file, and variables that come before it.

An option on the command line comes first, then the environment, then the file, then what dfqs does by itself.
"""

import importlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from dfqs.errors import FormatError, UsageError, printable
from dfqs.storage.cache import NoHome, home_directory
from dfqs.storage.documents import read_bounded
from dfqs.units import MOST_THREADS, parse_tokens

FILE_VARIABLE = "DFQS_CONFIG"
_LIMIT_BYTES = 64 << 10
Setting = int | str
Origin = Literal["environment", "file", "default"]


@dataclass(frozen=True, slots=True)
class Known:
    """One setting that there is."""

    key: str
    variable: str
    """Of the environment."""
    meaning: str
    default: str
    """What holds where nothing is set, for people."""
    is_wanted: str
    """What a value looks like, for people."""
    read: Callable[[Setting], Setting]
    """A value out of the file's or a variable's; raises ValueError or UsageError."""


@dataclass(frozen=True, slots=True)
class Held:
    """A setting as it holds now."""

    known: Known
    value: Setting | None
    """None: nothing is set."""
    origin: Origin
    where: str
    """The variable, or the file and its line; empty of a default."""


def _threads(value: Setting) -> int:
    number = int(value)
    if not 1 <= number <= MOST_THREADS:
        raise ValueError
    return number


def _folder(value: Setting) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    # Of a user without a home it stays `~`, which is not absolute.
    path = Path(os.path.expanduser(value))  # noqa: PTH111
    if not path.is_absolute():
        raise ValueError
    return str(path)


def _endpoint(value: Setting) -> str:
    parts = urlsplit(str(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError
    return str(value).rstrip("/")


KNOWN = (
    Known("threads", "DFQS_THREADS", "CPU threads of run, chat and serve", "one a physical core",
          f"a number from 1 to {MOST_THREADS}", _threads),
    Known("context", "DFQS_CONTEXT", "context of run, chat and serve, in tokens",
          "as trained, at most 4096 (serve: 8192)",
          "a number of tokens, as 8192 or \"8k\"", lambda value: parse_tokens(str(value))),
    Known("model-folder", "DFQS_MODEL_FOLDER", "where models of the Hub are kept", "models in dfqs's cache",
          "an absolute path, in quotes", _folder),
    Known("hub-endpoint", "HF_ENDPOINT", "the Hub that models come from", "https://huggingface.co",
          "an address that begins with https://, in quotes", _endpoint),
)  # fmt: skip
OPTIONS = {"threads": "threads", "context": "ctx"}
"""Settings that are options of `run`, `chat` and `serve`: key -> name of the parameter."""


def config_path() -> Path:
    """`DFQS_CONFIG`, else `dfqs/config.toml` of `$XDG_CONFIG_HOME` or `~/.config`. It need not exist.

    Raises:
        NoHome: this user has no home directory, and neither variable is set.
    """
    if own := os.environ.get(FILE_VARIABLE):
        return Path(own)
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "dfqs/config.toml"
    return home_directory(" to keep settings in", f"set {FILE_VARIABLE} to a file") / ".config/dfqs/config.toml"


def held(key: str) -> Held:
    """One setting as it holds now.

    Raises:
        UsageError: its variable, or anything in the file, cannot be used; says where.
    """
    return _held(find_known(key), _stored)


def held_settings() -> tuple[Held, ...]:
    """All settings as they hold now.

    Raises:
        UsageError: as `held`.
    """
    stored = _stored()
    return tuple(_held(known, lambda: stored) for known in KNOWN)


def option_defaults() -> dict[str, Setting]:
    """Values of the options that have a setting, by the name of their parameter: those that are set.

    Raises:
        UsageError: as `held`.
    """
    found = {OPTIONS[one.known.key]: one.value for one in held_settings() if one.known.key in OPTIONS}
    return {name: value for name, value in found.items() if value is not None}


def find_known(key: str) -> Known:
    """Raises UsageError where there is no such setting."""
    for known in KNOWN:
        if known.key == key:
            return known
    raise UsageError(f"there is no setting '{printable(key)}'; there are {', '.join(known.key for known in KNOWN)}")


def read_file(path: Path) -> Mapping[str, tuple[Setting, int]]:
    """What a file sets, each with its line; nothing where there is no file.

    Raises:
        UsageError: it is no TOML, or sets what there is not, or to what it cannot be.
    """
    if not path.exists():
        return {}
    try:
        text = read_bounded(path, _LIMIT_BYTES).decode("utf-8")
    except (UnicodeDecodeError, FormatError):
        raise UsageError(f"{path} is no text of settings; 'dfqs config' shows what one is") from None
    return {known.key: (value, line) for known, value, line in _parsed(path, text)}


def _stored() -> Mapping[str, tuple[Setting, int]]:
    """What this user's file sets."""
    try:
        path = config_path()
    except NoHome:
        return {}
    return read_file(path)


def _parsed(path: Path, text: str) -> list[tuple[Known, Setting, int]]:
    # Only who has a file pays for the parser.
    tomllib = importlib.import_module("tomllib")
    try:
        # With a line more, what is wrong in the last one has a number too.
        values = tomllib.loads(f"{text}\n")
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no TOML: {printable(str(error), 200)}") from None
    found = []
    for key, value in values.items():
        line = _line_of(key, text)
        where = f"{path}, line {line}"
        try:
            known = find_known(key)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise UsageError(f"{where}: {key} is {known.is_wanted}")
        found.append((known, _checked(known, value, where), line))
    return found


def _held(known: Known, stored: Callable[[], Mapping[str, tuple[Setting, int]]]) -> Held:
    if given := os.environ.get(known.variable):
        return Held(known, _checked(known, given, known.variable), "environment", known.variable)
    if (entry := stored().get(known.key)) is not None:
        return Held(known, entry[0], "file", f"{config_path()}, line {entry[1]}")
    return Held(known, None, "default", "")


def _checked(known: Known, value: Setting, where: str) -> Setting:
    try:
        return known.read(value)
    except (ValueError, UsageError):
        shown = printable(str(value)) if isinstance(value, int) else f"'{printable(value)}'"
        # In a shell, and in a variable, nothing stands in quotes.
        in_file = where not in ("", known.variable)
        wanted = known.is_wanted if in_file else known.is_wanted.removesuffix(", in quotes")
        raise UsageError(f"{f'{where}: ' if where else ''}{known.key} is {wanted}, not {shown}") from None


def change_file(key: str, value: str | None) -> Path:
    """Set a setting in the file, or with None take it out; every other line stays as it is. Returns the file's path.

    Raises:
        UsageError: there is no such setting, it cannot have that value, or the file is written in a way that this
            cannot change.
    """
    known = find_known(key)
    # A link to where the user really keeps it stays a link.
    path = config_path().resolve()
    wanted = {name: entry[0] for name, entry in read_file(path).items()}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = [line for line in lines if not _sets(key).match(line)]
    wanted.pop(key, None)
    if value is not None:
        wanted[key] = _checked(known, value, "")
        lines.append(f"{key} = {_as_toml(wanted[key])}")
    text = "".join(f"{line}\n" for line in lines)
    try:
        read = {known.key: value for known, value, _ in _parsed(path, text)}
    except UsageError:
        read = None
    if read != wanted:
        raise UsageError(f"{path} is not written a setting a line; change it with an editor")
    path.parent.mkdir(parents=True, exist_ok=True)
    importlib.import_module("dfqs.storage.atomic").write_bytes_atomic(path, text.encode("utf-8"), overwrite=True)
    return path


def _as_toml(value: Setting) -> str:
    return str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _sets(key: str) -> re.Pattern[str]:
    name = re.escape(key)
    return re.compile(rf"""\s*(?:{name}|"{name}"|'{name}')\s*=""")


def _line_of(key: str, text: str) -> int:
    """Where a key stands: set, begun as a table, or dotted."""
    name = re.escape(key)
    begins = re.compile(rf"""\s*(?:\[\s*)*["']?{name}["']?\s*[\].=]""")
    return next((number for number, line in enumerate(text.split("\n"), 1) if begins.match(line)), 1)
