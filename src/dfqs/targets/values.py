"""What a configuration's text is asked and told, whatever its format: one value by its way. Pure.

A format changes as few characters as it can, and every change is read back: what came out must be what was wanted, with
everything else as it was, or nothing is changed.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from dfqs.errors import FormatError
from dfqs.targets.contract import Edit, Named, Step


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""There is no value at a way."""


class ConfigText(Protocol):
    """A configuration format."""

    def read(self, text: str) -> Any:
        """All values, as plain ones.

        Raises:
            FormatError: it is no text of this format, or one that could be read in two ways.
        """
        ...

    def put(self, text: str, way: tuple[Step, ...], value: Any) -> str:
        """The text with a value in place of what was there, or of nothing."""
        ...

    def take_out(self, text: str, way: tuple[Step, ...]) -> str:
        """The text without what is there."""
        ...


def find(values: Any, way: Iterable[Step]) -> Any:
    """The value at a way among plain ones, or MISSING.

    Raises:
        FormatError: something on the way is no object or no list, where it should be.
    """
    for step in way:
        if values is MISSING or values is None:
            # Empty and not there are the same in YAML.
            return MISSING
        if isinstance(step, Named):
            if not isinstance(values, list):
                raise FormatError(f"is no list of entries with '{step.key}'", name=step.key)
            same = (entry for entry in values if isinstance(entry, dict) and entry.get(step.key) == step.value)
            values = next(same, MISSING)
        else:
            if not isinstance(values, dict):
                raise FormatError(f"'{step}' is looked for in what is no object", name=step)
            values = values.get(step, MISSING)
    return values


def single_edits(edits: Iterable[Edit]) -> Iterator[Edit]:
    """Edits of one value each: an object is put in key by key, so that further keys of the user's stay in it."""
    for edit in edits:
        if isinstance(edit.value, dict) and edit.value:
            inner = (Edit((*edit.way, key), value, edit.only_where_missing) for key, value in edit.value.items())
            yield from single_edits(inner)
        else:
            yield edit


def apply_edits(format_: ConfigText, text: str, edits: Iterable[Edit]) -> str:
    """The text with all values in it.

    Raises:
        FormatError: the text does not parse, or has something else where an object is needed.
    """
    for edit in single_edits(edits):
        before = find(format_.read(text), edit.way)
        if before is not MISSING and edit.only_where_missing:
            continue
        if before is MISSING or not same(before, edit.value):
            text = _put_checked(format_, text, edit.way, edit.value)
    return text


def hold_edits(format_: ConfigText, text: str, edits: Iterable[Edit]) -> list[str]:
    """Ways at which a text does not say what it should, as words.

    Raises:
        FormatError: it does not parse.
    """
    values = format_.read(text)
    wrong = []
    for edit in single_edits(edits):
        found = find(values, edit.way)
        if found is MISSING or not (edit.only_where_missing or same(found, edit.value)):
            wrong.append(way_words(edit.way))
    return wrong


def take_back_edits(format_: ConfigText, text: str, edits: Iterable[Edit], before: str | None) -> str:
    """The text without what was put in: earlier values are there again, what was not there is gone, and what the user
    changed later stays.

    Args:
        before: the text as it was, or None where there was no file.

    Raises:
        FormatError: as `apply_edits`.
    """
    earlier = format_.read(before or "")
    for edit in single_edits(edits):
        values, old = format_.read(text), find(earlier, edit.way)
        now = find(values, edit.way)
        if now is MISSING or not same(now, edit.value):
            # The user has set it to something else since.
            continue
        if old is not MISSING:
            text = _put_checked(format_, text, edit.way, old) if not same(now, old) else text
            continue
        text = _take_out_checked(format_, text, edit.way)
        for length in range(len(edit.way) - 1, 0, -1):
            way = edit.way[:length]
            left = find(format_.read(text), way)
            if find(earlier, way) is not MISSING or not _is_only_ours(left, way[-1]):
                break
            if left is not MISSING:
                text = _take_out_checked(format_, text, way)
    return text


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are the same: true is not 1, and 1.0 is not 1."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def way_words(way: Iterable[Step]) -> str:
    """`providers.dfqs.models[id=m]`."""
    words = ""
    for step in way:
        words += f"[{step.key}={step.value}]" if isinstance(step, Named) else f".{step}" if words else step
    return words


def _is_only_ours(left: Any, step: Step) -> bool:
    if isinstance(step, Named):
        return left is MISSING or left == {} or (isinstance(left, dict) and set(left) <= {step.key})
    return left is MISSING or left is None or left in ({}, [])


def _put_checked(format_: ConfigText, text: str, way: tuple[Step, ...], value: Any) -> str:
    wanted = _with(format_.read(text), way, value)
    return _checked(format_, format_.put(text, way, value), wanted, way)


def _take_out_checked(format_: ConfigText, text: str, way: tuple[Step, ...]) -> str:
    wanted = _without(format_.read(text), way)
    return _checked(format_, format_.take_out(text, way), wanted, way)


def _checked(format_: ConfigText, text: str, wanted: Any, way: tuple[Step, ...]) -> str:
    try:
        found = format_.read(text)
    except FormatError:
        found = MISSING
    if not same(found, wanted):
        raise FormatError("its form is one that cannot be changed here without touching more", name=way_words(way))
    return text


def _with(values: Any, way: tuple[Step, ...], value: Any) -> Any:
    """Plain values with one more, or another."""
    if not way:
        return value
    step, rest = way[0], way[1:]
    if isinstance(step, Named):
        entries = [] if values is MISSING or values is None else list(values)
        if (entry := find(entries, (step,))) is MISSING:
            return [*entries, _with({step.key: step.value}, rest, value)]
        number = entries.index(entry)
        return [*entries[:number], _with(entry, rest, value), *entries[number + 1 :]]
    members = {} if values is MISSING or values is None else values
    return {**members, step: _with(members.get(step, MISSING), rest, value)}


def _without(values: Any, way: tuple[Step, ...]) -> Any:
    step, rest = way[0], way[1:]
    if isinstance(step, Named):
        entries = list(values)
        number = next(
            i for i, entry in enumerate(entries) if isinstance(entry, dict) and entry.get(step.key) == step.value
        )
        kept = [_without(entries[number], rest)] if rest else []
        return [*entries[:number], *kept, *entries[number + 1 :]]
    if rest:
        return {**values, step: _without(values[step], rest)}
    return {key: value for key, value in values.items() if key != step}
