"""Texts to route: files of the user's, and the few that come along."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from dfqs.errors import FormatError, UsageError
from dfqs.records import parse_json, read_bounded

if TYPE_CHECKING:
    from dfqs.runtime.context import Model

LOAD_TEXTS = ("load-1", "load-2", "load-3", "load-4")
"""The requests of the standard load, in order of their slots (docs/routing.md)."""
MAX_TEXT_BYTES = 16 << 20
"""Of a file: some four million tokens, which take days."""
MAX_PROMPTS = 100_000


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, or tokens already."""

    name: str
    text: str = ""
    tokens: tuple[int, ...] | None = None

    def tokenize(self, model: "Model") -> list[int]:
        """Its tokens for `model`, with BOS where the model wants one."""
        return list(self.tokens) if self.tokens is not None else model.tokenize(self.text)


def packaged_prompt(name: str) -> Prompt:
    """One of the texts that come along: `first`, `second`, or one of `LOAD_TEXTS`."""
    text = resources.files("dfqs.routing").joinpath("texts", f"{name}.txt").read_text(encoding="utf-8")
    return Prompt(name, text)


def read_prompts(paths: Iterable[Path]) -> list[Prompt]:
    """Prompts from files: a `.jsonl` holds one a line (`{"text": ...}` or `{"prompt": ...}`), any other file is one.

    Raises:
        UsageError: a file is missing, empty, or no regular file.
        FormatError: one is too large, a line is not such an object, or the text is not UTF-8.
    """
    prompts = [prompt for path in paths for prompt in _read_file(path)]
    if not prompts:
        raise UsageError("no prompts: give at least one file with text")
    return prompts


def _read_file(path: Path) -> list[Prompt]:
    try:
        data = read_bounded(path, MAX_TEXT_BYTES)
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FormatError("the text is not UTF-8", path=path, offset=error.start) from None
    if path.suffix != ".jsonl":
        if not text.strip():
            raise UsageError(f"{path} is empty")
        return [Prompt(path.name, text)]
    prompts: list[Prompt] = []
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.strip():
            if len(prompts) == MAX_PROMPTS:
                raise UsageError(f"{path} holds more than {MAX_PROMPTS:,} prompts; cut it")
            prompts.append(Prompt(f"{path.name}:{number}", _text_of(line, path, number)))
    return prompts


def _text_of(line: bytes, path: Path, number: int) -> str:
    try:
        value = parse_json(line)
    except FormatError:
        value = None
    text = (value.get("text") or value.get("prompt")) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise FormatError(f'line {number} is no object with a "text" or "prompt" in it', path=path)
    return text
