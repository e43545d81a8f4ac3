"""Messages of a conversation, and how a chat template fails on them."""

from collections.abc import Mapping, Sequence
from typing import Any

from dfqs.errors import RuntimeFailure

Conversation = Sequence[Mapping[str, Any]]


MODELS_OWN = "the model's chat template"
"""Whose template it is, as sentences begin."""


class TemplateFailure(RuntimeFailure):
    """A template cannot be rendered with these messages.

    Args:
        does: what it does instead, in words.
        whose: which template it is, in words.
    """

    def __init__(self, does: str, whose: str = MODELS_OWN) -> None:
        self.does = does
        self.whose = whose
        super().__init__(f"{whose} {does}")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.does, self.whose))


class TemplateDropsMessage(RuntimeFailure):
    """The rendered text lacks what the user or the system said.

    Args:
        role: whose message it is.
        way_out: what to do about it.
        whose: which template it is, in words.
    """

    def __init__(self, role: str, way_out: str, whose: str = MODELS_OWN) -> None:
        self.role, self.way_out, self.whose = role, way_out, whose
        self.what = f"{whose} drops the {role} message"
        super().__init__(f"{self.what}; {way_out}")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.role, self.way_out, self.whose))
