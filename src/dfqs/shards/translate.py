"""A model written for another program, said as llama.cpp says it: keys and tensors under its names, keys that the other
program does without out of the shapes. No value of a weight changes; what nothing tells is refused by name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from dfqs.errors import FormatError, UsageError, printable
from dfqs.gguf import Header, RawKeyValue, TensorInfo, ValueType, array, boolean, f32, u32
from dfqs.gguf.values import encode_string
from dfqs.gguf.writer import Key
from dfqs.shards.dialect_formulas import Untold, evaluate
from dfqs.shards.dialects import Dialect, Upstream, find_dialects, in_layer, known_upstream, split_layer
from dfqs.shards.rewriting import Rewritten

_UNTOLD = "nothing else in the file tells it"
Value = int | float | bool | tuple[int, ...]
_NAMED = 4
"""So many missing keys are told one by one."""


@dataclass(frozen=True, slots=True)
class Translation:
    """The same model in llama.cpp's words."""

    keys: tuple[Key, ...]
    tensors: tuple[Rewritten, ...]
    dialects: tuple[str, ...]
    """Whose names it had."""
    changes: tuple[str, ...]
    """A line each; none: it was in llama.cpp's words already."""


def translate(header: Header, keys: Sequence[Key], tensors: Sequence[Rewritten]) -> Translation:
    """Say a model as llama.cpp does.

    Args:
        keys: of the file to be written, as yet in the names of `header`.

    Raises:
        UsageError: of this architecture no other dialects are known.
        FormatError: a key is missing and nothing tells it, or two say different things of one.
    """
    architecture = header.metadata.text("general.architecture") or ""
    upstream = known_upstream().get(architecture)
    if upstream is None:
        known = ", ".join(known_upstream())
        raise UsageError(
            f"{header.source_name} is of the architecture '{printable(architecture, 40)}', of which no other "
            f"dialects are known here (only of {known}); without --dialect its form alone is repaired"
        )
    names = [tensor.name for tensor in tensors]
    dialects = find_dialects(architecture, header.metadata, names)
    renamed_keys, key_changes = _rename_keys(header, f"{architecture}.", keys, dialects)
    renamed, tensor_changes = _rename_tensors(header.source_name, tensors, dialects)
    is_renamed = bool(key_changes or tensor_changes)
    made, made_changes = _missing_keys(header, upstream, dialects, tensors, renamed, is_renamed=is_renamed)
    changes = (*key_changes, *tensor_changes, *made_changes)
    return Translation(
        (*renamed_keys, *made), tuple(renamed), tuple(dialect.name for dialect in dialects), tuple(changes)
    )


def describe_translation(header: Header, tensors: Iterable[TensorInfo]) -> str | None:
    """For a model that the runtime refuses: whether it is in other words than llama.cpp's, and what can be done.

    Args:
        header: of the file, or of the first shard.
        tensors: of all files.
    """
    keys = [header.raw_entry(entry) for entry in header.entries]
    rewritten = [Rewritten(tensor.name, tensor.shape, tensor.type, ((0, tensor.length),)) for tensor in tensors]
    try:
        found = translate(header, keys, rewritten)
    except UsageError:
        return None
    except FormatError as error:
        return f"it cannot be said in llama.cpp's words: '{printable(error.name or '')}': {error.detail}"
    if not found.changes:
        return None
    whose = f" of {' and '.join(found.dialects)}" if found.dialects else ""
    return f"it is in other words{whose}; 'dfqs repair --dialect upstream' says it in llama.cpp's"


def _rename_keys(
    header: Header, prefix: str, keys: Sequence[Key], dialects: Sequence[Dialect]
) -> tuple[list[Key], list[str]]:
    new_names = {prefix + old: prefix + new for dialect in dialects for old, new in dialect.keys.items()}
    first: dict[str, str] = {name: name for name in header.metadata if name not in new_names}
    kept: list[Key] = []
    changes: list[str] = []
    for key in keys:
        new = new_names.get(key.name)
        if new is None:
            kept.append(key)
            continue
        other = first.setdefault(new, key.name)
        if other != key.name:
            _require_same(header, key.name, other)
            changes.append(f"{key.name} is left out: {other} says the same")
            continue
        data = header.raw_entry(header.metadata.entry(key.name)).data
        kept.append(RawKeyValue(new, encode_string(new) + data[len(encode_string(key.name)) :]))
        changes.append(f"{key.name} becomes {new}")
    return kept, changes


def _require_same(header: Header, one: str, other: str) -> None:
    ours, theirs = header.metadata.entry(one), header.metadata.entry(other)
    if ours.type is ValueType.ARRAY or theirs.type is ValueType.ARRAY:
        same_kind = (ours.element_type, ours.count) == (theirs.element_type, theirs.count)
        equal = same_kind and header.metadata.value_bytes(one) == header.metadata.value_bytes(other)
        said = ""
    else:
        equal = header.metadata[one] == header.metadata[other]
        said = f" ({header.metadata[one]!r:.40} and {header.metadata[other]!r:.40})"
    if not equal:
        raise FormatError(
            f"means what '{other}' means, and the two do not agree{said}; which is right cannot be known",
            path=header.source_name,
            name=one,
        )


def _rename_tensors(
    path: str, tensors: Sequence[Rewritten], dialects: Sequence[Dialect]
) -> tuple[list[Rewritten], list[str]]:
    new_names = {old: new for dialect in dialects for old, new in dialect.tensors.items()}
    joined = {old: parts for dialect in dialects for old, parts in dialect.joined.items()}
    found: list[Rewritten] = []
    counts: dict[str, int] = {}
    for tensor in tensors:
        pattern, layer = split_layer(tensor.name)
        if pattern in new_names:
            found.append(replace(tensor, name=in_layer(new_names[pattern], layer)))
            change = f"{pattern} becomes {new_names[pattern]}"
        elif pattern in joined:
            found += _part(path, tensor, [in_layer(part, layer) for part in joined[pattern]])
            change = f"{pattern} becomes {' and '.join(joined[pattern])}"
        else:
            found.append(tensor)
            continue
        counts[change] = counts.get(change, 0) + 1
    seen: set[str] = set()
    for tensor in found:
        if tensor.name in seen:
            raise FormatError(
                "stands there under its own name and under another dialect's; which is right cannot be known",
                path=path,
                name=tensor.name,
            )
        seen.add(tensor.name)
    return found, [change + (f" ({count} tensors)" if count > 1 else "") for change, count in counts.items()]


def _part(path: str, tensor: Rewritten, names: Sequence[str]) -> list[Rewritten]:
    """A tensor's rows in equal parts, expert by expert."""
    columns, rows, experts = (*tensor.shape, 1, 1)[:3]
    ((offset, length),) = tensor.spans
    if len(tensor.shape) > 3 or rows % len(names) or length % (rows * experts):
        raise FormatError(
            f"has the shape {list(tensor.shape)}, which is not {len(names)} equal parts", path=path, name=tensor.name
        )
    share = length // experts // len(names)
    parts = []
    for number, name in enumerate(names):
        starts = (offset + (expert * len(names) + number) * share for expert in range(experts))
        shape = (columns, rows // len(names), experts)[: len(tensor.shape)]
        parts.append(Rewritten(name, shape, tensor.type, tuple((start, share) for start in starts)))
    return parts


def _missing_keys(
    header: Header,
    upstream: Upstream,
    dialects: Sequence[Dialect],
    old: Sequence[Rewritten],
    renamed: Sequence[Rewritten],
    *,
    is_renamed: bool,
) -> tuple[list[Key], list[str]]:
    """Keys that llama.cpp needs and the file has under no name, in the order of the table."""
    prefix = f"{header.metadata.text('general.architecture')}."
    old_of = {
        new: name for dialect in dialects for name, new in dialect.keys.items() if prefix + name in header.metadata
    }
    made: dict[str, Value] = {}

    def key_of(name: str) -> int | None:
        value = made.get(name)
        return value if type(value) is int else header.metadata.integer(prefix + old_of.get(name, name))

    # Formulas use what formulas before them made; the table has them in that order.
    wanted = dict.fromkeys(chain(upstream.derived, upstream.needed))
    missing = [name for name in wanted if prefix + name not in header.metadata and name not in old_of]
    if not is_renamed and not set(missing) & set(upstream.needed):
        return [], []
    constants = _constants(dialects, {tensor.name for tensor in old})
    shapes = {tensor.name: tensor.shape for tensor in renamed}
    changes: list[str] = []
    refused: list[tuple[str, str]] = []
    for name in missing:
        try:
            if name in constants:
                made[name], how = constants[name]
            elif name in upstream.derived:
                how = upstream.derived[name]
                made[name] = evaluate(how, shapes, key_of)
            else:
                raise Untold(upstream.untold.get(name, _UNTOLD))
        except Untold as error:
            if name in upstream.needed:
                refused.append((name, str(error)))
            continue
        changes.append(f"{prefix}{name} = {_shown(made[name])} ({how})")
    if refused:
        raise _refusal(header.source_name, prefix, refused)
    return [_key(prefix + name, value) for name, value in made.items()], changes


def _constants(dialects: Sequence[Dialect], tensors: set[str]) -> Mapping[str, tuple[Value, str]]:
    """What the programs compute with that a file was written for, and how that is known."""
    return {
        name: (value, f"{dialect.name} computes with it, and has no such key")
        for dialect in dialects
        if dialect.marks & tensors
        for name, value in dialect.constants.items()
    }


def _refusal(path: str, prefix: str, refused: Sequence[tuple[str, str]]) -> FormatError:
    name, reason = refused[0]
    others = [f"{prefix}{other} ({why})" for other, why in refused[1:_NAMED]]
    more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    also = f"; so are {', '.join(others)}{more}" if others else ""
    return FormatError(
        f"llama.cpp needs it, it is missing, and {reason}{also}. Only who wrote the file knows it, or the program "
        "that it was written for; nothing is made up, and nothing written",
        path=path,
        name=prefix + name,
    )


def _key(name: str, value: Value) -> Key:
    if isinstance(value, tuple):
        return array(name, ValueType.INT32, value)
    if isinstance(value, bool):
        return boolean(name, value)
    return u32(name, value) if isinstance(value, int) else f32(name, value)


def _shown(value: Value) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} numbers, {sum(number > 0 for number in value)} of them above 0"
    return str(value).lower() if isinstance(value, bool) else str(value)
