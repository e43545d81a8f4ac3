"""Which model a trace is of: what stays the same between its quantizations, and what tells them apart."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from dfqs.errors import UsageError, printable
from dfqs.gguf import FileSource, GGMLType, Header
from dfqs.gguf.shard import Shard
from dfqs.model.files import ModelFiles
from dfqs.model.spec import Role, tensor_layer, tensor_role
from dfqs.records import Record, Sha256
from dfqs.runtime.checks import check_model
from dfqs.storage.hashing import hash_range

MAX_WORDS_CHARS = 200
_TOKENIZER_PREFIX = "tokenizer.ggml."


def _check_words(text: str) -> str:
    if len(text) > MAX_WORDS_CHARS or not text.isprintable():
        raise ValueError(f"must be printable and at most {MAX_WORDS_CHARS} characters long")
    return text


Words = Annotated[str, AfterValidator(_check_words)]
"""Text from a file that a stranger may have made: safe to print on a terminal."""


def as_words(text: str) -> str:
    """Any text as `Words`: control characters escaped, cut where it is too long."""
    return printable(text, MAX_WORDS_CHARS - 3)


class ModelIdentity(Record):
    """A model, and the artifact of it that was run."""

    name: Words | None
    architecture: Words
    layers: int
    """Blocks in all, routed or not."""
    experts: int
    experts_used: int
    file_bytes: int
    header_sha256: Sha256
    """Of every key and every tensor's name, type and shape: tells two quantizations apart."""
    tokenizer_sha256: Sha256 | None
    """Of the tokenizer's keys as they stand in the file. None: the model has no tokenizer."""
    router_sha256: Sha256 | None
    """Of the router's weights, which quantizers leave as they are (F32): the same for every quantization of one model.
    None: this file's router is quantized, so it proves nothing."""
    expert_types: tuple[Words, ...]
    """Types of the routed experts' tensors: `IQ1_S`."""


def read_identity(model: Path | ModelFiles) -> tuple[ModelIdentity, tuple[int, ...]]:
    """Identify the model in a file, or in a set of shards given by its first; and its hash-routed layers.

    Raises:
        UsageError: the model is dense, so it has no routing, or it is not causal.
        FormatError: the header lies.
        ShardError: a later shard given, or one missing.
    """
    opened = check_model(model)
    path, spec = opened.path, opened.spec
    if not spec.is_moe:
        raise UsageError(f"{path} is a dense model ({spec.architecture}): it has no experts, so there is no routing")
    if not spec.causal:
        raise UsageError(
            f"{path} is no causal model ({spec.architecture}: an encoder, or made by diffusion): how it routes a token "
            "depends on the tokens after it, so there is no prefix to compare"
        )
    experts = spec.role(Role.ROUTED_EXPERT)
    identity = ModelIdentity(
        name=None if spec.name is None else as_words(spec.name),
        architecture=as_words(spec.architecture),
        layers=spec.layers or 0,
        experts=spec.experts,
        experts_used=spec.experts_used,
        file_bytes=opened.file_bytes,
        header_sha256=_hash_headers(opened.headers),
        tokenizer_sha256=_hash_tokenizer(opened.header),
        router_sha256=_hash_routers(opened.shards),
        expert_types=tuple(sorted(type_.name for type_ in experts.types)) if experts else (),
    )
    tables = {tensor_layer(tensor.name) for tensor in opened.tensors if tensor_role(tensor.name) is Role.TABLE}
    return identity, tuple(sorted(layer for layer in tables if layer is not None))


def read_groups(model: Path | ModelFiles) -> tuple[int, int] | None:
    """Groups of experts and how many of them a token may choose from, as llama.cpp reads them; None for no groups."""
    spec = check_model(model).spec
    grouped = spec.expert_groups > 1 and spec.experts % spec.expert_groups == 0
    return (spec.expert_groups, spec.expert_groups_used) if grouped else None


def _hash_headers(headers: Iterable[Header]) -> str:
    digest = hashlib.sha256()
    for header in headers:
        for entry in header.entries:
            digest.update(header.raw_entry(entry).data)
        for tensor in header.tensors:
            digest.update(f"{tensor.name}\0{int(tensor.type)}\0{tuple(tensor.shape)}\n".encode())
    return digest.hexdigest()


def _hash_tokenizer(header: Header) -> str | None:
    entries = sorted((e for e in header.entries if e.name.startswith(_TOKENIZER_PREFIX)), key=lambda e: e.name)
    if not entries:
        return None
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(header.raw_entry(entry).data)
    return digest.hexdigest()


def _hash_routers(shards: Iterable[Shard]) -> str | None:
    lines = []
    for shard in shards:
        routers = [tensor for tensor in shard.tensors if tensor_role(tensor.name) is Role.ROUTER]
        if any(tensor.type is not GGMLType.F32 for tensor in routers):
            return None
        with FileSource(shard.path) as source:
            for tensor in routers:
                span = shard.header.span(tensor)
                sha256 = hash_range(source.read_exactly, span.offset, span.length)
                lines.append(f"{tensor.name}\0{sha256}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest() if lines else None
