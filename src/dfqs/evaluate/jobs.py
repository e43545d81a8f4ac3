"""What an evaluation asks of a worker. Every function here runs in the worker process.

Greedy decoding with one fixed set of numerics, and every prompt in the same batches, what all prompts begin with in one
of its own: an answer depends on the prompt alone, not on what was asked before it, so that a resumed evaluation equals
an uninterrupted one.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from dfqs.errors import NonFiniteLogits, RuntimeFailure, UsageError
from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.documents import (
    DOCUMENT_SEQUENCES,
    AnswerScores,
    DocumentJob,
    TokenWork,
    answer_scores,
    document_reader,
)
from dfqs.evaluate.thoughts import Cap, closing_mark, said_piece
from dfqs.evaluate.tool_offers import Tool, takes_tools, template_field
from dfqs.quantize.noise_floor import FLOOR_PASSES, NoiseFloor, measure_floor, tokens_for_floor
from dfqs.runtime.context import Context, Logits, Model
from dfqs.runtime.loading import LoadedModel, LoadOrder, StreamFigures
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.scoring import MINIMUM_WIDTH, common_length
from dfqs.runtime.template import observe_thinking
from dfqs.runtime.worker_context import WorkerContext

PLACEHOLDER = "DFQS-PLACE-OF-THE-TEXT"
_HEAD, _PROMPT, _ANSWER = 0, 1, 2
"""Sequences: what all prompts begin with, one prompt, one given answer to it."""
PROMPT_SEQUENCES = 3
ANSWER_MARK = "Answer:"
"""What the reasoning sets ask for before an answer; given answers are scored behind it."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """What the model told when it was loaded."""

    trained_context_tokens: int
    template_sha256: str | None
    thinking: str | None
    """As the end of a rendered prompt shows it: `off` (a thought was closed for the model), `on` (one was opened
    because it was asked for), `always` (one is opened although it was asked not to be); None: nothing is shown."""
    takes_tools: bool = False
    """Whether the template writes tools that it is given."""
    given_template: str | None = None
    """Name of the file that the template is from; None: it is the model's own."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How the model is asked to think."""

    tokens: int | None
    """At most; None: it is asked not to think, and what it thinks all the same counts as its answer's tokens."""
    begun: bool
    """The prompt opens a thought."""

    @property
    def asked(self) -> bool:
        return self.tokens is not None


@dataclass(frozen=True, slots=True)
class GivenTokens:
    """A message with answers to be scored, as one model's template and tokenizer write them."""

    text: str
    """Rendered, up to where an answer begins."""
    head: tuple[int, ...]
    """Tokens that every message begins with; empty without a template."""
    asked: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class GivenAnswers:
    """Answers that were scored by likelihood. Without `scores`, `finish_reason` and `failure` say why."""

    prompt_tokens: int
    scores: AnswerScores | None
    finish_reason: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Generated:
    """One greedy answer. `failure` says why there is none."""

    text: str
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    failure: str | None = None


def open_model(worker: WorkerContext, path: Path, order: LoadOrder, thinking_tokens: int | None = None) -> OpenedModel:
    """Load the model for the calls that follow. Emits `(done, total)` while loading.

    Args:
        thinking_tokens: the model is asked to think, with so many tokens at most; None: it is asked not to.
    """
    loaded = order.load(worker.library, path, lambda done, total=None, note="": worker.emit((done, total)))
    # What streams it must live as long as the model does.
    worker.state["loaded"] = loaded
    worker.state["model"] = model = loaded.model
    template = model.chat_template()
    thinking = _observe(model, thinking_tokens is not None)
    worker.state["thinking"] = Thinking(thinking_tokens, thinking in ("on", "always"))
    return OpenedModel(
        model.trained_context_tokens,
        hashlib.sha256(template.encode()).hexdigest() if template else None,
        thinking,
        takes_tools(model),
        model.given_template.name if model.given_template is not None else None,
    )


def read_figures(worker: WorkerContext) -> StreamFigures | None:
    """What streaming did since the model was loaded; None where it is in memory."""
    loaded: LoadedModel = worker.state["loaded"]
    return loaded.read_figures()


def _observe(model: Model, asked: bool) -> str | None:
    """What rendered prompts show of thinking; see `OpenedModel.thinking`."""
    quiet = observe_thinking(_frame(model, False)[1])
    if quiet == "open":
        return "always"
    shown = observe_thinking(_frame(model, True)[1]) if asked else quiet
    return {"open": "on", "closed": "off", None: None}[shown]


def complete(
    worker: WorkerContext,
    prompt: str,
    max_tokens: int,
    numerics: Numerics,
    context_tokens: int,
    tools: Sequence[Tool] = (),
) -> Generated:
    """Answer one user message; plain continuation where the model has no chat template. Emits the tokens so far.

    Args:
        tools: offered in the template's own field; only where it has one.
    """
    model: Model = worker.state["model"]
    head, tail = _frame(model, _thinking(worker).asked, tools)
    tokens = model.tokenize_chat(head + prompt + tail) if tail else model.tokenize(prompt + "\n")
    context = _context(worker, context_settings(numerics, context_tokens, PROMPT_SEQUENCES))
    if len(tokens) >= context.n_ctx_sequence:
        return Generated("", "context", len(tokens), 0, f"the prompt alone has {len(tokens):,} tokens")
    shared = _read_head(worker, context, model.tokenize_chat(head) if tail else [], tokens)
    try:
        logits = context.decode(tokens[shared:], shared, _PROMPT)
        assert logits is not None
        return _generate(model, context, logits, len(tokens), _PROMPT, max_tokens, _thinking(worker), worker.emit)
    except NonFiniteLogits as error:
        return Generated("", "error", len(tokens), 0, str(error))


def render_answers(worker: WorkerContext, prompt: str, answers: Sequence[str]) -> GivenTokens:
    """A user's message with given answers as tokens, behind the mark that the message asks for. A thought that the
    template opens is ended first: nobody answers inside of it."""
    model: Model = worker.state["model"]
    thinking = _thinking(worker)
    head, tail = _frame(model, thinking.asked)
    encode = model.tokenize_chat if tail else model.tokenize
    asked = f"{head}{prompt}{tail or chr(10)}{closing_mark(tail) if thinking.begun else ''}{ANSWER_MARK}"
    before, whole = encode(asked), [encode(f"{asked} {answer}") for answer in answers]
    # An answer's first letters can change the token before them.
    shared = min(min(common_length(before, each), len(each) - 1) for each in whole)
    return GivenTokens(
        asked,
        tuple(model.tokenize_chat(head) if tail else ()),
        tuple(before[:shared]),
        tuple(tuple(each[shared:]) for each in whole),
    )


def score_given(worker: WorkerContext, given: GivenTokens, numerics: Numerics, context_tokens: int) -> GivenAnswers:
    """How likely each given answer is: branches of one prefill."""
    asked = given.asked
    context = _context(worker, context_settings(numerics, context_tokens, PROMPT_SEQUENCES))
    if len(asked) + max(map(len, given.answers)) + MINIMUM_WIDTH > context.n_ctx_sequence:
        return GivenAnswers(len(asked), None, "context", f"the prompt alone has {len(asked):,} tokens")
    try:
        done = _read_head(worker, context, list(given.head), list(asked))
        logits = context.decode(asked[done:], done, _PROMPT)
        assert logits is not None
        scores = answer_scores(context, _PROMPT, _ANSWER, len(asked), logits, given.answers)
    except NonFiniteLogits as error:
        return GivenAnswers(len(asked), None, "error", str(error))
    return GivenAnswers(len(asked), scores)


def score_answers(
    worker: WorkerContext, prompt: str, answers: Sequence[str], numerics: Numerics, context_tokens: int
) -> GivenAnswers:
    """How likely each given answer is after a user's message."""
    return score_given(worker, render_answers(worker, prompt, answers), numerics, context_tokens)


def read_pieces(worker: WorkerContext, tokens: Sequence[int]) -> list[bytes | None]:
    """What each token stands for; None where the vocabulary has no such token."""
    model: Model = worker.state["model"]
    return [model.piece(token) if 0 <= token < model.vocab_size else None for token in tokens]


def hold_against_itself(worker: WorkerContext, tokens: int) -> NoiseFloor:
    """How far the model is from itself under other numerics, on held-out text. Emits the tokens so far, and all.

    Raises:
        NonFiniteLogits, RuntimeFailure: the model computes no numbers.
    """
    model: Model = worker.state["model"]
    _free_context(worker)
    held = tokens_for_floor(model, None, tokens)
    done = count(1)
    total = max(0, len(held[0]) - 1) * FLOOR_PASSES
    return measure_floor(model, *held, threads=worker.threads, on_token=lambda: worker.emit((next(done), total)))


def _read_head(worker: WorkerContext, context: Context, head: list[int], tokens: list[int]) -> int:
    """Put what every prompt begins with into the prompt's sequence; returns how many tokens it has.

    It is computed once, by itself: a prompt's computation is the same whatever was asked before it. None where it is
    too short to be worth a batch, or where the prompt's first word changes its tokens.
    """
    if len(head) < MINIMUM_WIDTH or tokens[: len(head)] != head or len(tokens) < len(head) + MINIMUM_WIDTH:
        context.clear()
        worker.state["head_of"] = None
        return 0
    if worker.state.get("head_of") != (context, head):
        context.clear()
        context.decode(head, 0, _HEAD, logits="none")
        worker.state["head_of"] = (context, head)
    context.remove_sequence(_PROMPT)
    context.copy_sequence(_HEAD, _PROMPT)
    return len(head)


def count_tokens(worker: WorkerContext, texts: Sequence[str]) -> list[int]:
    """Tokens of each text by itself, nothing added."""
    model: Model = worker.state["model"]
    return [len(model.tokenize(text, add_special=False, parse_special=False)) for text in texts]


def frame_tokens(worker: WorkerContext) -> tuple[int, int]:
    """Tokens that the chat template puts before a message, and around it."""
    model: Model = worker.state["model"]
    head, tail = _frame(model, _thinking(worker).asked)
    before = len(model.tokenize_chat(head) if tail else model.tokenize(""))
    return before, before + (len(model.tokenize(tail, add_special=False)) if tail else 4)


def open_context(worker: WorkerContext, numerics: Numerics, context_tokens: int) -> None:
    """Make the context that documents are read in.

    Raises:
        RuntimeFailure: there is no memory for it.
    """
    _context(worker, document_settings(numerics, context_tokens))


def ask_document(worker: WorkerContext, job: DocumentJob, numerics: Numerics, context_tokens: int) -> TokenWork:
    """Ask about a document; emits what `DocumentReader.ask` emits, written answers as `Generated`.

    Raises:
        RuntimeFailure: the context cannot be made, or its numbers are not finite.
    """
    model: Model = worker.state["model"]
    context = _context(worker, document_settings(numerics, context_tokens))

    def write(logits: Any, position: int, sequence: int, max_tokens: int) -> Generated:
        return _generate(model, context, logits, position, sequence, max_tokens, _thinking(worker))

    return document_reader(worker, model, context, _frame(model, _thinking(worker).asked)).ask(job, write, worker.emit)


def _generate(
    model: Model,
    context: Context,
    logits: Logits,
    position: int,
    sequence: int,
    max_tokens: int,
    thinking: Thinking,
    on_token: Callable[[int], None] = lambda _tokens: None,
) -> Generated:
    """Greedy tokens after `logits`, to the model's end, the cap, or the context's end."""
    text = b""
    cap = Cap(max_tokens, thinking.tokens, thinking.begun)
    prompt_tokens, generated = position, 0
    while True:
        token = int(logits.argmax())
        generated += 1
        on_token(generated)
        if model.is_end(token):
            return Generated(text.decode("utf-8", "replace"), "stop", prompt_tokens, generated)
        text += said_piece(model, token)
        if cap.reached(text.decode("utf-8", "replace")):
            return Generated(text.decode("utf-8", "replace"), "length", prompt_tokens, generated)
        if position == context.n_ctx_sequence:
            return Generated(text.decode("utf-8", "replace"), "context", prompt_tokens, generated)
        following = context.decode([token], position, sequence)
        assert following is not None
        logits = following
        position += 1


def _thinking(worker: WorkerContext) -> Thinking:
    thinking: Thinking = worker.state["thinking"]
    return thinking


def _frame(model: Model, asked: bool, tools: Sequence[Tool] = ()) -> tuple[str, str]:
    """What the chat template writes before and after a user's message; both empty without a template.

    Args:
        asked: whether the model is asked to think.
    """
    if model.chat_template() is None:
        return "", ""
    # Templates that know no such variable ignore it.
    variables: dict[str, Any] = {"tools": template_field(tools)} if tools else {}
    message = {"role": "user", "content": PLACEHOLDER}
    rendered = model.apply_chat_template([message], enable_thinking=asked, **variables)
    head, found, tail = rendered.partition(PLACEHOLDER)
    if not found:
        raise RuntimeFailure("the model's chat template drops the user's message")
    return head, tail


def document_settings(numerics: Numerics, context_tokens: int) -> ContextSettings:
    """Of the context that documents are read in."""
    settings = context_settings(numerics, context_tokens, DOCUMENT_SEQUENCES)
    return replace(settings, n_ubatch=numerics.document_ubatch or numerics.ubatch)


def context_settings(numerics: Numerics, context_tokens: int, sequences: int) -> ContextSettings:
    """Of the contexts that are made here, but for documents."""
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


def _context(worker: WorkerContext, wanted: ContextSettings) -> Context:
    """The context with these settings, made when first asked for; the one before is freed first."""
    if worker.state.get("context_of") != wanted:
        _free_context(worker)
        try:
            worker.state["context"] = Context(worker.state["model"], threads=worker.threads, **asdict(wanted))
        except UsageError as error:
            raise RuntimeFailure(str(error)) from None
        worker.state["context_of"] = wanted
    context: Context = worker.state["context"]
    return context


def _free_context(worker: WorkerContext) -> None:
    old: Context | None = worker.state.pop("context", None)
    worker.state["context_of"] = worker.state["head_of"] = None
    if old is not None:
        old.close()
