"""Streaming under llama.cpp's feet: sees which experts a layer has chosen, and has them there before they are used.

The graph's nodes are named: `ffn_moe_topk-<layer>` holds the choice, and the matrix product with
`blk.<layer>.ffn_down_exps.weight` says by its input's name which node comes before the last matrix is needed. Layers
that are routed by a table from token to experts (DeepSeek-V4's first ones) are known as soon as the tokens are, which
the lookup of their embeddings reads.
"""

import ctypes
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import RuntimeFailure
from dfqs.runtime import abi
from dfqs.streaming.cache import ExpertCache
from dfqs.streaming.guessing import MOST_TOKENS, NextChoice
from dfqs.streaming.layout import StreamLayout
from dfqs.streaming.pages import MappedFiles
from dfqs.streaming.reader import Arrival, PageReader

_CHOICE = re.compile(rb"ffn_moe_topk-(\d+)")
_ROUTED = re.compile(rb"ffn_moe_logits-(\d+)")
_PRODUCT_OP, _LOOKUP_OP, _MATRIX_OP = "MUL_MAT_ID", "GET_ROWS", "MUL_MAT"
_UNNAMED = b"node_"
_EMBEDDINGS, _INPUT_TOKENS = b"token_embd.weight", b"inp_tokens"
_LAST_NORM, _LOGITS = b"result_norm", b"result_output"
"""What a graph ends with, whatever the architecture: after the first no expert is used."""

ExpertTables = Mapping[int, NDArray[np.int32]]
"""Layer -> int32 [vocabulary, used]: the experts of each token."""


class ExpertStream:
    """An evaluation callback (see `dfqs.runtime.observe.GraphCallback`) that streams experts.

    Args:
        tables: of the layers whose experts the token alone decides.
        guesser: what the next layer probably chooses; None where nothing is read ahead.
    """

    def __init__(
        self,
        layout: StreamLayout,
        files: MappedFiles,
        reader: PageReader,
        cache: ExpertCache,
        tables: ExpertTables,
        guesser: NextChoice | None = None,
    ) -> None:
        self.cache = cache
        self.tokens = 0
        """That were computed."""
        self.passes_s = 0.0
        """How long that took, from a graph's first node to its logits."""
        self._reader = reader
        self._tables = tables
        self._guesser = guesser
        self._router_inputs: dict[int, Any] = {}
        """Of this graph: layer -> the tensor that its router is given."""
        self._layers = {layer for layer, _ in layout.experts}
        self._addresses = {t.name.encode(): files.bases[t.file] + t.offset for t in layout.tensors}
        self._unchecked = set(self._addresses)
        self._last_matrices = {t.name.encode(): t.layer for t in layout.tensors if t.is_last}
        self._choices: dict[bytes, int | None] = {}
        self._last_inputs: dict[bytes, int] = {}
        """Node that is multiplied by a layer's last matrix -> that layer."""
        self._learned: set[int] = set()
        self._pending: dict[int, list[Arrival]] = {}
        self._last_layer: int | None = None
        self._pass_started: float | None = None
        self.has_seen_the_end = False
        """A graph ended as they are known to, so that one whose bytes failed is known before its logits are seen."""
        self._op_names: dict[int, str] = {}
        self._lookups: dict[bytes, bool] = {}
        """Nodes that read rows of a table: whether it is the tokens' embeddings."""
        self._library: Any = None
        self._plain: dict[bytes, int] = {}
        """Nodes that are known to be of no interest, by name -> ggml's number of their operation."""
        self._error: BaseException | None = None
        self._function = abi.EVAL_CALLBACK(self.called)

    def attach(self, library: Any) -> int | None:
        """Address to pass as `cb_eval`; valid while this object lives."""
        self._library = library
        return ctypes.cast(self._function, ctypes.c_void_p).value

    @property
    def error(self) -> BaseException | None:
        """What went wrong and was not raised yet; nothing that was computed since is worth anything."""
        return self._error

    def raise_pending(self) -> None:
        """
        Raises:
            RuntimeFailure: bytes of the model could not be had, or are no longer what they were. What was computed in
                this pass is worth nothing.
        """
        error, self._error = self._error, None
        # A graph that somebody ended before its logits.
        self._end_pass()
        if error is not None:
            raise error
        self._reader.require_unchanged()

    def called(self, pointer: Any, ask: bool, _data: Any = None) -> bool:
        """See `GraphCallback.called`."""
        try:
            tensor = pointer.contents
            name = tensor.name
            if ask:
                if self._pass_started is None:
                    self._pass_started = time.perf_counter()
                # A thousand nodes a token are asked about, and few are wanted. (Names alone can change their meaning.)
                if self._plain.get(name) == tensor.op:
                    return False
            layer = self._layer_choosing(name)
            ends = name in (_LAST_NORM, _LOGITS)
            wanted = layer is not None or name in self._last_inputs or ends
            if ask:
                return self._asked(tensor, name, wanted)
            if self._error is not None:
                # Without its bytes the rest of the graph is not worth computing.
                return False
            if layer is not None:
                self._chosen(layer, tensor)
            elif name in self._last_inputs:
                self.cache.wait(self._pending.pop(self._last_inputs[name], ()))
            if ends:
                # Before anybody sees what came out.
                self._reader.require_unchanged()
                self.has_seen_the_end = True
                if name == _LOGITS:
                    self._end_pass()
        except BaseException as error:
            self._error = self._error or error
            return ask
        return True

    def _end_pass(self) -> None:
        if self._pass_started is not None:
            self.passes_s += time.perf_counter() - self._pass_started
        self._last_layer = self._pass_started = None
        self._pending.clear()
        self._router_inputs.clear()

    def _asked(self, tensor: Any, name: bytes, wanted: bool) -> bool:
        """Whether a node is of interest; remembers those that are not."""
        if self._unchecked:
            self._learn(tensor)
        if self._tables and self._is_lookup(name, tensor):
            self._prefetch(tensor.src[1].contents)
        elif self._guesser is not None and (match := _ROUTED.fullmatch(name)) is not None:
            # Computed when the layer has chosen.
            if tensor.src[1] and self._op_name(tensor.op) == _MATRIX_OP:
                self._router_inputs[int(match[1])] = tensor.src[1].contents
        elif not wanted and not self._is_unnamed_product(tensor):
            self._plain[name] = tensor.op
        return wanted

    def _is_unnamed_product(self, tensor: Any) -> bool:
        """Whether this may be, in another graph, the product with another weight."""
        return self._op_name(tensor.op) == _PRODUCT_OP and tensor.name.startswith(_UNNAMED)

    def _layer_choosing(self, name: bytes) -> int | None:
        """The layer whose choice a node holds; None for other nodes."""
        layer = self._choices.get(name, -1)
        if layer == -1:
            match = _CHOICE.fullmatch(name)
            layer = int(match[1]) if match else None
            layer = self._choices[name] = layer if layer in self._layers else None
        return layer

    def _chosen(self, layer: int, tensor: Any) -> None:
        if self._last_layer is None or layer < self._last_layer:
            self.cache.begin_pass()
            self.tokens += tensor.ne[1]
        self._last_layer = layer
        # Architectures that choose twice in a layer.
        self.cache.wait(self._pending.pop(layer, ()))
        wanted = self.cache.require(layer, _expert_ids(tensor))
        # The disk is at work, and this thread would wait.
        self._guess_after(layer, tensor)
        self.cache.wait(wanted.first)
        if layer in self._learned:
            self._pending[layer] = [arrival for arrival in wanted.last if not arrival.is_done]
        else:
            self.cache.wait(wanted.last)

    def _guess_after(self, layer: int, tensor: Any) -> None:
        """Say what the next layer will probably choose."""
        state = self._router_inputs.pop(layer, None)
        if state is None or self._guesser is None or tensor.ne[1] > MOST_TOKENS:
            return
        after = self._guesser.layer_after(layer)
        if after is None or after in self._tables or not self.cache.guesses_for(after):
            return
        width, tokens = state.ne[0], tensor.ne[1]
        if not state.data or state.type != 0 or state.ne[1] != tokens or tuple(state.nb[:2]) != (4, 4 * width):
            return
        buffer = (ctypes.c_char * (4 * width * tokens)).from_address(state.data)
        states = np.ndarray((tokens, width), np.float32, buffer)
        self.cache.guess(after, self._guesser.guess(layer, states, tensor.ne[0]))

    def _learn(self, tensor: Any) -> None:
        """Check, once for each tensor of experts, that its bytes are where they are exchanged."""
        if self._op_name(tensor.op) != _PRODUCT_OP:
            return
        weight = tensor.src[0].contents
        if weight.name not in self._unchecked:
            return
        if weight.data != self._addresses[weight.name]:
            raise RuntimeFailure(
                f"llama.cpp keeps {weight.name.decode()} elsewhere than in the mapped file; it cannot be streamed"
            )
        self._unchecked.discard(weight.name)
        layer = self._last_matrices.get(weight.name)
        if layer is not None:
            before = tensor.src[1].contents.name
            self._last_inputs[before] = layer
            # It was asked about before it was known to be of interest.
            self._plain.pop(before, None)
            self._learned.add(layer)

    def _is_lookup(self, name: bytes, tensor: Any) -> bool:
        known = self._lookups.get(name)
        if known is None:
            known = False
            if self._op_name(tensor.op) == _LOOKUP_OP and tensor.src[1]:
                names = (tensor.src[0].contents.name, tensor.src[1].contents.name)
                known = names == (_EMBEDDINGS, _INPUT_TOKENS)
            self._lookups[name] = known
        return known

    def _prefetch(self, inputs: Any) -> None:
        """The graph is about to look these tokens up; its inputs were set before."""
        tokens = np.ctypeslib.as_array(ctypes.cast(inputs.data, ctypes.POINTER(ctypes.c_int32)), (inputs.ne[0],))
        for layer, table in sorted(self._tables.items()):
            self.cache.prefetch(layer, np.unique(table[tokens]).tolist())

    def _op_name(self, op: int) -> str:
        if op not in self._op_names:
            self._op_names[op] = self._library.ggml_op_name(op).decode()
        return self._op_names[op]


def _expert_ids(tensor: Any) -> list[int]:
    """The different experts in a choice: int32 [used, tokens], rows apart by the tensor's stride."""
    used, tokens, row = tensor.ne[0], tensor.ne[1], tensor.nb[1]
    if not tokens:
        # The last layer, in a batch of which no logits are wanted.
        return []
    span = (tokens - 1) * row + used * 4
    buffer = (ctypes.c_char * span).from_address(tensor.data)
    ids = np.ndarray((tokens, used), np.int32, buffer, 0, (row, 4))
    if tokens == 1:
        return [int(i) for i in ids[0]]
    values, counts = np.unique(ids, return_counts=True)
    # Those that most tokens chose first: they are the ones to have a place where there is not one for all.
    return [int(i) for i in values[np.argsort(-counts, kind="stable")]]
