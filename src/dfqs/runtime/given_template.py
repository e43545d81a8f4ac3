"""A chat template from a file of the user's own, in place of the one that a model's file has or lacks."""

import hashlib
from dataclasses import dataclass

from dfqs.errors import printable


@dataclass(frozen=True, slots=True)
class GivenTemplate:
    """A template and where it is from; a plain value that pickles."""

    text: str
    name: str
    """Of its file, for messages."""

    @property
    def whose(self) -> str:
        """The template, as sentences begin with it."""
        return f"the chat template {printable(self.name, 200)}"

    @property
    def sha256(self) -> str:
        """Of the text, as conditions name a template."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def is_that_of(self, own: str | None) -> bool:
        """Whether the model has the very same: a line's end at the end is not printed, and editors put one there."""
        return own is not None and own.removesuffix("\n") == self.text.removesuffix("\n")
