"""What an evaluation asks of a worker. Every function here runs in the worker process.

Greedy decoding with one fixed set of numerics, and every prompt from an empty cache in the same batches: an answer
depends on the prompt alone, not on what was asked before it, so that a resumed evaluation equals an uninterrupted one.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfqs.errors import NonFiniteLogits, RuntimeFailure, UsageError
from dfqs.evaluate.conditions import Numerics
from dfqs.runtime.context import Context, Logits, Model
from dfqs.runtime.loading import LoadedModel, LoadOrder, StreamFigures
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.template import observe_thinking
from dfqs.runtime.worker_context import WorkerContext

PLACEHOLDER = "DFQS-PLACE-OF-THE-TEXT"
_DOCUMENT, _LENGTH, _QUESTION = 0, 1, 2
"""Sequences: whole batches of the document, the rest of it at one length, one question."""
DOCUMENT_SEQUENCES = 3


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """What the model told when it was loaded."""

    trained_context_tokens: int
    template_sha256: str | None
    thinking: str | None
    """`off` or `on`, as the end of a rendered prompt shows it; None: it shows nothing, and the model decides."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One greedy answer. `failure` says why there is none."""

    text: str
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class ReadSoFar:
    """How much of a document is in the cache."""

    tokens: int
    of_tokens: int


def open_model(worker: WorkerContext, path: Path, order: LoadOrder) -> OpenedModel:
    """Load the model for the calls that follow. Emits `(done, total)` while loading."""
    loaded = order.load(worker.library, path, lambda done, total=None, note="": worker.emit((done, total)))
    # What streams it must live as long as the model does.
    worker.state["loaded"] = loaded
    worker.state["model"] = model = loaded.model
    template = model.chat_template()
    _, tail = _frame(model)
    return OpenedModel(
        model.trained_context_tokens,
        hashlib.sha256(template.encode()).hexdigest() if template else None,
        {"open": "on", "closed": "off", None: None}[observe_thinking(tail)],
    )


def read_figures(worker: WorkerContext) -> StreamFigures | None:
    """What streaming did since the model was loaded; None where it is in memory."""
    loaded: LoadedModel = worker.state["loaded"]
    return loaded.read_figures()


def complete(worker: WorkerContext, prompt: str, max_tokens: int, numerics: Numerics, context_tokens: int) -> Generated:
    """Answer one user message; plain continuation where the model has no chat template. Emits the tokens so far."""
    model: Model = worker.state["model"]
    head, tail = _frame(model)
    tokens = model.tokenize_chat(head + prompt + tail) if tail else model.tokenize(prompt + "\n")
    context = _context(worker, numerics, context_tokens, sequences=1)
    context.clear()
    if len(tokens) >= context.n_ctx_sequence:
        return Generated("", "context", len(tokens), 0, f"the prompt alone has {len(tokens):,} tokens")
    try:
        logits = context.decode(tokens)
        assert logits is not None
        return _generate(model, context, logits, len(tokens), 0, max_tokens, worker.emit)
    except NonFiniteLogits as error:
        return Generated("", "error", len(tokens), 0, str(error))


def count_tokens(worker: WorkerContext, texts: Sequence[str]) -> list[int]:
    """Tokens of each text by itself, nothing added."""
    model: Model = worker.state["model"]
    return [len(model.tokenize(text, add_special=False, parse_special=False)) for text in texts]


def frame_tokens(worker: WorkerContext) -> int:
    """Tokens that the chat template puts around a message."""
    model: Model = worker.state["model"]
    head, tail = _frame(model)
    return len(model.tokenize_chat(head)) + len(model.tokenize(tail, add_special=False)) if tail else 4


def ask_document(
    worker: WorkerContext,
    notes: Sequence[str],
    questions: Sequence[str],
    max_tokens: int,
    numerics: Numerics,
    context_tokens: int,
) -> None:
    """Ask each question after the document of `notes`. Emits `ReadSoFar`, then `(index, Generated)`.

    The document is computed once in whole batches and kept: a longer one later only adds to it. Its rest is computed
    once a length, each question on a branch that is then forgotten, so that batches depend on the length alone.

    Raises:
        RuntimeFailure: the context cannot be made, or its numbers are not finite.
    """
    model: Model = worker.state["model"]
    context = _context(worker, numerics, context_tokens, DOCUMENT_SEQUENCES)
    head, tail = _frame(model)
    document = model.tokenize_chat(head) if tail else model.tokenize("")
    for note in notes:
        document += model.tokenize(note, add_special=False, parse_special=False)
    whole = len(document) // context.n_batch * context.n_batch
    _grow(worker, context, document[:whole])
    for sequence in (_LENGTH, _QUESTION):
        context.remove_sequence(sequence)
    if whole:
        context.copy_sequence(_DOCUMENT, _LENGTH)
    if whole < len(document):
        context.decode(document[whole:], whole, _LENGTH, logits="none")
    for index, question in enumerate(questions):
        context.copy_sequence(_LENGTH, _QUESTION)
        asked = model.tokenize(f"\n\n{question}", add_special=False, parse_special=False)
        asked += model.tokenize(tail or "\n", add_special=False)
        logits = context.decode(asked, len(document), _QUESTION)
        assert logits is not None
        position = len(document) + len(asked)
        worker.emit((index, _generate(model, context, logits, position, _QUESTION, max_tokens)))
        context.remove_sequence(_QUESTION)
    context.remove_sequence(_LENGTH)


def _grow(worker: WorkerContext, context: Context, document: list[int]) -> None:
    """Bring the document's sequence to exactly these whole batches."""
    done: int = worker.state.get("document_tokens", 0)
    if done > len(document) or worker.state.get("document_context") is not context:
        context.clear()
        done = 0
    # Should this be interrupted, the cache holds something else than what is written down here.
    worker.state["document_tokens"], worker.state["document_context"] = 0, None
    for start in range(done, len(document), context.n_batch):
        worker.emit(ReadSoFar(start, len(document)))
        context.decode(document[start : start + context.n_batch], start, _DOCUMENT, logits="none")
    worker.state["document_tokens"], worker.state["document_context"] = len(document), context


def _generate(
    model: Model,
    context: Context,
    logits: Logits,
    position: int,
    sequence: int,
    max_tokens: int,
    on_token: Callable[[int], None] = lambda _tokens: None,
) -> Generated:
    """Greedy tokens after `logits`, to the model's end, the cap, or the context's end."""
    text = b""
    prompt_tokens, generated = position, 0
    while True:
        token = int(logits.argmax())
        generated += 1
        on_token(generated)
        if model.is_end(token):
            return Generated(text.decode("utf-8", "replace"), "stop", prompt_tokens, generated)
        text += model.piece(token, special=False)
        if generated == max_tokens:
            return Generated(text.decode("utf-8", "replace"), "length", prompt_tokens, generated)
        if position == context.n_ctx_sequence:
            return Generated(text.decode("utf-8", "replace"), "context", prompt_tokens, generated)
        following = context.decode([token], position, sequence)
        assert following is not None
        logits = following
        position += 1


def _frame(model: Model) -> tuple[str, str]:
    """What the chat template writes before and after a user's message; both empty without a template."""
    if model.chat_template() is None:
        return "", ""
    # Templates that know no such variable ignore it.
    rendered = model.apply_chat_template([{"role": "user", "content": PLACEHOLDER}], enable_thinking=False)
    head, found, tail = rendered.partition(PLACEHOLDER)
    if not found:
        raise RuntimeFailure("the model's chat template drops the user's message")
    return head, tail


def context_settings(numerics: Numerics, context_tokens: int, sequences: int) -> ContextSettings:
    """Of the contexts that are made here."""
    return ContextSettings(
        context_tokens,
        n_batch=numerics.batch,
        n_ubatch=numerics.ubatch,
        flash_attention=numerics.flash_attention,
        type_k=numerics.type_k,
        type_v=numerics.type_v,
        swa_full=numerics.swa_full,
        n_seq_max=sequences,
        kv_unified=True,
    )


def _context(worker: WorkerContext, numerics: Numerics, context_tokens: int, sequences: int) -> Context:
    """The context of this size, made when first asked for; the one before is freed first."""
    wanted: tuple[Any, ...] = (numerics, context_tokens, sequences)
    if worker.state.get("context_of") != wanted:
        old: Context | None = worker.state.pop("context", None)
        worker.state["context_of"] = None
        if old is not None:
            old.close()
        try:
            settings = asdict(context_settings(numerics, context_tokens, sequences))
            worker.state["context"] = Context(worker.state["model"], threads=worker.threads, **settings)
        except UsageError as error:
            raise RuntimeFailure(str(error)) from None
        worker.state["context_of"] = wanted
    context: Context = worker.state["context"]
    return context
