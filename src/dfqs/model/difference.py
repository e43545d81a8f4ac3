"""How the headers of two models differ: keys, tensors, chat template. Tensor bytes are not read."""

import difflib
from collections.abc import Iterable

from dfqs.model.files import ModelFiles
from dfqs.model.listing import KeyListing, TensorListing, chat_template, list_key, list_tensors
from dfqs.model.spec import CHAT_TEMPLATE
from dfqs.records import Record, Text


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
    ours, theirs = first.header.metadata, second.header.metadata
    names = dict.fromkeys((*ours, *theirs))
    other_keys = [
        KeyDifference(name=name, first=_key(first, name), second=_key(second, name))
        for name in names
        if not (name in ours and name in theirs and first.header.same_value(second.header, name))
    ]
    one, two = ({tensor.name: tensor for tensor in list_tensors(model)} for model in (first, second))
    other_tensors = [
        TensorDifference(name=name, first=one.get(name), second=two.get(name))
        for name in one | two
        if not (name in one and name in two and (one[name].shape, one[name].type) == (two[name].shape, two[name].type))
    ]
    templated = any(key.name == CHAT_TEMPLATE for key in other_keys)
    return HeaderDifference(
        keys=tuple(other_keys),
        tensors=tuple(other_tensors),
        chat_template=tuple(_template_lines(first, second)) if templated else (),
        equal_keys=len(names) - len(other_keys),
        equal_tensors=len(one | two) - len(other_tensors),
    )


def _template_lines(first: ModelFiles, second: ModelFiles) -> Iterable[str]:
    before, after = ((chat_template(model) or "").splitlines() for model in (first, second))
    return difflib.unified_diff(before, after, "first", "second", lineterm="")


def _key(model: ModelFiles, name: str) -> KeyListing | None:
    entry = model.header.metadata.find(name)
    return None if entry is None else list_key(model, entry)
