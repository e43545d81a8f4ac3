"""How the headers of two models differ: keys, tensors, chat template. Tensor bytes are not read."""

import difflib
from collections.abc import Iterable
from typing import TypeVar

from dfqs.model.files import ModelFiles
from dfqs.model.listing import CHAT_TEMPLATE, KeyListing, TensorListing, chat_template, list_keys, list_tensors
from dfqs.records import Record, Text

Listing = TypeVar("Listing", KeyListing, TensorListing)


class KeyDifference(Record):
    """One key that the two do not have alike; None: it is missing there."""

    name: Text
    first: KeyListing | None
    second: KeyListing | None


class TensorDifference(Record):
    """One tensor whose shape or type is not the same; None: it is missing there."""

    name: Text
    first: TensorListing | None
    second: TensorListing | None


class HeaderDifference(Record):
    """Everything in which two headers differ; where things stand in the files is not looked at."""

    keys: tuple[KeyDifference, ...]
    tensors: tuple[TensorDifference, ...]
    chat_template: tuple[Text, ...]
    """Lines of a unified diff; none where both are the same."""
    equal_keys: int
    equal_tensors: int

    @property
    def is_equal(self) -> bool:
        return not (self.keys or self.tensors)


def compare_headers(first: ModelFiles, second: ModelFiles) -> HeaderDifference:
    """Compare keys by type and bytes, and tensors by shape and type.

    Raises:
        FormatError: a chat template that is larger than any honest one.
    """
    keys = _pairs(list_keys(first), list_keys(second))
    tensors = _pairs(list_tensors(first), list_tensors(second))
    other_keys = [
        KeyDifference(name=name, first=one, second=two)
        for name, one, two in keys
        if one is None or two is None or (one.type, one.count, one.sha256) != (two.type, two.count, two.sha256)
    ]
    other_tensors = [
        TensorDifference(name=name, first=one, second=two)
        for name, one, two in tensors
        if one is None or two is None or (one.shape, one.type) != (two.shape, two.type)
    ]
    templated = any(key.name == CHAT_TEMPLATE for key in other_keys)
    return HeaderDifference(
        keys=tuple(other_keys),
        tensors=tuple(other_tensors),
        chat_template=tuple(_template_lines(first, second)) if templated else (),
        equal_keys=len(keys) - len(other_keys),
        equal_tensors=len(tensors) - len(other_tensors),
    )


def _template_lines(first: ModelFiles, second: ModelFiles) -> Iterable[str]:
    before, after = ((chat_template(model) or "").splitlines() for model in (first, second))
    return difflib.unified_diff(before, after, "first", "second", lineterm="")


def _pairs(first: Iterable[Listing], second: Iterable[Listing]) -> list[tuple[str, Listing | None, Listing | None]]:
    """What has the same name in both, in the order of the first; then what only the second has."""
    one, two = ({entry.name: entry for entry in entries} for entries in (first, second))
    return [(name, one.get(name), two.get(name)) for name in one | two]
