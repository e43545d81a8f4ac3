"""Whether shards make one model, as far as headers can tell.

Shards after the first carry nothing but `split.` keys and tensor descriptions, so what can be seen is: numbers that
disagree, names that stand twice or lie beyond the last layer, keys that contradict the first shard, and shapes that
contradict the model's dimensions. A shard of a model with the same tensors, shapes and types cannot be told from the
right one by its header; only a hash can do that (`dfqs verify --manifest`).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from dfqs.errors import ShardError
from dfqs.gguf import Header, TensorInfo
from dfqs.gguf.shard import SPLIT_COUNT, SPLIT_KEYS, SPLIT_NO, SPLIT_TENSORS_COUNT, Shard

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_WIDTH = "embedding_length"
_EXPERTS = "expert_count"
_DIMENSION_AXES = (
    (re.compile(r"token_embd|output|attn_norm|ffn_norm|attn_(q|k|v|qkv|q_a)|ffn_(gate|up)(_exps|_shexp)?"), 0, _WIDTH),
    (re.compile(r"attn_output|ffn_down(_exps|_shexp)?"), 1, _WIDTH),
    (re.compile(r"ffn_(gate|up|down)_exps"), 2, _EXPERTS),
    (re.compile(r"ffn_gate_inp"), 1, _EXPERTS),
)
"""Tensors (name without layer and `.weight`) that have a model dimension on an axis, in nearly every architecture of
llama.cpp. Where one has not, no shard agrees with the key and nothing is concluded."""


def consistency_problems(shards: Sequence[Shard]) -> Iterator[ShardError]:
    """Every reason to believe that a shard is not of this model, or not in its place."""
    yield from _number_problems(shards)
    yield from _name_problems(shards)
    yield from _key_problems(shards)
    yield from _shape_problems(shards)


def consistency_notes(shards: Sequence[Shard]) -> Iterator[str]:
    """What is odd but legal: a kind of tensor whose types in one shard occur in no other shard."""
    types: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for index, shard in enumerate(shards):
        for tensor in shard.tensors:
            if "_exps." in tensor.name:
                types[_family(tensor.name)][index].add(tensor.type.name)
    for family, by_shard in types.items():
        for index, here in by_shard.items():
            others = set().union(*(found for other, found in by_shard.items() if other != index))
            if len(by_shard) > 2 and others and not here & others:
                name = shards[index].path.name
                yield (
                    f"{family} is {'/'.join(sorted(here))} in {name} and {'/'.join(sorted(others))} in all others; "
                    "make sure that this shard is of the same quantization"
                )


def _number_problems(shards: Sequence[Shard]) -> Iterator[ShardError]:
    count = len(shards)
    declared = shards[0].split_number(SPLIT_TENSORS_COUNT)
    for index, shard in enumerate(shards):
        if (number := shard.split_number(SPLIT_NO)) != index:
            said = "no split.no" if number is None else f"split.no {number}"
            yield ShardError(f"has {said} where {index} belongs (shard {index + 1} of {count})", path=shard.source)
        if (its_count := shard.split_number(SPLIT_COUNT)) != count:
            said = "no split.count" if its_count is None else f"split.count {its_count}"
            yield ShardError(f"has {said}, the first shard says {count}; it is of another set", path=shard.source)
        if (its_total := shard.split_number(SPLIT_TENSORS_COUNT)) != declared:
            yield ShardError(
                f"says that the model has {_number_word(its_total)} tensors, the first shard says "
                f"{_number_word(declared)}; it is of another model",
                path=shard.source,
                name=SPLIT_TENSORS_COUNT,
            )
    total = sum(len(shard.tensors) for shard in shards)
    if declared is not None and total != declared:
        yield ShardError(
            f"the model has {declared:,} tensors, its {count:,} shards hold {total:,}; one of them is of another model",
            path=shards[0].source,
            name=SPLIT_TENSORS_COUNT,
        )


def _name_problems(shards: Sequence[Shard]) -> Iterator[ShardError]:
    layers = _dimension(shards[0].header, "block_count")
    owner: dict[str, int] = {}
    for index, shard in enumerate(shards):
        for tensor in shard.tensors:
            if tensor.name in owner:
                other = shards[owner[tensor.name]].path.name
                yield ShardError(f"stands in {other} too", path=shard.source, name=tensor.name)
            owner.setdefault(tensor.name, index)
            match = _LAYER.fullmatch(tensor.name)
            if index and match and layers is not None and int(match[1]) >= layers:
                yield ShardError(
                    f"is beyond the model's {layers} layers; the shard is of another model",
                    path=shard.source,
                    name=tensor.name,
                )


def _key_problems(shards: Sequence[Shard]) -> Iterator[ShardError]:
    first = shards[0].header
    for shard in shards[1:]:
        for name in shard.header.metadata:
            if name in SPLIT_KEYS or name == "general.alignment" or name not in first.metadata:
                continue
            # As bytes: a vocabulary need not be decoded to be compared.
            if not shard.header.same_value(first, name):
                yield ShardError(
                    "differs from the first shard's; the shard is of another model", path=shard.source, name=name
                )


def _shape_problems(shards: Sequence[Shard]) -> Iterator[ShardError]:
    for key in (_WIDTH, _EXPERTS):
        expected = _dimension(shards[0].header, key)
        if expected is None:
            continue
        sizes = [list(_sizes_of(shard, key)) for shard in shards]
        if not any(found and all(size == expected for _, size in found) for found in sizes):
            continue
        for shard, found in zip(shards, sizes, strict=True):
            for tensor, size in found:
                if size != expected:
                    yield ShardError(
                        f"its shape {list(tensor.shape)} has {size:,} where the model's {key} is {expected:,}; the "
                        "shard is of another model",
                        path=shard.source,
                        name=tensor.name,
                    )


def _sizes_of(shard: Shard, key: str) -> Iterator[tuple[TensorInfo, int]]:
    """The axes of a shard's tensors that should be the dimension `key`."""
    for tensor in shard.tensors:
        stem = _family(tensor.name).removesuffix(".weight")
        for pattern, axis, its_key in _DIMENSION_AXES:
            if its_key == key and pattern.fullmatch(stem):
                yield tensor, tensor.shape[axis] if axis < len(tensor.shape) else 1


def _family(name: str) -> str:
    match = _LAYER.fullmatch(name)
    return match[2] if match else name


def _dimension(header: Header, key: str) -> int | None:
    architecture = header.metadata.get("general.architecture")
    value = header.metadata.get(f"{architecture}.{key}")
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _number_word(value: int | None) -> str:
    return "an unknown number of" if value is None else f"{value:,}"
