"""A context of a model, inside a worker process: tokens in, logits out.

Nothing here is safe against a C assert; that is what the worker process is for. All token positions count from 0.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import NonFiniteLogits, RuntimeFailure, UsageError
from dfqs.runtime import abi
from dfqs.runtime.log_lines import Buffer, logged_reason, parse_buffers, parse_graph_nodes
from dfqs.runtime.model import Model, choice_of
from dfqs.runtime.observe import EvalCallback, GraphCallback, TensorView, chain, read_tensor
from dfqs.storage.closing import Closing

__all__ = ["Buffer", "Context", "EvalCallback", "Model", "TensorView", "read_tensor"]

Logits = NDArray[np.float32]

DEFAULT_CONTEXT_TOKENS = 4096
ROWS_ALIKE = (8, 4)
"""At least so many rows of logits, and a multiple of so many, go through the same matrix products as those of a whole
batch, and have the same last bits."""


class Context(Closing):
    """Working memory of a model: KV cache, compute buffers, threads.

    Args:
        n_ctx: context length in tokens over all sequences; None means the trained length up to 4,096. Longer than
            the model was trained for is capped, and `notices` says so.
        n_batch, n_ubatch: tokens submitted, and computed, at a time.
        threads, threads_batch: CPU threads, and those for batches of several tokens where they are not as many.
        flash_attention: `off`, `on` or `auto`.
        type_k, type_v: cache types, keys of `abi.CACHE_TYPES`.
        swa_full: full-size caches for sliding-window layers; off, they are small but cannot be rolled back.
        eval_callback: looks at tensors during `decode`, beside the model's own callback if it has one.

    Raises:
        RuntimeFailure: llama.cpp could not make it (memory, a combination it does not support).
    """

    def __init__(
        self,
        model: Model,
        n_ctx: int | None = None,
        *,
        n_batch: int = 512,
        n_ubatch: int = 512,
        threads: int | None = None,
        threads_batch: int | None = None,
        flash_attention: str = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        n_seq_max: int = 1,
        kv_unified: bool = False,
        swa_full: bool = False,
        eval_callback: GraphCallback | None = None,
    ) -> None:
        self.model = model
        self.library = library = model.library
        self.notices: list[str] = []
        self.handle: int | None = None
        self.last_logits: Logits | None = None
        """What `decode` gave, where that was of one token."""
        trained = model.trained_context_tokens
        wanted = min(trained, DEFAULT_CONTEXT_TOKENS) if n_ctx is None else n_ctx
        if wanted < 1:
            raise UsageError(f"a context of {wanted} tokens makes no sense")
        if wanted > trained * n_seq_max > 0:
            self.notices.append(f"context capped at {trained:,} tokens, the length this model was trained for")
            wanted = trained * n_seq_max
        params = library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = wanted, n_batch, min(n_ubatch, n_batch)
        params.n_threads = threads or library.threads
        params.n_threads_batch = threads_batch or params.n_threads
        params.flash_attn_type = choice_of(flash_attention, abi.FLASH_ATTENTION, "flash attention")
        params.type_k = choice_of(type_k, abi.CACHE_TYPES, "type of the K cache")
        params.type_v = choice_of(type_v, abi.CACHE_TYPES, "type of the V cache")
        params.n_seq_max, params.kv_unified, params.swa_full = n_seq_max, kv_unified, swa_full
        params.abort_callback, params.abort_callback_data = library.stop.callback, library.stop.callback_data
        self._callback = chain(model.callback, eval_callback)
        if self._callback is not None:
            params.cb_eval = self._callback.attach(library)
        mark = library.log.mark()
        self.handle = library.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise RuntimeFailure(
                f"llama.cpp cannot make a context of {wanted:,} tokens: {logged_reason(library, mark)}"
            )
        model.contexts.add(self)
        self.buffers = parse_buffers(library.log.since(mark))
        self.graph_nodes = parse_graph_nodes(library.log.since(mark))
        self.n_ctx: int = library.llama_n_ctx(self.handle)
        self.n_ctx_sequence: int = library.llama_n_ctx_seq(self.handle)
        self.n_batch: int = library.llama_n_batch(self.handle)
        self.n_ubatch: int = library.llama_n_ubatch(self.handle)
        self.threads: int = params.n_threads
        self._memory = library.llama_get_memory(self.handle)

    def decode(
        self,
        tokens: Sequence[int],
        position: int = 0,
        sequence: int = 0,
        logits: Literal["last", "all", "none", "unread"] = "last",
        take: Callable[[int, Logits], None] | None = None,
        first_row: int = 0,
    ) -> Logits | None:
        """Run `tokens` through the model at `position` of `sequence`.

        Args:
            logits: of the last token, float32 [vocabulary]; of all, float32 [tokens, vocabulary]; or none. (Mostly the
                last layer computes only tokens whose logits are wanted. Who needs it to compute all, and ends the graph
                before the logits, leaves them unread.)
            take: with `all`, called with `(index of the first row, rows)` for each batch, and nothing is returned: a
                long text's logits do not fit in memory. The rows are a view that the next batch overwrites.
            first_row: with `all`, the first token whose logits are wanted; those before it are not computed.

        Raises:
            UsageError: no tokens, tokens that do not exist, or more than the context has room for.
            NonFiniteLogits: the logits say nothing.
            RuntimeFailure: llama.cpp failed; says why.
            Stopped: a stop was requested. What was decoded so far stays in the cache (`end_position`).
        """
        if not len(tokens):
            raise UsageError("nothing to decode")
        if position + len(tokens) > self.n_ctx_sequence:
            raise UsageError(
                f"the context is full: {position + len(tokens):,} tokens wanted, {self.n_ctx_sequence:,} available"
            )
        if not 0 <= min(tokens) <= max(tokens) < self.model.vocab_size:
            raise UsageError(f"a token is outside the vocabulary of {self.model.vocab_size:,}")
        self.last_logits = None
        rows: list[Logits] = []
        wanted_from = {"last": len(tokens) - 1, "none": len(tokens)}.get(logits, first_row)
        for start in range(0, len(tokens), self.n_batch):
            chunk = tokens[start : start + self.n_batch]
            first = min(max(wanted_from - start, 0), len(chunk))
            asked = _widened(first, len(chunk)) if logits == "all" else first
            self._decode_batch(chunk, position + start, sequence, asked)
            if logits == "all" and first < len(chunk):
                batch_rows = self._logits(first, len(chunk) - first)
                check_logits(batch_rows, position + start + first)
                if take is not None:
                    take(start + first, batch_rows)
                else:
                    rows.append(batch_rows.copy())
        if logits == "all" and take is None:
            return np.concatenate(rows)
        if logits != "last":
            return None
        last: Logits = self._logits(-1, 1)[0].copy()
        check_logits(last[None], position + len(tokens) - 1)
        self.last_logits = last
        return last

    def _decode_batch(self, tokens: Sequence[int], position: int, sequence: int, first_wanted: int) -> None:
        """Compute one batch, with logits of its tokens from `first_wanted` on."""
        self.library.stop.raise_if_requested()
        count = len(tokens)
        token = np.asarray(tokens, np.int32)
        pos = np.arange(position, position + count, dtype=np.int32)
        ones = np.ones(count, np.int32)
        sequence_id = ctypes.c_int32(sequence)
        sequence_ids = (ctypes.POINTER(ctypes.c_int32) * count)(*([ctypes.pointer(sequence_id)] * count))
        wanted = np.zeros(count, np.int8)
        wanted[first_wanted:] = 1
        batch = abi.Batch(
            n_tokens=count,
            token=_int32_pointer(token),
            pos=_int32_pointer(pos),
            n_seq_id=_int32_pointer(ones),
            seq_id=sequence_ids,
            logits=wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        mark = self.library.log.mark()
        result = self.library.llama_decode(self.handle, batch)
        self.raise_pending()
        if result == abi.DECODE_OK:
            return
        self.library.stop.raise_if_requested()
        if result == abi.DECODE_NO_SLOT:
            raise RuntimeFailure(f"no room in the KV cache for {count} tokens at position {position:,}")
        raise RuntimeFailure(f"llama.cpp failed to decode (code {result}): {logged_reason(self.library, mark)}")

    def raise_pending(self) -> None:
        """Raise what a callback could not raise inside llama.cpp; whoever calls `llama_decode` asks afterwards."""
        if self._callback is not None:
            self._callback.raise_pending()

    def _logits(self, first: int, count: int) -> Logits:
        pointer = self.library.llama_get_logits_ith(self.handle, first)
        if not pointer:
            raise RuntimeFailure("llama.cpp gave no logits")
        return np.ctypeslib.as_array(pointer, (count, self.model.vocab_size))

    def end_position(self, sequence: int = 0) -> int:
        """Position after the last token of `sequence` in the cache: 0 when it is empty."""
        return int(self.library.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def copy_sequence(self, source: int, destination: int) -> None:
        """Let `destination` share what `source` holds (no data is copied with `kv_unified`)."""
        self.library.llama_memory_seq_cp(self._memory, source, destination, -1, -1)

    def remove_sequence(self, sequence: int, start: int = 0, end: int = -1) -> bool:
        """Forget positions `[start, end)` of `sequence`; -1 means to its end. False: this cache cannot do that."""
        return bool(self.library.llama_memory_seq_rm(self._memory, sequence, start, end))

    def clear(self) -> None:
        """Forget every sequence."""
        self.library.llama_memory_clear(self._memory, True)

    def save_sequence(self, sequence: int = 0) -> bytes:
        """State of one sequence, for `load_sequence` on a context made alike."""
        size = self.library.llama_state_seq_get_size(self.handle, sequence)
        data = ctypes.create_string_buffer(size)
        written = self.library.llama_state_seq_get_data(self.handle, data, size, sequence)
        return data.raw[:written]

    def load_sequence(self, data: bytes, sequence: int = 0) -> None:
        """
        Raises:
            RuntimeFailure: the state does not fit this context.
        """
        if not self.library.llama_state_seq_set_data(self.handle, data, len(data), sequence):
            raise RuntimeFailure("llama.cpp refused the saved state of a sequence")

    def close(self) -> None:
        if self.handle:
            self.library.llama_free(self.handle)
            self.handle = None


def _widened(first: int, count: int) -> int:
    """The first of `count` tokens to ask for logits of, where those from `first` on are wanted."""
    if first == count:
        return first
    rows = max(count - first, ROWS_ALIKE[0])
    return max(count - rows - -rows % ROWS_ALIKE[1], 0)


def check_logits(rows: Logits, position: int) -> None:
    """Whether a token can be chosen by each row of logits (float32 [tokens, vocabulary]).

    Entries of minus infinity are tokens that a model rules out; a row of nothing else, a NaN or a plus infinity is not
    an answer, and whatever is chosen or measured by it would be an invention.

    Raises:
        NonFiniteLogits: names the first such position, counted from `position`.
    """
    # A NaN is the maximum wherever there is one.
    bad = ~np.isfinite(rows.max(axis=1))
    if bad.any():
        first = int(bad.argmax())
        kind = "NaN" if np.isnan(rows[first]).any() else "infinite"
        raise NonFiniteLogits(
            f"the model's logits at position {position + first:,} are {kind}, so its next token means nothing; its "
            "weights are damaged ('dfqs verify --against' or '--manifest' finds that), or overflow in this arithmetic"
        )


def _int32_pointer(array: NDArray[np.int32]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
