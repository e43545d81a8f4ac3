"""What is wrong with a model's keys: types that llama.cpp does not read, values that it refuses or dies of.

`runtime_keys` has the forms; here are the checks of one header against them, and of keys and tensors against each
other.
"""

import math
import re
from collections.abc import Iterator

from dfqs.gguf import Header, ValueType
from dfqs.gguf.layout import squeeze_shape
from dfqs.gguf.metadata import TEXT_LIMIT_BYTES
from dfqs.gguf.shard import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS_COUNT
from dfqs.integrity.architectures import known_architectures, known_pre_tokenizers
from dfqs.integrity.findings import Finding, Severity
from dfqs.integrity.runtime_keys import (
    BYTE_PAIRS,
    MAX_EXPERTS,
    MAX_LAYERS,
    NO_TOKENIZER,
    ROPE_SCALINGS,
    SPECIAL_TOKENS,
    TOKENIZERS,
    KeyForm,
    read_forms,
)
from dfqs.model.spec import CHAT_TEMPLATE

_MAKE_AGAIN = "The converter that made the file is at fault; make it again with a current one."
_CONTRADICTION = "Keys and tensors contradict each other; make the file again."
_QUERIES = re.compile(r"blk\.\d+\.attn_(?:q|qkv)\.weight")
_EXPERTS = re.compile(r"(?:.*\.)?ffn_(?:gate|up|down|gate_up)_exps\.weight")
_LAYER = re.compile(r"blk\.(\d+)\.")
_NAMES = frozenset(
    {"general.architecture", "general.name", "general.type", "tokenizer.ggml.model", "tokenizer.ggml.pre"}
)
_NORMS = ("output_norm.weight", "token_embd_norm.weight", "dec.output_norm.weight", "enc.output_norm.weight")
"""Every model ends with one of these; without, a file is a part of one, and is not loaded by itself."""


def size_findings(header: Header) -> Iterator[Finding]:
    """Names that are longer than any name; with these nothing else can be said of a model's keys."""
    for entry in header.entries:
        named = entry.name in _NAMES or entry.name.endswith(".rope.scaling.type")
        if named and entry.end - entry.value_start > TEXT_LIMIT_BYTES:
            message = f"has {entry.end - entry.value_start:,} bytes, where a name is meant"
            yield Finding("key-size", message, _MAKE_AGAIN, offset=entry.start, name=entry.name)


def key_findings(header: Header) -> Iterator[Finding]:
    """Keys that are missing, of a type that llama.cpp does not read, or of a value that it refuses or dies of.

    A shard after the first has none of a model's keys, and needs none.
    """
    wrong = list(_form_findings(header))
    yield from wrong
    if (header.metadata.integer(SPLIT_NO) or 0) > 0:
        return
    yield from _missing_findings(header)
    if not wrong:
        yield from _value_findings(header)


def tensor_findings(header: Header) -> Iterator[Finding]:
    """Tensors that the keys promise and that are not there, or have another shape."""
    architecture = header.metadata.text("general.architecture")
    experts = header.metadata.integer(f"{architecture}.expert_count")
    for tensor in header.tensors:
        if experts and _EXPERTS.fullmatch(tensor.name):
            slices = tensor.shape[2] if len(tensor.shape) > 2 else 1
            if slices != experts:
                message = f"has {slices:,} experts where {architecture}.expert_count is {experts:,}"
                yield Finding("shape", message, _CONTRADICTION, name=tensor.name)
    if (header.metadata.integer(SPLIT_COUNT) or 0) > 1:
        return
    declared = header.metadata.integer(SPLIT_TENSORS_COUNT)
    fix = "Merge the shards again (`dfqs merge`), or fetch the file again."
    if declared is not None and declared != len(header.tensors):
        message = f"the model has {declared:,} tensors by its own account, the file {len(header.tensors):,}"
        yield Finding("missing-tensor", message, fix, name=SPLIT_TENSORS_COUNT)
    layers = header.metadata.integer(f"{architecture}.block_count")
    if layers is None or not header.tensors:
        return
    present = {int(match[1]) for t in header.tensors if (match := _LAYER.match(t.name))}
    # A count from outside may be absurd: look for the layers that are there, not for those that are not.
    if absent := next((i for i in range(min(layers, len(present) + 1)) if i not in present), None):
        yield Finding("missing-tensor", f"layer {absent} of {layers:,} has no tensors", fix, name=f"blk.{absent}.")
    if present and max(present) >= layers:
        message = f"is {layers:,}, and the file has tensors of layer {max(present):,}; llama.cpp refuses what is left"
        yield Finding("key-value", message, _CONTRADICTION, name=f"{architecture}.block_count")


def _form_findings(header: Header) -> Iterator[Finding]:
    """Types, and lengths of arrays."""
    metadata = header.metadata
    layers = metadata.integer(f"{metadata.text('general.architecture')}.block_count")
    for name, form in read_forms(header).items():
        entry = metadata.find(name)
        if entry is None:
            continue
        if not form.fits(entry):
            message = f"is {entry.type_name} where llama.cpp reads {form}, and refuses the file"
            yield Finding("key-type", message, _MAKE_AGAIN, offset=entry.start, name=name)
        elif entry.type is ValueType.ARRAY and (expected := _wrong_length(form, entry.count, layers)):
            message = f"has {entry.count:,} values where llama.cpp reads {expected}, and refuses the file"
            yield Finding("key-type", message, _MAKE_AGAIN, offset=entry.start, name=name)
    entry = metadata.find(CHAT_TEMPLATE)
    if entry is not None and entry.type is not ValueType.STRING:
        message = f"is {entry.type_name}, not a STRING: the model has no chat template that could be read"
        yield Finding("key-type", message, _MAKE_AGAIN, offset=entry.start, name=entry.name)


def _wrong_length(form: KeyForm, count: int, layers: int | None) -> str | None:
    """What an array should have in place of `count` values; None where it is right."""
    if form.length is not None and count != form.length:
        return f"{form.length}"
    if form.layers and layers is not None and count != layers:
        return f"one for each of {layers:,} layers"
    if form.at_least_layers and layers is not None and count < layers:
        return f"one for each of {layers:,} layers"
    return None


def _missing_findings(header: Header) -> Iterator[Finding]:
    """Keys without which llama.cpp loads no model."""
    architecture = header.metadata.text("general.architecture")
    if architecture is None:
        if "general.architecture" not in header.metadata:
            message = "the model's architecture is not stated"
            yield Finding("missing-key", message, _MAKE_AGAIN, name="general.architecture")
        return
    yield from _unknown_findings(header, architecture)
    if architecture not in known_architectures():
        # What the program that reads it needs is not known.
        return
    for key in ("block_count", "context_length", "embedding_length"):
        if (name := f"{architecture}.{key}") not in header.metadata:
            yield Finding("missing-key", "the key is missing; llama.cpp needs it", _MAKE_AGAIN, name=name)
    whole = any(header.has_tensor(name) for name in _NORMS)
    severity = Severity.ERROR if whole else Severity.WARNING
    for name, message in _needed(header, architecture):
        if name not in header.metadata:
            yield Finding("missing-key", f"the key is missing; {message}", _MAKE_AGAIN, severity=severity, name=name)


def _needed(header: Header, architecture: str) -> Iterator[tuple[str, str]]:
    """Keys that a model of this architecture and with this tokenizer has, with what llama.cpp wants them for."""
    known = known_architectures().get(architecture)
    for key in sorted(known.required if known else ()):
        yield f"{architecture}.{key}", "llama.cpp refuses this architecture without it"
    if any(_QUERIES.fullmatch(tensor.name) for tensor in header.tensors):
        yield f"{architecture}.attention.head_count", "llama.cpp needs it for attention"
    tokenizer = header.metadata.text("tokenizer.ggml.model")
    yield "tokenizer.ggml.model", "llama.cpp refuses the file without it"
    if tokenizer not in NO_TOKENIZER:
        yield "tokenizer.ggml.tokens", "llama.cpp refuses the file without it"
    if tokenizer in BYTE_PAIRS and header.metadata.text("tokenizer.ggml.pre") != "kimi-k2":
        yield "tokenizer.ggml.merges", "llama.cpp needs it for this tokenizer"


def _unknown_findings(header: Header, architecture: str) -> Iterator[Finding]:
    """Names that this llama.cpp does not know; another version may."""
    fix = "A newer llama.cpp may know it, or a program for images or sound; dfqs cannot run the model."
    if architecture not in known_architectures():
        message = f"is {architecture[:40]!r}, which the llama.cpp of dfqs does not know"
        yield Finding("unknown", message, fix, severity=Severity.WARNING, name="general.architecture")
    pre = header.metadata.text("tokenizer.ggml.pre")
    byte_pairs = header.metadata.text("tokenizer.ggml.model") in BYTE_PAIRS - {"gemma4"}
    if byte_pairs and pre and pre not in known_pre_tokenizers():
        message = f"is {pre[:40]!r}, which the llama.cpp of dfqs does not know"
        yield Finding("unknown", message, fix, severity=Severity.WARNING, name="tokenizer.ggml.pre")


def _value_findings(header: Header) -> Iterator[Finding]:
    """Values out of range, and values that contradict each other. Every type is right."""
    architecture = header.metadata.text("general.architecture")
    yield from _layer_findings(header, f"{architecture}.")
    yield from _expert_findings(header, f"{architecture}.")
    yield from _head_findings(header, f"{architecture}.")
    yield from _latent_findings(header, f"{architecture}.")
    yield from _vocabulary_findings(header, f"{architecture}.")
    for entry in header.entries:
        if entry.type is ValueType.FLOAT32 and entry.name.startswith(f"{architecture}."):
            value = header.metadata[entry.name]
            if not isinstance(value, float) or not math.isfinite(value):
                yield _value_finding(entry.name, "is no finite number, and so will be what the model computes")


def _value_finding(name: str, message: str, fix: str = _MAKE_AGAIN) -> Finding:
    return Finding("key-value", message, fix, name=name)


def _layer_findings(header: Header, prefix: str) -> Iterator[Finding]:
    metadata = header.metadata
    layers = metadata.integer(f"{prefix}block_count")
    if layers is not None and not 0 < layers <= MAX_LAYERS:
        yield _value_finding(f"{prefix}block_count", f"is {layers:,}; llama.cpp has 1 to {MAX_LAYERS} layers")
    further = metadata.integer(f"{prefix}nextn_predict_layers") or 0
    if layers is not None and further > layers:
        yield _value_finding(
            f"{prefix}nextn_predict_layers", f"is {further:,} of {layers:,} layers; llama.cpp dies of it"
        )
    scaling = metadata.text(f"{prefix}rope.scaling.type")
    if scaling is not None and scaling not in ROPE_SCALINGS:
        known = ", ".join(sorted(ROPE_SCALINGS))
        yield _value_finding(f"{prefix}rope.scaling.type", f"is {scaling[:40]!r}; llama.cpp dies of all but {known}")
    if header.has_tensor("token_embd.weight") and f"{prefix}features_length" not in metadata:
        width = metadata.integer(f"{prefix}embedding_length")
        shape = header.tensor("token_embd.weight").shape
        if width is not None and width != shape[0]:
            message = f"is {width:,}, and token_embd.weight is {shape[0]:,} wide; llama.cpp refuses the file"
            yield _value_finding(f"{prefix}embedding_length", message, _CONTRADICTION)


def _expert_findings(header: Header, prefix: str) -> Iterator[Finding]:
    metadata = header.metadata
    experts = metadata.integer(f"{prefix}expert_count") or 0
    used = _per_layer(header, f"{prefix}expert_used_count")
    groups = metadata.integer(f"{prefix}expert_group_count") or 0
    groups_used = metadata.integer(f"{prefix}expert_group_used_count") or 0
    name = f"{prefix}expert_used_count"
    if experts > MAX_EXPERTS:
        yield _value_finding(f"{prefix}expert_count", f"is {experts:,}; llama.cpp has up to {MAX_EXPERTS} experts")
    elif used and (max(used) > experts or min(used) < 0):
        wrong = max(used) if max(used) > experts else min(used)
        yield _value_finding(name, f"is {wrong:,} of {experts:,} experts; llama.cpp dies of it")
    elif experts and not used:
        yield Finding("missing-key", "the key is missing; llama.cpp dies without it", _MAKE_AGAIN, name=name)
    elif experts and max(used) == 0:
        yield _value_finding(name, f"is 0 of {experts:,} experts; llama.cpp dies of it")
    elif not experts and groups:
        yield _value_finding(f"{prefix}expert_group_count", f"is {groups:,} without experts; llama.cpp dies of it")
    elif experts and groups > 0 and (groups >= experts or (groups > 1 and experts % groups)):
        message = f"is {groups:,}, into which {experts:,} experts do not divide; llama.cpp dies of it"
        yield _value_finding(f"{prefix}expert_group_count", message)
    elif experts and groups > 1 and not 0 < groups_used < groups:
        message = f"is {groups_used:,} of {groups:,} groups; llama.cpp dies unless it is some of them, and not all"
        yield _value_finding(f"{prefix}expert_group_used_count", message)


def _head_findings(header: Header, prefix: str) -> Iterator[Finding]:
    metadata = header.metadata
    heads, shared = (_per_layer(header, f"{prefix}attention.{name}") for name in ("head_count", "head_count_kv"))
    length = max(len(heads), len(shared))
    pairs = zip(heads * (length if len(heads) == 1 else 1), shared * (length if len(shared) == 1 else 1), strict=False)
    divided = next(((a, b) for a, b in pairs if a > 0 and b > 0 and a % b), None)
    if divided is not None:
        message = f"is {divided[1]:,}, into which {divided[0]:,} heads do not divide; llama.cpp dies of it"
        yield _value_finding(f"{prefix}attention.head_count_kv", message)
    name = f"{prefix}rope.dimension_count"
    turned = metadata.integer(name)
    known = known_architectures().get(prefix.rstrip("."))
    # llama.cpp takes the first layer's heads for the whole; where that has none, it reads nothing of this.
    if turned is None or known is None or known.no_rope or not heads or heads[0] <= 0:
        return
    width = metadata.integer(f"{prefix}embedding_length")
    head = metadata.integer(f"{prefix}attention.key_length") or (width // heads[0] if width else None)
    if turned % 2:
        yield _value_finding(name, f"is {turned:,}; llama.cpp dies unless it is even")
    elif head is not None and turned > max(head, metadata.integer(f"{prefix}attention.key_length_swa") or 0):
        yield _value_finding(name, f"is {turned:,} where a head has {head:,}; llama.cpp dies of it")
    elif head is not None and turned != head and known.whole_rope:
        yield _value_finding(
            name, f"is {turned:,} where a head has {head:,}; no other value works with this architecture"
        )


def _latent_findings(header: Header, prefix: str) -> Iterator[Finding]:
    """Latent attention (DeepSeek-V2 and its kind): the turned part of a key stands behind the compressed one."""
    name, known = f"{prefix}rope.dimension_count", known_architectures().get(prefix.rstrip("."))
    turned, rank = (header.metadata.integer(key) for key in (name, f"{prefix}attention.kv_lora_rank"))
    latent = next((tensor for tensor in header.tensors if tensor.name.endswith(".attn_kv_a_mqa.weight")), None)
    if turned is None or not rank or latent is None or len(latent.shape) < 2 or known is None or known.no_rope:
        return
    if latent.shape[1] != rank + turned:
        yield _value_finding(
            name,
            f"is {turned:,} where {latent.name} has {latent.shape[1] - rank:,} (its {latent.shape[1]:,} rows less "
            f"attention.kv_lora_rank, {rank:,}); llama.cpp refuses the file",
            _CONTRADICTION,
        )


def _vocabulary_findings(header: Header, prefix: str) -> Iterator[Finding]:
    metadata = header.metadata
    tokenizer = metadata.text("tokenizer.ggml.model")
    if tokenizer is None:
        return
    if tokenizer not in TOKENIZERS:
        message = f"is {tokenizer[:40]!r}, a tokenizer that llama.cpp does not know; it refuses the file"
        yield _value_finding("tokenizer.ggml.model", message)
        return
    without = tokenizer in NO_TOKENIZER
    tokens = metadata.find("tokenizer.ggml.tokens")
    count = metadata.integer(f"{prefix}vocab_size") if without else (tokens.count if tokens else None)
    name = f"{prefix}vocab_size" if without else "tokenizer.ggml.tokens"
    if count is None:
        return
    if header.has_tensor("token_embd.weight"):
        shape = squeeze_shape(header.tensor("token_embd.weight").shape)
        rows = shape[1] if len(shape) > 1 else 1
        if rows != count:
            message = f"there are {count:,} tokens, and token_embd.weight has {rows:,}; llama.cpp refuses the file"
            yield _value_finding(name, message, _CONTRADICTION)
    if without:
        return
    for key in ("scores", "token_type"):
        entry = metadata.find(f"tokenizer.ggml.{key}")
        if entry is not None and entry.count < count:
            message = f"has {entry.count:,} values for {count:,} tokens; llama.cpp refuses the file"
            yield _value_finding(entry.name, message)
    for special in sorted(SPECIAL_TOKENS):
        number = metadata.integer(special)
        if number is not None and number >= count:
            message = f"is token {number:,} of {count:,}; llama.cpp takes its own default in its place"
            yield Finding("key-value", message, _MAKE_AGAIN, severity=Severity.WARNING, name=special)


def _per_layer(header: Header, name: str) -> tuple[int, ...]:
    """A number, or one for each layer; empty where there is none."""
    values = header.metadata.integers(name)
    if values is not None:
        return values
    value = header.metadata.integer(name)
    return () if value is None else (value,)
