"""What is proved of a deployment: static (what was written says what it should), registered (the system lists it).

That a system answers with the model is proved by a question that only it can have asked: `dfqs.targets.live`.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import DfqsError
from dfqs.targets.contract import Command, ConfigEdits, Level, OwnFile, Part, Rendering
from dfqs.targets.formats import FORMATS
from dfqs.targets.plan import read_config
from dfqs.targets.values import hold_edits

_LISTING_S = 60.0
_CONTROLS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Verification:
    """Which level was reached, and what was found wrong."""

    level: Level | None
    """None: not even what was written is as it should be."""
    wrong: tuple[str, ...]
    listed: str | None
    """Why it is not known to be registered; None: it is."""


def verify_written(rendering: Rendering, *, ask: bool = True) -> Verification:
    """Look at everything that a rendering says, and ask the system for its models where it can be asked.

    Args:
        ask: run its listing, where it has one.
    """
    wrong = tuple(words for part in rendering.parts for words in _wrong_in(part))
    if wrong:
        return Verification(None, wrong, "what was written is not as it should be")
    if rendering.listing is None or rendering.listed_as is None:
        return Verification("static", (), "it has no command that lists its models")
    refusal = _not_listed(rendering.listing, rendering.listed_as) if ask else "it was not asked"
    return Verification("static" if refusal is not None else "registered", (), refusal)


def _wrong_in(part: Part) -> list[str]:
    path = Path(part.path)
    try:
        if isinstance(part, OwnFile):
            return [] if path.read_bytes() == part.text.encode("utf-8") else [f"{path} has other text"]
        if isinstance(part, ConfigEdits):
            config = read_config(path)
            if config is None:
                return [f"{path} is not there"]
            return [
                f"{path}: {way} is not what it should be"
                for way in hold_edits(FORMATS[part.format], config[0], part.edits)
            ]
        source = Path(part.source)
        if path.samefile(source) or path.stat().st_size == source.stat().st_size:
            return []
        return [f"{path} is not {source}"]
    except (OSError, DfqsError) as error:
        return [f"{path}: {error}"]


def _not_listed(listing: Command, name: str) -> str | None:
    """Why a system is not known to list a model; None: it does."""
    words = " ".join(listing.words)
    try:
        done = subprocess.run(
            listing.words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LISTING_S,
            env={**os.environ, **listing.environment},
            check=False,
        )
    except FileNotFoundError:
        return f"'{listing.words[0]}' is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"'{words}' did not answer ({type(error).__name__})"
    said = _CONTROLS.sub("", (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace"))
    # As a word of its own: the name of one model may begin with that of another.
    if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", said):
        return None
    return f"'{words}' does not list it"
