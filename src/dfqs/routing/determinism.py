"""Under which conditions routing stays the same: a matrix of them, and the verdict for the standard load.

What the standard load is, and when the specification's clause holds, was fixed in docs/routing.md before measuring.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from dfqs.errors import RuntimeFailure
from dfqs.model.files import ModelFiles, open_model
from dfqs.processors import default_threads
from dfqs.progress import Progress, no_progress
from dfqs.records import Document, Record
from dfqs.routing import load
from dfqs.routing.capture import REFERENCE, open_model_once, processor_name, read_figures
from dfqs.routing.fitting import fit_requests, fit_text
from dfqs.routing.identity import ModelIdentity, read_identity
from dfqs.routing.numbers import require_choice
from dfqs.routing.prompts import LOAD_TEXTS, packaged_prompt
from dfqs.routing.runs import Agreement, RoutingRun, compare_runs, lowest_share
from dfqs.runtime import Worker
from dfqs.runtime.choice import runtime_and_release
from dfqs.runtime.loading import InMemory, LoadOrder, StreamFigures

LOAD_VERSION = 1
ANSWER_TOKENS = 32
LOAD_CONTEXT_TOKENS = 4096
MATRIX_TOKENS = 256
_SERVER = {**REFERENCE, "n_batch": 2048}
PROFILES: dict[str, tuple[dict[str, Any], int]] = {
    "standard": ({**_SERVER, "flash_attention": "auto"}, 4),
    "deterministic": (_SERVER, 1),
}
"""Settings and slots of the server that the four requests go to."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One change from the reference run."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["steps", "beside", "cached"] = "steps"
    steps: tuple[int, ...] = ()
    """For `steps`: tokens submitted at a time. For `cached`: the prefix."""
    restart: bool = False


def matrix_conditions(tokens: int, threads: int) -> tuple[Condition, ...]:
    """Every condition that is tried, against one thread, one batch, ubatch 512, flash attention off and f16 caches."""
    return (
        Condition("repeat"),
        Condition("process restart", restart=True),
        Condition(f"{threads} threads", {"threads": threads}),
        Condition("ubatch 64", {"n_ubatch": 64}),
        Condition("ubatch 8", {"n_ubatch": 8}),
        Condition("ubatch 7", {"n_ubatch": 7}),
        Condition("token by token", steps=(1,)),
        Condition("split 1/3 + 2/3", steps=(tokens // 3, tokens)),
        Condition("split 2/3 + 1/3", steps=(2 * tokens // 3, tokens)),
        Condition("cached prefix", kind="cached", steps=(tokens // 3,)),
        Condition("beside another", kind="beside"),
        Condition("flash attention on", {"flash_attention": "on"}),
        Condition("flash attention auto", {"flash_attention": "auto"}),
        Condition("K q8_0", {"type_k": "q8_0"}),
        Condition("K, V q8_0 (flash att.)", {"type_k": "q8_0", "type_v": "q8_0", "flash_attention": "on"}),
        Condition("K, V f32", {"type_k": "f32", "type_v": "f32"}),
    )


class FirstDivergence(Record):
    """The earliest token whose experts differ, and its lowest such layer."""

    token: int
    layer: int


class MatrixRow(Record):
    """One condition against the reference run. All null when the runtime refused it, with what it said."""

    condition: str
    refused: str | None = None
    logits_identical: bool | None = None
    same_set_share: float | None = None
    lowest_layer_share: float | None = None
    same_set_share_by_layer: tuple[float | None, ...] = ()
    first_divergence: FirstDivergence | None = None
    argmax_share: float | None = None


class LoadRow(Record):
    """One request of the standard load: together with the others against alone."""

    request: str
    prompt_tokens: int
    compared_tokens: int
    """Tokens up to where the two answers part."""
    same_answer: bool
    logits_identical: bool
    same_set_share: float | None
    """Null: nothing was compared, and nothing compared is not identical."""
    lowest_layer_share: float | None
    first_divergence: FirstDivergence | None
    routing_identical: bool


class LoadCheck(Record):
    """The specification's clause, tried on a load."""

    version: int = LOAD_VERSION
    profile: str
    settings: dict[str, str | int | bool]
    slots: int
    answer_tokens: int
    shortened: bool = False
    """Its requests were cut, as the model's context is too short for them."""
    requests: tuple[LoadRow, ...]
    holds: bool


class RouteCheck(Document):
    """What `dfqs route check` found."""

    schema_: Literal["dfqs.route-check/1"] = Field(default="dfqs.route-check/1", alias="schema")
    earlier_keys = (("format", "schema"),)
    model: ModelIdentity
    runtime: str = Field(default_factory=runtime_and_release)
    processor: str | None
    threads: int
    layers: tuple[int, ...]
    """Of `same_set_share_by_layer`."""
    hash_layers: tuple[int, ...]
    """Their experts follow from the token, so they cannot differ."""
    matrix_tokens: int
    matrix: tuple[MatrixRow, ...]
    load: LoadCheck
    notices: tuple[str, ...] = ()
    """What was done otherwise than asked for, a sentence each."""
    holds: bool
    """The clause: as the load found it."""
    repack: bool | None = None
    """Whether weights were copied into an order that the processor likes better. Null: not told, as earlier."""
    streaming: StreamFigures | None = None
    """Of a model that is larger than its memory."""

    @model_validator(mode="before")
    @classmethod
    def _take_from_load(cls, value: Any) -> Any:
        """Earlier documents say it in `load` alone."""
        if isinstance(value, dict) and "holds" not in value and isinstance(load := value.get("load"), dict):
            return {**value, "holds": load.get("holds")}
        return value


_TEXTS = ("first", "second", *LOAD_TEXTS)


def check_routing(
    model: Path | ModelFiles,
    *,
    profile: str = "standard",
    threads: int | None = None,
    tokens: int = MATRIX_TOKENS,
    matrix: bool = True,
    order: LoadOrder | None = None,
    progress: Progress = no_progress,
) -> RouteCheck:
    """Try the matrix of conditions and the standard load on a model.

    Args:
        profile: a key of `PROFILES`.
        tokens: of the text that the matrix runs on.
        matrix: leave it out when false; the verdict needs only the load.
        order: how the model's weights come into memory; see `dfqs.streaming.budget.choose_load`.
        progress: called with conditions and requests.

    Raises:
        UsageError: the model is dense, or its router has nothing to decide.
        RuntimeFailure: llama.cpp failed under the reference conditions, or computes what is no numbers.
        WorkerCrash: it died.
    """
    opened = open_model(model)
    path = opened.path
    identity, hash_layers = read_identity(opened)
    require_choice(identity, hash_layers)
    loading, threads = order or InMemory(), threads or default_threads()
    with Worker(threads=threads) as worker:
        worker.call(open_model_once, str(path), loading)
        tokenized = worker.call(load.tokenize, str(path), [packaged_prompt(name) for name in _TEXTS])
        trained = worker.call(load.trained_context, str(path))
        text, other, shorter = fit_text(tokenized[0], tokenized[1], tokens, trained) if matrix else ([], [], None)
        conditions = matrix_conditions(len(text), threads) if matrix else ()
        room = min(LOAD_CONTEXT_TOKENS, trained)
        requests, cut = fit_requests(tokenized[2:], ANSWER_TOKENS, room)
        steps = len(conditions) + 1 + 2 * len(LOAD_TEXTS)
        verdict, layers = _check_load(worker, path, profile, requests, room, progress, steps)
        require_choice(identity, hash_layers, layers)
        reference, rows = _run_matrix(worker, path, text, other, conditions, progress, steps)
        figures = worker.call(read_figures, str(path))
    if reference is not None:
        restarted = (condition for condition in conditions if condition.restart)
        rows += [_try_anew(threads, path, loading, text, other, condition, reference) for condition in restarted]
    return RouteCheck(
        model=identity,
        processor=processor_name(),
        threads=threads,
        layers=layers,
        hash_layers=tuple(layer for layer in hash_layers if layer in layers),
        matrix_tokens=len(reference.tokens) if reference is not None else 0,
        matrix=tuple(rows),
        load=verdict.model_copy(update={"shortened": cut is not None}),
        notices=tuple(notice for notice in (cut, shorter) if notice is not None),
        holds=verdict.holds,
        repack=loading.repack,
        streaming=figures,
    )


def run_condition(
    worker: Worker,
    path: Path,
    tokens: Sequence[int],
    other: Sequence[int],
    condition: Condition,
    *,
    threads: int = 1,
    scores: bool = False,
) -> RoutingRun:
    """A sequence under the reference settings but for one condition.

    Args:
        other: the sequence that stands beside it, where the condition wants one.
    """
    settings = {**REFERENCE, "threads": threads, **condition.settings}
    sequence = list(tokens)
    if condition.kind == "beside":
        return worker.call(load.run_beside, str(path), sequence, [list(other)], settings, scores)
    if condition.kind == "cached":
        return worker.call(load.run_cached, str(path), sequence, condition.steps[0], settings, scores)
    return worker.call(load.run_steps, str(path), sequence, settings, condition.steps, scores)


def _try_anew(
    threads: int,
    path: Path,
    order: LoadOrder,
    tokens: Sequence[int],
    other: Sequence[int],
    condition: Condition,
    reference: RoutingRun,
) -> MatrixRow:
    """In a process of its own."""
    with Worker(threads=threads) as worker:
        worker.call(open_model_once, str(path), order)
        return _try_condition(worker, path, tokens, other, condition, reference)


def _run_matrix(
    worker: Worker,
    path: Path,
    tokens: Sequence[int],
    other: Sequence[int],
    conditions: Sequence[Condition],
    progress: Progress,
    steps: int,
) -> tuple[RoutingRun | None, list[MatrixRow]]:
    """The reference and every condition that one worker can try."""
    if not conditions:
        return None, []
    rows: list[MatrixRow] = []
    reference = run_condition(worker, path, tokens, other, Condition("reference"))
    for condition in (each for each in conditions if not each.restart):
        rows.append(_try_condition(worker, path, tokens, other, condition, reference))
        progress(2 * len(LOAD_TEXTS) + len(rows), steps, condition.name)
    return reference, rows


def _try_condition(
    worker: Worker,
    path: Path,
    tokens: Sequence[int],
    other: Sequence[int],
    condition: Condition,
    reference: RoutingRun,
) -> MatrixRow:
    try:
        agreement = compare_runs(reference, run_condition(worker, path, tokens, other, condition))
    except RuntimeFailure as error:
        return MatrixRow(condition=condition.name, refused=str(error))
    return MatrixRow(
        condition=condition.name,
        logits_identical=agreement.logits_identical,
        same_set_share=agreement.same_set_share,
        lowest_layer_share=lowest_share(agreement.same_set_share_by_layer),
        same_set_share_by_layer=agreement.same_set_share_by_layer,
        first_divergence=_place(agreement),
        argmax_share=agreement.argmax_share,
    )


def _check_load(
    worker: Worker,
    path: Path,
    profile: str,
    requests: Sequence[list[int]],
    context_tokens: int,
    progress: Progress,
    steps: int,
) -> tuple[LoadCheck, tuple[int, ...]]:
    settings, slots = PROFILES[profile]

    def run(group: Sequence[list[int]]) -> list[RoutingRun]:
        return worker.call(load.run_load, str(path), group, ANSWER_TOKENS, settings, context_tokens, slots)

    together = run(requests)
    progress(len(requests), steps, "four requests at once")
    rows = []
    for number, request in enumerate(requests):
        alone = run([request])[0]
        agreement = compare_runs(alone, together[number])
        rows.append(
            LoadRow(
                request=LOAD_TEXTS[number],
                prompt_tokens=len(request),
                compared_tokens=agreement.tokens,
                # The last token of an answer is never decoded; the logits that it comes from are compared instead.
                same_answer=agreement.same_tokens and alone.argmax[-1] == together[number].argmax[-1],
                logits_identical=bool(agreement.logits_identical) and agreement.same_tokens,
                same_set_share=agreement.same_set_share,
                lowest_layer_share=lowest_share(agreement.same_set_share_by_layer),
                first_divergence=_place(agreement),
                routing_identical=agreement.routing_identical,
            )
        )
        progress(len(requests) + number + 1, steps, "each alone")
    check = LoadCheck(
        profile=profile,
        settings={**settings, "context_tokens": context_tokens, "kv_unified": True},
        slots=slots,
        answer_tokens=ANSWER_TOKENS,
        requests=tuple(rows),
        holds=bool(rows) and all(row.routing_identical and row.same_answer for row in rows),
    )
    return check, together[0].layers


def _place(agreement: Agreement) -> FirstDivergence | None:
    first = agreement.first_divergence
    return FirstDivergence(token=first.token, layer=first.layer) if first else None
