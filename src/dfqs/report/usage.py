"""How a published model is used with one system: the form in which targets hand it to a model card. Pure."""

import shlex
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What a reader of a model card copies to use the model with one system."""

    target: str
    """Name of the system, as `dfqs deploy` has it: `llama.cpp`, `ollama`."""
    title: str
    """For people: `Ollama`."""
    language: str
    """Of the block of code: `bash`, `python`, `json`."""
    text: str
    """The block itself, without fences: lines to copy."""


def shell_word(word: str) -> str:
    """One word for a shell, on one line."""
    return shlex.quote("".join(c if c.isprintable() else "?" for c in word))
