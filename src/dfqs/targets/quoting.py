"""Words as shells and formats read them: quoted so that whatever a file is called, one word stays one word. Pure."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence

from dfqs.targets.contract import Command, System

_SAFE_POWERSHELL = re.compile(r"[\w./:=+@\\-]+", re.ASCII)
_PARAMETER = re.compile(r"-{1,2}[A-Za-z][\w-]*", re.ASCII)
_QUOTES = "'\u2018\u2019\u201a\u201b"
"""All of these end PowerShell's literal strings."""
_UNSAFE_IN_IDENTIFIERS = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_IDENTIFIER = 100


def posix_line(words: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command for a POSIX shell."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    return " ".join([*variables, *map(shlex.quote, words)])


def powershell_line(words: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command for PowerShell."""
    variables = "".join(
        f"$env:{name} = {_powershell(value, always=True)}; " for name, value in (environment or {}).items()
    )
    program, *rest = words
    called = program if _SAFE_POWERSHELL.fullmatch(program) else f"& {_powershell(program, always=True)}"
    return variables + " ".join([called, *map(_powershell, rest)])


def command_line(command: Command, system: System) -> str:
    """A command in the words of a system's own shell: PowerShell on Windows, sh elsewhere."""
    write = powershell_line if system == "windows" else posix_line
    return write(command.words, command.environment)


def json_text(value: object) -> str:
    """A value as JSON; a string is a string of Python, of YAML (double-quoted) and of JavaScript too."""
    return json.dumps(value, ensure_ascii=False)


def python_text(text: str) -> str:
    """A string literal of Python."""
    return ascii(text)


def identifier_of(name: str) -> str:
    """A name for directories and lists of models: what is not a letter, a digit, `.`, `_` or `-` becomes one `-`.

    Never empty, never hidden, never a way upwards.
    """
    safe = _UNSAFE_IN_IDENTIFIERS.sub("-", name).strip("-.")[:_LONGEST_IDENTIFIER].rstrip("-.")
    return re.sub(r"\.{2,}", ".", safe) or "model"


def _powershell(word: str, *, always: bool = False) -> str:
    if not always and word and (_SAFE_POWERSHELL.fullmatch(word) or _PARAMETER.fullmatch(word)) and word[0] != "@":
        return word
    return "'" + "".join(char * 2 if char in _QUOTES else char for char in word) + "'"
