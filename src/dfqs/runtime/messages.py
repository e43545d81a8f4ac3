"""Messages of a conversation, and what becomes of one that a chat template leaves out."""

from collections.abc import Mapping, Sequence
from typing import Any

from dfqs.errors import RuntimeFailure

Conversation = Sequence[Mapping[str, Any]]


class TemplateDropsMessage(RuntimeFailure):
    """The rendered text lacks what the user or the system said.

    Args:
        what: which message, in words.
        way_out: what to do about it.
    """

    def __init__(self, what: str, way_out: str) -> None:
        self.what, self.way_out = what, way_out
        super().__init__(f"{what}; {way_out}")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.what, self.way_out))
