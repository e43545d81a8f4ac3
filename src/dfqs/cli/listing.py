"""Keys, tensors and tokenizers of headers as tables, and how two headers differ."""

from collections.abc import Sequence

from dfqs.cli.output import column_table, escape_controls, key_value_table, out, print_plain
from dfqs.cli.tables import Table
from dfqs.model.difference import HeaderDifference
from dfqs.model.listing import KeyListing, TensorListing, TokenizerListing
from dfqs.units import format_bytes, format_number_of

_SHOWN_CHARACTERS = 120


def show_keys(keys: Sequence[KeyListing]) -> None:
    """A row a key: name, type, value as far as it fits on a line."""
    table = _table("Key", "Type", "Value")
    for key in keys:
        table.add_row(*map(escape_controls, (key.name, _typed(key), value_text(key))))
    out.print_table(table)


def show_tensors(tensors: Sequence[TensorListing], *, shards: bool) -> None:
    """A row a tensor, in the order of the file."""
    table = _table("Tensor", "Shape", "Type", "Role", "Bytes", "Offset", *(["Shard"] if shards else []))
    for tensor in tensors:
        place = [str(tensor.shard)] if shards else []
        row = (tensor.name, _shape(tensor), tensor.type, tensor.role, f"{tensor.bytes:,}", f"{tensor.offset:,}", *place)
        table.add_row(*map(escape_controls, row))
    out.print_table(table)
    total = format_bytes(sum(tensor.bytes for tensor in tensors))
    print_plain(f"{format_number_of(len(tensors), 'tensor')}, {total}")


def show_tokenizer(tokenizer: TokenizerListing | None) -> None:
    """Name and value."""
    if tokenizer is None:
        print_plain("no tokenizer")
        return
    unknown = "-"
    rows = [
        ("Tokenizer", tokenizer.model or unknown),
        ("Before encoding", tokenizer.pre or unknown),
        ("Vocabulary", unknown if tokenizer.vocabulary is None else f"{tokenizer.vocabulary:,}"),
        ("Merges", unknown if tokenizer.merges is None else f"{tokenizer.merges:,}"),
    ]
    for name, (number, text) in tokenizer.special.items():
        rows.append((name, f"{number} {'(no such token)' if text is None else text}"))
    rows += [(name, "yes" if flag else "no") for name, flag in tokenizer.flags.items()]
    rows.append(("Chat templates", ", ".join(tokenizer.chat_templates) or "none"))
    out.print_table(key_value_table(rows))


def show_difference(found: HeaderDifference) -> None:
    """What only one has, and what is not alike; a line each, `-` the first model's and `+` the second's."""
    for key in found.keys:
        for mark, side in (("-", key.first), ("+", key.second)):
            if side is not None:
                print_plain(f"{mark} {key.name} ({_typed(side)}) {value_text(side)}")
    for tensor in found.tensors:
        for mark, listed in (("-", tensor.first), ("+", tensor.second)):
            if listed is not None:
                print_plain(f"{mark} {tensor.name} {_shape(listed)} {listed.type}")
    for line in found.chat_template:
        print_plain(line)
    print_plain(
        f"{found.equal_keys:,} keys and {found.equal_tensors:,} tensors alike; {len(found.keys):,} and "
        f"{len(found.tensors):,} not"
    )


def value_text(key: KeyListing) -> str:
    """A value on one line: of a long one its beginning, and how much there is."""
    if not key.values and key.count:
        return f"({format_bytes(key.bytes)})"
    shown = ", ".join(repr(value) if isinstance(value, str) else str(value) for value in key.values)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = f"{shown[:_SHOWN_CHARACTERS]}…"
    if not key.type.startswith("array"):
        return shown
    return f"[{shown}{', …' if key.count > len(key.values) else ''}] ({key.count:,})"


def _typed(key: KeyListing) -> str:
    return key.type.lower()


def _shape(tensor: TensorListing) -> str:
    return " x ".join(map(str, tensor.shape))


def _table(*columns: str) -> Table:
    return column_table(*columns, words=set(columns) - {"Bytes", "Offset", "Shard"})
