"""A model and its contexts, inside a worker process: tokens in, logits out.

Nothing here is safe against a C assert; that is what the worker process is for. All token positions count from 0.
"""

import ctypes
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from dfqs.errors import RuntimeFailure, UsageError, printable
from dfqs.progress import Progress, no_progress
from dfqs.runtime import abi
from dfqs.runtime.library import Library
from dfqs.runtime.observe import EvalCallback, TensorView, read_tensor
from dfqs.runtime.template import render_chat

__all__ = ["Buffer", "Context", "EvalCallback", "Model", "TensorView", "read_tensor"]

Logits = NDArray[np.float32]

DEFAULT_CONTEXT_TOKENS = 4096
_BUFFER_LINE = re.compile(r":\s+(\S+)\s+(.*?)\s*buffer size =\s*([\d.]+) MiB")
_CACHE_LINE = re.compile(r": size =\s*([\d.]+) MiB \(\s*\d+ cells")


@dataclass(frozen=True, slots=True)
class Buffer:
    """One allocation as llama.cpp reports it (in hundredths of a MiB)."""

    device: str
    """As llama.cpp calls it (`CPU`); empty for caches, which are reported over all devices."""
    kind: str
    """`model`, `cache` (KV, and states of recurrent layers), `compute`, `output`, or an architecture's own
    (`DSV4 ... state`)."""
    bytes: int


class Model:
    """A loaded GGUF: one file, or the first shard of a complete set.

    Args:
        load_mode: a key of `abi.LOAD_MODES`.
        vocab_only: load the tokenizer, no weights.
        no_alloc: load metadata and simulate the allocations (needs `load_mode="none"`).
        gpu_layers: layers to offload; None leaves llama.cpp's default (all that a GPU build can take).
        progress: called with per mille of the weights loaded.

    Raises:
        RuntimeFailure: llama.cpp refused the file; says why.
        Stopped: a stop was requested while loading.
    """

    def __init__(
        self,
        library: Library,
        path: str | os.PathLike[str],
        *,
        load_mode: str = "auto",
        vocab_only: bool = False,
        no_alloc: bool = False,
        check_tensors: bool = False,
        gpu_layers: int | None = None,
        repack: bool = True,
        progress: Progress = no_progress,
    ) -> None:
        self.library = library
        self.path = Path(path)
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.handle: int | None = None
        params = library.llama_model_default_params()
        params.load_mode = _choice(load_mode, abi.LOAD_MODES, "load mode")
        params.vocab_only, params.no_alloc, params.check_tensors = vocab_only, no_alloc, check_tensors
        params.use_extra_bufts = repack
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        if no_alloc and load_mode != "none":
            raise UsageError("no_alloc needs load_mode='none': llama.cpp dies on it with a memory map")
        callback = abi.LOAD_CALLBACK(lambda fraction, _data: _report_load(library, progress, fraction))
        params.progress_callback = ctypes.cast(callback, ctypes.c_void_p)
        mark = library.log.mark()
        self.handle = library.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self.handle:
            library.stop.raise_if_requested()
            raise RuntimeFailure(f"llama.cpp cannot load {self.path}: {_reason(library, mark)}")
        self.buffers = parse_buffers(library.log.since(mark))
        self._vocab = library.llama_model_get_vocab(self.handle)
        self.vocab_size: int = library.llama_vocab_n_tokens(self._vocab)
        self.trained_context_tokens: int = library.llama_model_n_ctx_train(self.handle)
        self.layers: int = library.llama_model_n_layer(self.handle)
        self.size_bytes: int = library.llama_model_size(self.handle)
        self.bos: int = library.llama_vocab_bos(self._vocab)
        self.eos: int = library.llama_vocab_eos(self._vocab)
        self.adds_bos: bool = library.llama_vocab_get_add_bos(self._vocab)

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Tokens of `text`.

        Args:
            add_special: let the model add its BOS and EOS.
            parse_special: read `<|im_start|>` and the like as the control tokens they name.

        Raises:
            RuntimeFailure: the model has no tokenizer.
        """
        if self.library.llama_vocab_type(self._vocab) == 0:
            raise RuntimeFailure(f"{self.path} has no tokenizer, so text cannot be turned into tokens")
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 16
        for _ in range(2):
            buffer = (ctypes.c_int32 * capacity)()
            count = self.library.llama_tokenize(
                self._vocab, data, len(data), buffer, capacity, add_special, parse_special
            )
            if count >= 0:
                return list(buffer[:count])
            capacity = -count
        raise RuntimeFailure(f"llama.cpp cannot tokenize a text of {len(data):,} bytes")

    def piece(self, token: int, special: bool = True) -> bytes:
        """Bytes that `token` stands for; may be part of a UTF-8 character. Control tokens are empty unless `special`.

        Raises:
            UsageError: no such token.
        """
        if not 0 <= token < self.vocab_size:
            raise UsageError(f"token {token} is outside the vocabulary of {self.vocab_size:,}")
        capacity = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(capacity)
            count = self.library.llama_token_to_piece(self._vocab, token, buffer, capacity, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count
        raise RuntimeFailure(f"llama.cpp cannot render token {token}")

    def detokenize(self, tokens: Sequence[int], special: bool = True) -> str:
        """Text of `tokens`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.piece(token, special) for token in tokens).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether generation ends with `token` (EOS, end of turn and the like)."""
        return bool(self.library.llama_vocab_is_eog(self._vocab, token))

    def chat_template(self) -> str | None:
        """The Jinja template that the file carries, if any."""
        template = self.library.llama_model_chat_template(self.handle, None)
        return template.decode("utf-8", "replace") if template else None

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as the model was trained to see it: text to tokenize with `tokenize_chat`.

        Args:
            messages: `{"role": ..., "content": ...}`, oldest first.
            variables: what else the template knows (`enable_thinking=False`).

        Raises:
            RuntimeFailure: there is no template, or it fails or refuses on these messages.
        """
        template = self.chat_template()
        if template is None:
            raise RuntimeFailure(f"{self.path} has no chat template; give it plain text (--raw)")
        return render_chat(
            template,
            messages,
            bos_token=self._special_text(self.bos),
            eos_token=self._special_text(self.eos),
            add_generation_prompt=add_generation_prompt,
            **variables,
        )

    def tokenize_chat(self, rendered: str) -> list[int]:
        """Tokens of a rendered conversation. BOS comes from the template or from the model, never twice."""
        bos = self._special_text(self.bos)
        if self.adds_bos and bos:
            rendered = rendered.removeprefix(bos)
        return self.tokenize(rendered, add_special=True, parse_special=True)

    def _special_text(self, token: int) -> str:
        return self.piece(token).decode("utf-8", "replace") if token >= 0 else ""

    def close(self) -> None:
        """Free the model, and first its contexts."""
        for context in list(self._contexts):
            context.close()
        if self.handle:
            self.library.llama_model_free(self.handle)
            self.handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Context:
    """Working memory of a model: KV cache, compute buffers, threads.

    Args:
        n_ctx: context length in tokens over all sequences; None means the trained length up to 4,096. Longer than
            the model was trained for is capped, and `notices` says so.
        n_batch, n_ubatch: tokens submitted, and computed, at a time.
        flash_attention: `off`, `on` or `auto`.
        type_k, type_v: cache types, keys of `abi.CACHE_TYPES`.
        swa_full: full-size caches for sliding-window layers; off, they are small but cannot be rolled back.
        eval_callback: looks at tensors during `decode`.

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
        flash_attention: str = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        n_seq_max: int = 1,
        kv_unified: bool = False,
        swa_full: bool = False,
        eval_callback: EvalCallback | None = None,
    ) -> None:
        self.model = model
        self.library = library = model.library
        self.notices: list[str] = []
        self.handle: int | None = None
        trained = model.trained_context_tokens
        wanted = min(trained, DEFAULT_CONTEXT_TOKENS) if n_ctx is None else n_ctx
        if wanted < 1:
            raise UsageError(f"a context of {wanted} tokens makes no sense")
        if wanted > trained * n_seq_max > 0:
            self.notices.append(f"context capped at {trained:,} tokens, the length this model was trained for")
            wanted = trained * n_seq_max
        params = library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = wanted, n_batch, min(n_ubatch, n_batch)
        params.n_threads = params.n_threads_batch = threads or library.threads
        params.flash_attn_type = _choice(flash_attention, abi.FLASH_ATTENTION, "flash attention")
        params.type_k = _choice(type_k, abi.CACHE_TYPES, "type of the K cache")
        params.type_v = _choice(type_v, abi.CACHE_TYPES, "type of the V cache")
        params.n_seq_max, params.kv_unified, params.swa_full = n_seq_max, kv_unified, swa_full
        params.abort_callback, params.abort_callback_data = library.stop.callback, library.stop.callback_data
        self._eval_callback = eval_callback
        if eval_callback is not None:
            params.cb_eval = eval_callback.attach(library)
        mark = library.log.mark()
        self.handle = library.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise RuntimeFailure(f"llama.cpp cannot make a context of {wanted:,} tokens: {_reason(library, mark)}")
        model._contexts.add(self)
        self.buffers = parse_buffers(library.log.since(mark))
        self.n_ctx: int = library.llama_n_ctx(self.handle)
        self.n_ctx_sequence: int = library.llama_n_ctx_seq(self.handle)
        self.n_batch: int = library.llama_n_batch(self.handle)
        self.threads: int = params.n_threads
        self._memory = library.llama_get_memory(self.handle)

    def decode(
        self,
        tokens: Sequence[int],
        position: int = 0,
        sequence: int = 0,
        logits: Literal["last", "all", "none"] = "last",
        take: Callable[[int, Logits], None] | None = None,
    ) -> Logits | None:
        """Run `tokens` through the model at `position` of `sequence`.

        Args:
            logits: of the last token, float32 [vocabulary]; of all, float32 [tokens, vocabulary]; or none.
                (The last layer computes only tokens whose logits are wanted.)
            take: with `all`, called with `(index of the first row, rows)` for each batch, and nothing is returned: a
                long text's logits do not fit in memory. The rows are a view that the next batch overwrites.

        Raises:
            UsageError: no tokens, or more than the context has room for.
            RuntimeFailure: llama.cpp failed; says why.
            Stopped: a stop was requested. What was decoded so far stays in the cache (`end_position`).
        """
        if not len(tokens):
            raise UsageError("nothing to decode")
        if position + len(tokens) > self.n_ctx_sequence:
            raise UsageError(
                f"the context is full: {position + len(tokens):,} tokens wanted, {self.n_ctx_sequence:,} available"
            )
        rows: list[Logits] = []
        for start in range(0, len(tokens), self.n_batch):
            chunk = tokens[start : start + self.n_batch]
            is_last = start + len(chunk) == len(tokens)
            self._decode_batch(chunk, position + start, sequence, logits, is_last)
            if logits == "all":
                batch_rows = self._logits(0, len(chunk))
                if take is not None:
                    take(start, batch_rows)
                else:
                    rows.append(batch_rows.copy())
        if logits == "all" and take is None:
            return np.concatenate(rows)
        return self._logits(-1, 1)[0].copy() if logits == "last" else None

    def _decode_batch(self, tokens: Sequence[int], position: int, sequence: int, logits: str, is_last: bool) -> None:
        self.library.stop.raise_if_requested()
        count = len(tokens)
        token = np.asarray(tokens, np.int32)
        pos = np.arange(position, position + count, dtype=np.int32)
        ones = np.ones(count, np.int32)
        sequence_id = ctypes.c_int32(sequence)
        sequence_ids = (ctypes.POINTER(ctypes.c_int32) * count)(*([ctypes.pointer(sequence_id)] * count))
        wanted = np.full(count, logits == "all", np.int8)
        wanted[-1] |= logits == "last" and is_last
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
        if self._eval_callback is not None:
            self._eval_callback.raise_pending()
        if result == abi.DECODE_OK:
            return
        self.library.stop.raise_if_requested()
        if result == abi.DECODE_NO_SLOT:
            raise RuntimeFailure(f"no room in the KV cache for {count} tokens at position {position:,}")
        raise RuntimeFailure(f"llama.cpp failed to decode (code {result}): {_reason(self.library, mark)}")

    def _logits(self, first: int, count: int) -> Logits:
        pointer = self.library.llama_get_logits_ith(self.handle, first)
        if not pointer:
            raise RuntimeFailure("llama.cpp gave no logits")
        return np.ctypeslib.as_array(pointer, (count, self.model.vocab_size))

    def end_position(self, sequence: int = 0) -> int:
        """Position after the last token of `sequence` in the cache: 0 when it is empty."""
        return int(self.library.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def copy_sequence(self, source: int, target: int) -> None:
        """Let `target` share what `source` holds (no data is copied with `kv_unified`)."""
        self.library.llama_memory_seq_cp(self._memory, source, target, -1, -1)

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def parse_buffers(lines: Sequence[str]) -> tuple[Buffer, ...]:
    """Allocations named in log lines such as `CPU compute buffer size = 104.77 MiB`."""
    found = []
    for line in lines:
        cache = _CACHE_LINE.search(line)
        if cache is not None:
            found.append(Buffer("", "cache", _bytes_of(cache[1])))
        match = _BUFFER_LINE.search(line)
        # The cells' own line says more: with simulated allocations the buffer line says 0.
        if match is not None and match[2] not in ("KV", "RS"):
            found.append(Buffer(match[1], match[2], _bytes_of(match[3])))
    return tuple(found)


def _bytes_of(mebibytes: str) -> int:
    return round(float(mebibytes) * (1 << 20))


def _report_load(library: Library, progress: Progress, fraction: float) -> bool:
    try:
        progress(int(fraction * 1000), 1000)
    except BaseException:
        library.stop.request()
    return not library.stop.requested


def _choice(value: str, table: Mapping[str, int], what: str) -> int:
    if value not in table:
        raise UsageError(f"'{printable(value)}' is no {what}; choose from {', '.join(table)}")
    return table[value]


def _reason(library: Library, mark: int) -> str:
    """The first two errors logged: the first names the cause, later ones repeat that it failed."""
    errors = library.log.errors_since(mark)
    return "; ".join(errors[:2]) or "it gave no reason"


def _int32_pointer(array: NDArray[np.int32]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
