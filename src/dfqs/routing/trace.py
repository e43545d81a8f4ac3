"""What a routing trace holds: for each token and layer the experts that were chosen, under recorded conditions."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dfqs.errors import UsageError
from dfqs.records import Document, Record
from dfqs.routing.identity import ModelIdentity, Words

Ids = NDArray[Any]
"""Expert numbers [layers, tokens, used]: uint8 or uint16 in traces; int32 with -1 = "not computed" while capturing."""
Scores = NDArray[np.float32]
"""A number for each expert [layers, tokens, experts]."""

MAX_EXPERTS = 1 << 16
MAX_LAYERS = 4096


class RouteConditions(Record):
    """What could change a trace besides model and tokens."""

    runtime: Words
    """Program and build: `llama.cpp b11549 (xllamacpp 2026.10.11549)`."""
    processor: Words | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    ubatch_tokens: int | None = None
    flash_attention: Words | None = None
    type_k: Words | None = None
    type_v: Words | None = None
    swa_full: bool | None = None
    context_tokens: int | None = None
    repack: bool | None = None
    """Whether weights were copied into an order that the processor likes better; never where experts streamed. None:
    not told, as in older traces."""

    def differences(self, other: "RouteConditions") -> tuple[str, ...]:
        """Sentences such as `flash_attention: off / on`, for every condition that is not the same."""
        mine, theirs = self.model_dump(), other.model_dump()
        return tuple(f"{key}: {mine[key]} / {theirs[key]}" for key in mine if mine[key] != theirs[key])


class TraceHeader(Document):
    """The first thing in a trace file."""

    schema_: Literal["dfqs.route-trace/1"] = Field(default="dfqs.route-trace/1", alias="schema")
    earlier_keys = (("format", "schema"),)
    model: ModelIdentity
    layers: tuple[int, ...]
    """Numbers of the blocks that route, ascending: row `i` of a chunk is layer `layers[i]`."""
    hash_layers: tuple[int, ...] = ()
    """Those of them whose experts follow from the token alone."""
    scores: tuple[Literal["probabilities", "selection"], ...] = ()
    """Router outputs that are stored for every expert. `probabilities` weigh the chosen experts; `selection` are the
    numbers that the choice was made by, stored only where an architecture biases them."""
    source: Words | None = None
    """Name of the prompt set."""
    conditions: RouteConditions

    @model_validator(mode="after")
    def _check(self) -> Self:
        model = self.model
        if not 2 <= model.experts <= MAX_EXPERTS or not 1 <= model.experts_used <= model.experts:
            raise ValueError(f"{model.experts_used} of {model.experts} experts used makes no sense")
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise ValueError(f"{len(self.layers)} routed layers make no sense")
        if list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0 or self.layers[-1] >= model.layers:
            raise ValueError("layer numbers must ascend and lie within the model")
        if not set(self.hash_layers) <= set(self.layers):
            raise ValueError("hash-routed layers must be among the routed ones")
        if self.scores not in ((), ("probabilities",), ("probabilities", "selection")):
            raise ValueError("scores are none, probabilities, or probabilities and selection")
        return self

    @property
    def id_dtype(self) -> np.dtype[Any]:
        return np.dtype("<u1" if self.model.experts <= 256 else "<u2")

    @property
    def token_bytes(self) -> int:
        """Bytes of one token before compression."""
        layers, model = len(self.layers), self.model
        return 4 + layers * (model.experts_used * self.id_dtype.itemsize + len(self.scores) * model.experts * 4)

    @property
    def learned_rows(self) -> list[int]:
        """Rows of the layers whose choice is made by scores, and not by a table."""
        return [row for row, layer in enumerate(self.layers) if layer not in self.hash_layers]


@dataclass(frozen=True, slots=True)
class TraceChunk:
    """Consecutive tokens of one prompt."""

    prompt: int
    position: int
    """Of the first token in its prompt."""
    tokens: NDArray[np.int32]
    ids: Ids
    """[layers, tokens, used], the best first."""
    probabilities: Scores | None = None
    """[layers, tokens, experts]"""
    selection: Scores | None = None
    """[layers, tokens, experts]; None: the choice was made by `probabilities`."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def deciding(self) -> Scores | None:
        """The scores that the choice was made by."""
        return self.probabilities if self.selection is None else self.selection

    def part(self, start: int, stop: int) -> "TraceChunk":
        """Tokens `[start, stop)` of the chunk."""
        return TraceChunk(
            self.prompt,
            self.position + start,
            self.tokens[start:stop],
            self.ids[:, start:stop],
            None if self.probabilities is None else self.probabilities[:, start:stop],
            None if self.selection is None else self.selection[:, start:stop],
        )


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace in memory."""

    header: TraceHeader
    chunks: tuple[TraceChunk, ...]

    @property
    def tokens(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


def names_twice(ids: Ids) -> bool:
    """Whether some token of some layer names an expert twice."""
    ordered = np.sort(ids, axis=-1)
    return bool((ordered[..., 1:] == ordered[..., :-1]).any())


def join_chunks(chunks: Sequence[TraceChunk]) -> TraceChunk:
    """One chunk of several that follow each other in one prompt."""
    first = chunks[0]
    if any(chunk.prompt != first.prompt for chunk in chunks):
        raise ValueError("chunks of different prompts")

    def joined(parts: list[Scores | None]) -> Scores | None:
        known = [part for part in parts if part is not None]
        return np.concatenate(known, axis=1) if known else None

    return TraceChunk(
        first.prompt,
        first.position,
        np.concatenate([chunk.tokens for chunk in chunks]),
        np.concatenate([chunk.ids for chunk in chunks], axis=1),
        joined([chunk.probabilities for chunk in chunks]),
        joined([chunk.selection for chunk in chunks]),
    )


def pair_chunks(first: Iterable[TraceChunk], second: Iterable[TraceChunk]) -> Iterator[tuple[TraceChunk, TraceChunk]]:
    """The same tokens of two traces side by side, however each is cut; holds one chunk of each at a time.

    Raises:
        UsageError: the tokens are not the same, with the place where they part.
    """
    iterators = (iter(first), iter(second))
    a, b = (next(iterator, None) for iterator in iterators)
    while a is not None and b is not None:
        count = min(len(a), len(b))
        left, right = a.part(0, count), b.part(0, count)
        _require_same_tokens(left, right)
        yield left, right
        a = a.part(count, len(a)) if count < len(a) else next(iterators[0], None)
        b = b.part(count, len(b)) if count < len(b) else next(iterators[1], None)
    rest = a if a is not None else b
    if rest is not None:
        shorter = "second" if a is not None else "first"
        raise UsageError(
            f"the traces are of different tokens: the {shorter} ends where the other goes on "
            f"(prompt {rest.prompt}, position {rest.position:,})"
        )


def _require_same_tokens(a: TraceChunk, b: TraceChunk) -> None:
    if (a.prompt, a.position) != (b.prompt, b.position):
        raise UsageError(
            f"the traces are of different tokens: prompt {a.prompt} at position {a.position:,} in the first is "
            f"prompt {b.prompt} at position {b.position:,} in the second"
        )
    differing = np.flatnonzero(a.tokens != b.tokens)
    if differing.size:
        at = int(differing[0])
        raise UsageError(
            f"the traces are of different tokens: prompt {a.prompt}, position {a.position + at:,} holds token "
            f"{a.tokens[at]} in the first and {b.tokens[at]} in the second"
        )
