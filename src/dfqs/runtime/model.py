"""A model that llama.cpp has loaded: its weights, its tokenizer and its chat template."""

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dfqs.errors import RuntimeFailure, UsageError, printable
from dfqs.progress import Progress, no_progress
from dfqs.runtime import abi
from dfqs.runtime.given_template import GivenTemplate
from dfqs.runtime.library import Library
from dfqs.runtime.log_lines import logged_reason, parse_buffers
from dfqs.runtime.messages import MODELS_OWN, Conversation
from dfqs.runtime.observe import GraphCallback
from dfqs.runtime.rendering import shared
from dfqs.storage.closing import Closing


class _Closable(Protocol):
    def close(self) -> None: ...


class Model(Closing):
    """A loaded GGUF: one file, or the first shard of a complete set.

    Args:
        load_mode: a key of `abi.LOAD_MODES`.
        vocab_only: load the tokenizer, no weights.
        no_alloc: load metadata and simulate the allocations (needs `load_mode="none"`).
        gpu_layers: layers to offload; None leaves llama.cpp's default (all that a GPU build can take).
        name: in place of the path in messages, for a file that stands for another.
        progress: called with per mille of the weights loaded.

    Raises:
        RuntimeFailure: llama.cpp refused the file; says why.
        Stopped: a stop was requested while loading.
    """

    given_template: GivenTemplate | None = None
    """Used in place of the file's own; see `use_template`."""

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
        name: str | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.library = library
        self.path = Path(path)
        self.contexts: weakref.WeakSet[_Closable] = weakref.WeakSet()
        self.handle: int | None = None
        self.callback: GraphCallback | None = None
        """Looks at the graphs of every context of this model."""
        params = library.llama_model_default_params()
        params.load_mode = choice_of(load_mode, abi.LOAD_MODES, "load mode")
        params.vocab_only, params.no_alloc, params.check_tensors = vocab_only, no_alloc, check_tensors
        params.use_extra_bufts = repack
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        if no_alloc and load_mode != "none":
            raise UsageError("no_alloc needs load_mode='none': llama.cpp dies on it with a memory map")
        failures: list[BaseException] = []

        def report(fraction: float, _data: object) -> bool:
            # Called by C: what is raised here would be lost, and loading would go on.
            try:
                progress(int(fraction * 1000), 1000)
            except BaseException as error:
                failures.append(error)
            return not failures and not library.stop.requested

        callback = abi.LOAD_CALLBACK(report)
        params.progress_callback = ctypes.cast(callback, ctypes.c_void_p)
        mark = library.log.mark()
        self.handle = library.llama_model_load_from_file(os.fsencode(self.path), params)
        if failures:
            self.close()
            raise failures[0]
        if not self.handle:
            library.stop.raise_if_requested()
            shown = printable(name, 300) if name is not None else str(self.path)
            reason = logged_reason(library, mark).replace(str(self.path), shown)
            raise RuntimeFailure(f"llama.cpp cannot load {shown}: {reason}")
        self.buffers = parse_buffers(library.log.since(mark))
        self.vocab = library.llama_model_get_vocab(self.handle)
        self.vocab_size: int = library.llama_vocab_n_tokens(self.vocab)
        self.trained_context_tokens: int = library.llama_model_n_ctx_train(self.handle)
        self.layers: int = library.llama_model_n_layer(self.handle)
        self.size_bytes: int = library.llama_model_size(self.handle)
        self.bos: int = library.llama_vocab_bos(self.vocab)
        self.eos: int = library.llama_vocab_eos(self.vocab)
        self.adds_bos: bool = library.llama_vocab_get_add_bos(self.vocab)

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Tokens of `text`.

        Args:
            add_special: let the model add its BOS and EOS.
            parse_special: read `<|im_start|>` and the like as the control tokens they name.

        Raises:
            RuntimeFailure: the model has no tokenizer.
        """
        if self.library.llama_vocab_type(self.vocab) == 0:
            raise RuntimeFailure(f"{self.path} has no tokenizer, so text cannot be turned into tokens")
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 16
        for _ in range(2):
            buffer = (ctypes.c_int32 * capacity)()
            count = self.library.llama_tokenize(
                self.vocab, data, len(data), buffer, capacity, add_special, parse_special
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
            count = self.library.llama_token_to_piece(self.vocab, token, buffer, capacity, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count
        raise RuntimeFailure(f"llama.cpp cannot render token {token}")

    def detokenize(self, tokens: Sequence[int], special: bool = True) -> str:
        """Text of `tokens`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.piece(token, special) for token in tokens).decode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether generation ends with `token` (EOS, end of turn and the like)."""
        return bool(self.library.llama_vocab_is_eog(self.vocab, token))

    def chat_template(self) -> str | None:
        """The Jinja template that is used: one that was given, else the one that the file carries, if any."""
        if self.given_template is not None:
            return self.given_template.text
        template = self.library.llama_model_chat_template(self.handle, None)
        return template.decode("utf-8", "replace") if template else None

    def use_template(self, given: GivenTemplate) -> None:
        """Render conversations with a template that was given. One that is the file's own changes nothing, and what is
        measured with it is measured under the same conditions."""
        self.given_template = None
        if not given.is_that_of(self.chat_template()):
            self.given_template = given

    def apply_chat_template(
        self, messages: Conversation, *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as the model was trained to see it: text to tokenize with `tokenize_chat`.

        What the system and the user said is in it; see `dfqs.runtime.template.render_conversation`.

        Args:
            messages: `{"role": ..., "content": ...}`, oldest first.
            variables: what else the template knows (`enable_thinking=False`).

        Raises:
            RuntimeFailure: there is no template; it fails, refuses these messages, or leaves one out; or it takes more
                time or memory than a template needs.
            Stopped: a stop was requested.
        """
        template = self.chat_template()
        if template is None:
            raise RuntimeFailure(
                f"{self.path} has no chat template; give it one (--chat-template FILE), or plain text (--raw)"
            )
        # As llama.cpp's server has it: models that can think do, unless told otherwise.
        variables.setdefault("enable_thinking", True)
        variables |= {
            "bos_token": self._special_text(self.bos),
            "eos_token": self._special_text(self.eos),
            "add_generation_prompt": add_generation_prompt,
        }
        whose = self.given_template.whose if self.given_template is not None else MODELS_OWN
        check_stop = self.library.stop.raise_if_requested
        return shared.render(template, messages, variables, whose=whose, check_stop=check_stop)

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
        for context in list(self.contexts):
            context.close()
        if self.handle:
            self.library.llama_model_free(self.handle)
            self.handle = None


def choice_of(value: str, table: Mapping[str, int], what: str) -> int:
    """The number that `value` stands for.

    Raises:
        UsageError: it stands for none.
    """
    if value not in table:
        raise UsageError(f"'{printable(value)}' is no {what}; choose from {', '.join(table)}")
    return table[value]
