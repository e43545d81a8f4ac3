"""Routing under token pressure: the same text routed behind a document that grows.

At each length of one seeded document the same probe is decoded on a branch of the shared prefix, so that the probe's
tokens never change and only the context before them does. It is done twice, under reference settings and under others,
and compared token by token: does routing vary more between settings when the context is long? Beside that: how far the
probe's routing drifts from that behind the shortest document, and the entropy of the router.
"""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dfqs.errors import UsageError
from dfqs.model.files import ModelFiles, open_model
from dfqs.progress import Progress, no_progress
from dfqs.records import Document, Record
from dfqs.routing.capture import REFERENCE, load_model, open_model_once, processor_name
from dfqs.routing.coherence import jaccard, router_distribution
from dfqs.routing.identity import ModelIdentity, read_identity
from dfqs.routing.load import decode_runs
from dfqs.routing.numbers import require_choice
from dfqs.routing.prompts import LOAD_TEXTS, Prompt, packaged_prompt
from dfqs.routing.runs import RoutingRun, same_sets
from dfqs.routing.stats import entropy_bits, one_hot
from dfqs.routing.tap import BatchToken, RouterTap
from dfqs.runtime import Worker
from dfqs.runtime.choice import runtime_and_release
from dfqs.runtime.context import Context
from dfqs.runtime.loading import InMemory, LoadOrder
from dfqs.runtime.worker_context import WorkerContext

PROBE_TEXT = "load-3"
PERTURBED: dict[str, Any] = {"type_k": "q8_0", "type_v": "q8_0", "flash_attention": "on"}
DOCUMENT_SEED = 20260519
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]")


class PressurePoint(Record):
    """The probe behind one length of document, over the layers that are not hash-routed."""

    context_tokens: int
    """Of the document, before the probe."""
    decisions: int
    same_set_share: float
    """Between the two settings."""
    jaccard: float
    drift_same_set_share: float
    """Under reference settings, against the probe behind the shortest document."""
    router_bits: float
    """Entropy of the scores that the choice is made by, as a distribution; mean over tokens and layers."""
    load_bits: float
    """Entropy of the probe's load, mean over layers."""


class PressureReport(Document):
    """What `dfqs route pressure` found."""

    schema_: Literal["dfqs.route-pressure/1"] = Field(default="dfqs.route-pressure/1", alias="schema")
    earlier_keys = (("format", "schema"),)
    model: ModelIdentity
    runtime: str = Field(default_factory=runtime_and_release)
    processor: str | None
    settings: dict[str, str | int | bool]
    perturbed: dict[str, str | int | bool]
    """What differs in the other run."""
    probe_tokens: int
    points: tuple[PressurePoint, ...]


def measure_pressure(
    model: Path | ModelFiles,
    lengths: Sequence[int],
    *,
    perturbed: Mapping[str, Any] | None = None,
    threads: int | None = None,
    order: LoadOrder | None = None,
    progress: Progress = no_progress,
) -> PressureReport:
    """Route the probe behind each length of the document, under reference and other settings.

    Args:
        lengths: of the document in tokens, ascending.
        perturbed: settings of the other run that differ from the reference.
        order: how the model's weights come into memory; see `dfqs.streaming.budget.choose_load`.
        progress: called with tokens of document.

    Raises:
        UsageError: the model is dense, its router has nothing to decide, the lengths do not ascend, or it was not
            trained for so long a context.
    """
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
        raise UsageError("lengths must ascend, and be at least 1")
    opened = open_model(model)
    identity, hash_layers = read_identity(opened)
    require_choice(identity, hash_layers)
    change = dict(PERTURBED if perturbed is None else perturbed)
    prompts = [Prompt("document", growing_document(lengths[-1])), packaged_prompt(PROBE_TEXT)]
    runs = []
    with Worker(threads=threads) as worker:
        worker.call(open_model_once, str(opened.path), order or InMemory())
        for number, settings in enumerate((REFERENCE, {**REFERENCE, **change})):
            base = number * lengths[-1]

            def on_event(done: int, base: int = base) -> None:
                progress(base + done, 2 * lengths[-1])

            runs.append(
                worker.reporting(on_event).call(
                    run_probes, str(opened.path), prompts[0], prompts[1], list(lengths), settings
                )
            )
    require_choice(identity, hash_layers, runs[0][0].layers)
    points = tuple(
        _compare(length, a, b, runs[0][0], hash_layers, identity.experts)
        for length, a, b in zip(lengths, *runs, strict=True)
    )
    return PressureReport(
        model=identity,
        processor=processor_name(),
        settings=REFERENCE,
        perturbed=change,
        probe_tokens=len(runs[0][0].tokens),
        points=points,
    )


def run_probes(
    worker: WorkerContext,
    path: str,
    document: Prompt,
    probe: Prompt,
    lengths: Sequence[int],
    settings: dict[str, Any],
) -> list[RoutingRun]:
    """In the worker: the probe behind each length of the document, on a branch of it. Emits tokens done."""
    model, tap = load_model(worker, path), RouterTap(scores=True)
    tokens = document.tokenize(model)
    question = model.tokenize(probe.text, add_special=False)
    if not question:
        raise UsageError("the probe has no tokens for this model: there would be nothing to compare")
    cells = lengths[-1] + len(question)
    if cells > model.trained_context_tokens:
        raise UsageError(
            f"{lengths[-1]:,} tokens and a probe of {len(question)} are more than the {model.trained_context_tokens:,} "
            "that this model was trained for"
        )
    if len(tokens) < lengths[-1]:
        raise UsageError(f"the document has {len(tokens):,} tokens for this model, not {lengths[-1]:,}")
    probes, done = [], 0
    with Context(model, cells, **settings, n_seq_max=2, kv_unified=True, eval_callback=tap.callback) as context:
        for length in lengths:
            while done < length:
                step = min(length - done, context.n_batch)
                batch = [BatchToken(tokens[done + i], done + i, 0, i == step - 1) for i in range(step)]
                decode_runs(context, batch, tap)
                done += step
                worker.emit(done)
            context.copy_sequence(0, 1)
            probes.append(decode_runs(context, [BatchToken(t, length + i, 1) for i, t in enumerate(question)], tap)[1])
            context.remove_sequence(1)
    return probes


def growing_document(tokens: int) -> str:
    """A text of at least so many tokens for any vocabulary: the packaged texts' sentences in seeded order, numbered."""
    texts = [packaged_prompt(name).text for name in ("first", "second", *LOAD_TEXTS) if name != PROBE_TEXT]
    sentences = [match.strip() for text in texts for match in _SENTENCE.findall(text)]
    chooser = random.Random(DOCUMENT_SEED)
    lines: list[str] = []
    words = 0
    # A token is at most a word here (a tokenizer of whole words would make as many), so words are a safe measure.
    while words < tokens:
        line = f"Entry {len(lines) + 1}. {chooser.choice(sentences)}"
        lines.append(line)
        words += len(line.split())
    return "\n".join(lines)


def _compare(
    length: int, a: RoutingRun, b: RoutingRun, shortest: RoutingRun, hash_layers: Sequence[int], experts: int
) -> PressurePoint:
    learned = [row for row, layer in enumerate(a.layers) if layer not in hash_layers]
    ids, other = a.ids[learned], b.ids[learned]
    assert a.scores is not None
    p = router_distribution(a.scores[learned])
    bits = -(p * np.log2(np.maximum(p, np.finfo(np.float32).tiny))).sum(-1)
    loads = one_hot(ids, experts).sum(1, dtype=np.int64)
    return PressurePoint(
        context_tokens=length,
        decisions=int(np.prod(ids.shape[:2])),
        same_set_share=float(same_sets(ids, other).mean()),
        jaccard=float(jaccard(ids, other).mean()),
        drift_same_set_share=float(same_sets(ids, shortest.ids[learned]).mean()),
        router_bits=float(bits.mean()),
        load_bits=float(np.mean([entropy_bits(load) for load in loads])),
    )
