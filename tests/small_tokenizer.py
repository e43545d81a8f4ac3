"""The beginning of another model's tokenizer: what a tiny model's time would otherwise mostly go into."""

from pathlib import Path

from dfqs.gguf import KeyValue, RawKeyValue, ValueType, array, parse_header


def small_tokenizer(source: Path, vocabulary: int) -> list[KeyValue | RawKeyValue]:
    """A byte-pair tokenizer cut to its first tokens, which are its bytes and its first merges."""
    header = parse_header(source)
    cut = ("tokens", "token_type", "merges")
    tokens, types, merges = (header.metadata[f"tokenizer.ggml.{name}"] for name in cut)
    assert isinstance(tokens, tuple)
    assert isinstance(types, tuple)
    assert isinstance(merges, tuple)
    kept = set(tokens[:vocabulary])
    small = [
        array("tokenizer.ggml.tokens", ValueType.STRING, tokens[:vocabulary]),
        array("tokenizer.ggml.token_type", ValueType.INT32, types[:vocabulary]),
        array("tokenizer.ggml.merges", ValueType.STRING, [m for m in merges if str(m).replace(" ", "") in kept]),
    ]
    whole = [entry for entry in header.entries if entry.name.startswith("tokenizer.")]
    return [*small, *(header.raw_entry(e) for e in whole if e.name not in {entry.name for entry in small})]
