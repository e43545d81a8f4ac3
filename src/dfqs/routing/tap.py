"""Getting routing out of llama.cpp while it computes. Everything here runs in a worker process.

The graph names its nodes `ffn_moe_topk-<layer>` (ids: a table's row for hash-routed layers, else a strided view of an
argsort), `ffn_moe_probs-<layer>` and, where an architecture chooses by something else, `ffn_moe_probs_biased-<layer>`
or `ffn_moe_probs_masked-<layer>`. Reshaped variants of the same names exist and are not wanted. llama 4 chooses by its
scores before the sigmoid, which keeps their order.

What comes out of a graph behind its last router (that layer's experts, the logits) is computed only for who wants it:
`RouterTap.end_graphs` leaves it out, on every architecture. Asking llama.cpp for fewer logits would not do, for most
architectures cut the last layer down to the tokens whose logits are wanted before it routes.

The lookup of the tokens' embeddings begins every graph and tells which tokens it is about. Architectures name it as
they like (`embd`, `model.embed_tokens`, nothing where a scale follows), so it is known by what it reads.
"""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import RuntimeFailure
from dfqs.routing.numbers import broken_row, require_numbers, require_router_numbers
from dfqs.routing.trace import Ids, Scores
from dfqs.runtime import abi
from dfqs.runtime.context import Context, EvalCallback, TensorView
from dfqs.runtime.observe import END_GRAPH

NOT_COMPUTED = -1
"""Id where a layer skipped a token: the last layer computes only tokens whose logits are wanted."""

_ROUTER_NODE = re.compile(r"ffn_moe_(topk|probs|probs_biased|probs_masked)-(\d+)")
_LAYER_NODE = re.compile(r".*-\d+")
_EMBEDDINGS, _INPUT_TOKENS = "token_embd.weight", "inp_tokens"


@dataclass(frozen=True, slots=True)
class BatchToken:
    """One token of a batch that may hold several sequences."""

    token: int
    position: int
    sequence: int = 0
    wants_logits: bool = True


@dataclass(frozen=True, slots=True)
class Routing:
    """What the router did with a batch, in the batch's order."""

    layers: tuple[int, ...]
    ids: Ids
    """int32 [layers, tokens, used]"""
    probabilities: Scores | None
    selection: Scores | None
    """[layers, tokens, experts]; NaN where not computed."""
    unmasked: Scores | None = None
    """Where experts are chosen from the best groups only: `selection` before the other groups were masked."""


class RouterTap:
    """Collects routing during a context's decodes. Pass `callback` to the context, and `take_batch` after each decode.

    The probabilities are looked at in any case: what was chosen by numbers that are none is no choice.

    Args:
        scores: collect the router's scores too.
    """

    def __init__(self, *, scores: bool = False) -> None:
        self.scores = scores
        self.callback = EvalCallback(self._wants, self._take)
        self._nodes: dict[tuple[str, int], list[NDArray[np.generic]]] = {}
        self._ubatches: list[list[int]] = []
        self._seen: set[tuple[str, int]] = set()
        """Nodes of the ubatch under way."""
        self._enough: frozenset[tuple[str, int]] | None = None
        """With these a graph ends; None: it is computed to its end."""
        self.broken_layer: int | None = None
        """The lowest layer seen whose scores tell nothing (`broken_row`)."""

    def end_graphs(self) -> None:
        """From now on compute no graph further than to the last router node that the last one showed. What
        `llama_decode` then gives as logits was not computed."""
        self._enough = frozenset(self._seen)

    def _wants(self, name: str, op: str) -> bool:
        match = _ROUTER_NODE.fullmatch(name)
        if match is None:
            return op == "GET_ROWS" and _LAYER_NODE.fullmatch(name) is None
        return match[1] in ("topk", "probs") or self.scores

    def _take(self, name: str, _op: str, tensor: TensorView) -> bool | None:
        match = _ROUTER_NODE.fullmatch(name)
        if match is None:
            table, tokens = tensor.source(0), tensor.source(1)
            if table and tokens and (table.name, tokens.name) == (_EMBEDDINGS, _INPUT_TOKENS):
                self._ubatches.append([int(token) for token in tokens().ravel()])
                self._seen.clear()
            return None
        node = (match[1], int(match[2]))
        # GroveMoE routes twice in a layer; its second choice, of experts that groups share, follows from the first.
        if node not in self._seen:
            self._seen.add(node)
            values = tensor()
            if match[1] == "probs" and broken_row(values.reshape(-1, values.shape[-1])) is not None:
                self.broken_layer = min(node[1], self.broken_layer if self.broken_layer is not None else node[1])
            if match[1] == "topk" or self.scores:
                self._nodes.setdefault(node, []).append(values)
        return END_GRAPH if self._enough is not None and self._enough <= self._seen else None

    def take_batch(self, batch: Sequence[BatchToken]) -> Routing:
        """What was collected since the last time, which must be this batch.

        Raises:
            RuntimeFailure: nothing was seen, or not for these tokens, or its layers cannot stand in one array.
        """
        nodes, self._nodes = self._nodes, {}
        ubatches, self._ubatches = self._ubatches, []
        layers = tuple(sorted(layer for kind, layer in nodes if kind == "topk"))
        if not layers:
            raise RuntimeFailure("no routing was seen: this model's graph names its expert choice in a way not known")
        order = batch_order(batch, ubatches)
        outputs = order[[batch[index].wants_logits for index in order]]
        ids = [_spread(nodes[("topk", layer)], order, outputs, NOT_COMPUTED) for layer in layers]
        used = sorted({layer.shape[-1] for layer in ids})
        if len(used) > 1:
            numbers = " and ".join(map(str, used))
            raise RuntimeFailure(f"layers of this model use different numbers of experts ({numbers}): not supported")
        if not self.scores:
            return Routing(layers, np.stack(ids), None, None)
        shape = (len(batch), nodes[("probs", layers[0])][0].shape[-1])
        probabilities: list[Any] = []
        selection: list[Any] = []
        unmasked: list[Any] = []
        kinds = {kind for kind, _ in nodes}
        for layer in layers:
            scores = _spread(nodes[("probs", layer)], order, outputs, np.nan).reshape(shape)
            probabilities.append(scores)
            for kind, kept in (("probs_biased", unmasked), ("probs_masked", selection)):
                if (kind, layer) in nodes:
                    scores = _spread(nodes[(kind, layer)], order, outputs, np.nan).reshape(shape)
                kept.append(scores)
        return Routing(
            layers,
            np.stack(ids),
            np.stack(probabilities),
            np.stack(selection) if kinds & {"probs_biased", "probs_masked"} else None,
            np.stack(unmasked) if "probs_masked" in kinds else None,
        )


def batch_order(batch: Sequence[BatchToken], ubatches: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """In which order the runtime computed a batch: `order[i]` is the place in the batch of the i-th computed token.

    llama.cpp cuts a batch into ubatches either as it stands, or by taking equally many tokens of several sequences, one
    sequence after the other. Which of the two is read off the tokens that each ubatch was seen to hold.

    Raises:
        RuntimeFailure: neither explains what was seen.
    """
    waiting: dict[int, list[int]] = {}
    for place, entry in enumerate(batch):
        waiting.setdefault(entry.sequence, []).append(place)
    order: list[int] = []
    for seen in ubatches:
        rest = sorted(place for places in waiting.values() for place in places)
        taken = rest[: len(seen)]
        if [batch[place].token for place in taken] != list(seen):
            taken = _equal_split(batch, waiting, seen)
        order += taken
        done = set(taken)
        waiting = {s: [p for p in places if p not in done] for s, places in waiting.items()}
    if len(order) != len(batch):
        raise RuntimeFailure(f"{len(order)} of {len(batch)} tokens were seen in the graph; their routing is unknown")
    return np.array(order, np.int64)


def _equal_split(batch: Sequence[BatchToken], waiting: dict[int, list[int]], seen: Sequence[int]) -> list[int]:
    by_first = sorted((places[0], s) for s, places in waiting.items() if places)
    for sequences in range(1, len(by_first) + 1):
        each, rest = divmod(len(seen), sequences)
        if rest:
            continue
        taken = [place for _, s in by_first[:sequences] for place in waiting[s][:each]]
        if [batch[place].token for place in taken] == list(seen):
            return taken
    raise RuntimeFailure("the runtime cut a batch in a way not known, so its routing cannot be told apart")


def _spread(
    parts: Sequence[NDArray[np.generic]], order: NDArray[np.int64], outputs: NDArray[np.int64], missing: float
) -> NDArray[np.generic]:
    """Rows in the order of the batch; tokens that the layer did not compute are `missing`."""
    rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
    for places in (order, outputs):
        if len(rows) == len(places):
            full = np.full((len(order), rows.shape[-1]), missing, rows.dtype)
            full[places] = rows
            return full
    raise RuntimeFailure(f"a layer routed {len(rows)} of {len(order)} tokens; {len(outputs)} were expected")


def decode_batch(context: Context, batch: Sequence[BatchToken], tap: RouterTap | None = None) -> NDArray[np.float32]:
    """Decode tokens of any sequences as one batch.

    Returns:
        Logits [wanted, vocabulary], in the order of the batch; a view that the next decode overwrites.

    Raises:
        RuntimeFailure: llama.cpp failed, or the logits or the router's scores are no numbers.
    """
    _submit(context, batch)
    wanted = [place for place, entry in enumerate(batch) if entry.wants_logits]
    logits = np.empty((0, context.model.vocab_size), np.float32)
    if wanted:
        # Logits lie in the order of the batch, whatever order they were computed in, once one was asked for by its
        # place.
        first = context.library.llama_get_logits_ith(context.handle, wanted[0])
        if not first:
            raise RuntimeFailure("llama.cpp gave no logits")
        logits = np.ctypeslib.as_array(first, (len(wanted), context.model.vocab_size))
    require_numbers(logits, None if tap is None else tap.broken_layer)
    return logits


def route_batch(context: Context, batch: Sequence[BatchToken], tap: RouterTap) -> Routing:
    """Decode tokens of any sequences as one batch for their routing alone, after `RouterTap.end_graphs`.

    Raises:
        RuntimeFailure: llama.cpp failed, or the router's scores are no numbers.
    """
    _submit(context, batch)
    require_router_numbers(tap.broken_layer)
    return tap.take_batch(batch)


def _submit(context: Context, batch: Sequence[BatchToken]) -> None:
    count = len(batch)
    token = np.array([entry.token for entry in batch], np.int32)
    position = np.array([entry.position for entry in batch], np.int32)
    one = np.ones(count, np.int32)
    sequence = np.array([entry.sequence for entry in batch], np.int32)
    pointer = ctypes.POINTER(ctypes.c_int32)
    sequences = (pointer * count)(*(ctypes.cast(sequence.ctypes.data + 4 * index, pointer) for index in range(count)))
    wanted = np.array([entry.wants_logits for entry in batch], np.int8)
    library = context.library
    library.stop.raise_if_requested()
    result = library.llama_decode(
        context.handle,
        abi.Batch(
            n_tokens=count,
            token=token.ctypes.data_as(pointer),
            pos=position.ctypes.data_as(pointer),
            n_seq_id=one.ctypes.data_as(pointer),
            seq_id=sequences,
            logits=wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        ),
    )
    context.raise_pending()
    if result != abi.DECODE_OK:
        library.stop.raise_if_requested()
        if result == abi.DECODE_NO_SLOT:
            raise RuntimeFailure(f"no room for a batch of {count} tokens in a context of {context.n_ctx:,}")
        raise RuntimeFailure(f"llama.cpp failed to decode a batch of {count} tokens (code {result})")
