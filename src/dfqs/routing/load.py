"""Running sequences under a condition, in a worker process: plain, in steps, beside others, or as a server would.

`run_load` puts batches together as llama-server b11549 does (`server-context.cpp`, `pre_decode`): the newest token of
every slot that generates, then prompt tokens in slot order until the batch is full.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dfqs.errors import UsageError
from dfqs.routing.capture import load_model
from dfqs.routing.prompts import Prompt
from dfqs.routing.runs import LOGITS_HASH_BYTES, RoutingRun, join_runs
from dfqs.routing.tap import BatchToken, RouterTap, decode_batch
from dfqs.runtime.context import Context, Model
from dfqs.runtime.worker_context import WorkerContext

CHECKPOINT_TOKENS = 4
"""The server ends a batch this many tokens (and that many and a ubatch) before the end of a prompt, to keep a
checkpoint there, for caches that cannot be rolled back."""


def tokenize(worker: WorkerContext, path: str, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Tokens of each prompt."""
    model = load_model(worker, path)
    return [prompt.tokenize(model) for prompt in prompts]


def trained_context(worker: WorkerContext, path: str) -> int:
    """Tokens of context that the model was trained for."""
    return load_model(worker, path).trained_context_tokens


def run_steps(
    worker: WorkerContext,
    path: str,
    tokens: Sequence[int],
    settings: dict[str, Any],
    steps: Sequence[int] = (),
    scores: bool = False,
) -> RoutingRun:
    """A sequence decoded in steps of the given lengths (the last one repeats); in one step when there are none."""
    model, tap = load_model(worker, path), RouterTap(scores=scores)
    lengths, start = list(steps) or [len(tokens)], 0
    parts: list[RoutingRun] = []
    with Context(model, len(tokens), **settings, eval_callback=tap.callback) as context:
        while start < len(tokens):
            length = min(lengths.pop(0) if len(lengths) > 1 else lengths[0], context.n_batch)
            batch = [BatchToken(token, start + i) for i, token in enumerate(tokens[start : start + length])]
            parts += decode_runs(context, batch, tap).values()
            start += length
    return join_runs(parts)


def run_beside(
    worker: WorkerContext,
    path: str,
    tokens: Sequence[int],
    others: Sequence[Sequence[int]],
    settings: dict[str, Any],
    scores: bool = False,
) -> RoutingRun:
    """A sequence in one batch with others, which stand before it."""
    model, tap = load_model(worker, path), RouterTap(scores=scores)
    batch = [BatchToken(token, i, s + 1) for s, other in enumerate(others) for i, token in enumerate(other)]
    batch += [BatchToken(token, i, 0) for i, token in enumerate(tokens)]
    wanted = {**settings, "n_batch": max(settings["n_batch"], len(batch)), "n_seq_max": len(others) + 1}
    with Context(model, len(batch), **wanted, kv_unified=True, eval_callback=tap.callback) as context:
        return decode_runs(context, batch, tap)[0]


def run_cached(
    worker: WorkerContext,
    path: str,
    tokens: Sequence[int],
    prefix: int,
    settings: dict[str, Any],
    scores: bool = False,
) -> RoutingRun:
    """A sequence whose first `prefix` tokens were in the cache already, since before another question on them."""
    model, tap = load_model(worker, path), RouterTap(scores=scores)
    question = list(tokens[prefix:][::-1])
    cells = len(tokens) + len(question)
    with Context(model, cells, **settings, n_seq_max=2, kv_unified=True, eval_callback=tap.callback) as context:
        first = decode_runs(context, [BatchToken(token, i) for i, token in enumerate(tokens[:prefix])], tap)[0]
        # A branch for the question that came before, dropped again: caches that cannot be rolled back allow that too.
        context.copy_sequence(0, 1)
        decode_runs(context, [BatchToken(token, prefix + i, 1) for i, token in enumerate(question)], tap)
        context.remove_sequence(1)
        rest = decode_runs(context, [BatchToken(token, prefix + i) for i, token in enumerate(tokens[prefix:])], tap)[0]
    return join_runs([first, rest])


@dataclass(slots=True)
class _Slot:
    """A server's slot with the request it answers."""

    number: int
    request: int
    prompt: Sequence[int]
    fed: int = 0
    """Tokens decoded or in the batch under way."""
    answer: list[int] = field(default_factory=list)
    parts: list[RoutingRun] = field(default_factory=list)

    @property
    def generating(self) -> bool:
        return self.fed >= len(self.prompt)


def run_load(
    worker: WorkerContext,
    path: str,
    requests: Sequence[Sequence[int]],
    answer_tokens: int,
    settings: dict[str, Any],
    context_tokens: int,
    slots: int,
) -> list[RoutingRun]:
    """Requests, all waiting from the start, answered greedily by a server of so many slots.

    Returns:
        One run for each request: its prompt and its answer but for the answer's last token, which is never decoded.
    """
    model, tap = load_model(worker, path), RouterTap()
    if any(not request for request in requests):
        raise UsageError("a request without tokens")
    waiting = list(enumerate(requests))
    busy: list[_Slot] = []
    done: dict[int, RoutingRun] = {}
    wanted = {**settings, "n_seq_max": slots, "kv_unified": True}
    with Context(model, context_tokens, **wanted, eval_callback=tap.callback) as context:
        breaks = _prompt_breaks(model, context, settings)
        while waiting or busy:
            for number in sorted(set(range(slots)) - {slot.number for slot in busy}):
                if waiting:
                    busy.append(_Slot(number, *waiting.pop(0)))
            busy.sort(key=lambda slot: slot.number)
            batch = next_batch(busy, context.n_batch, breaks)
            routed = decode_runs(context, batch, tap)
            for slot in list(busy):
                if slot.number not in routed:
                    continue
                run = routed[slot.number]
                slot.parts.append(run)
                if slot.generating:
                    slot.answer.append(int(run.argmax[-1]))
                if len(slot.answer) == answer_tokens:
                    done[slot.request] = join_runs(slot.parts)
                    busy.remove(slot)
                    if slots == 1:
                        context.clear()
                    else:
                        context.remove_sequence(slot.number)
    return [done[request] for request in range(len(requests))]


def next_batch(busy: Sequence[_Slot], batch_tokens: int, breaks: Sequence[int]) -> list[BatchToken]:
    """The batch that the server would put together now; marks its tokens as fed."""
    batch = []
    for slot in [slot for slot in busy if slot.generating]:
        batch.append(BatchToken(slot.answer[-1], slot.fed, slot.number))
        slot.fed += 1
    for slot in [slot for slot in busy if not slot.generating]:
        while not slot.generating and len(batch) < batch_tokens:
            is_last = slot.fed + 1 == len(slot.prompt)
            batch.append(BatchToken(slot.prompt[slot.fed], slot.fed, slot.number, is_last))
            slot.fed += 1
            if len(slot.prompt) - slot.fed in breaks:
                break
    return batch


def _prompt_breaks(model: Model, context: Context, settings: dict[str, Any]) -> tuple[int, ...]:
    library, handle = model.library, model.handle
    windowed = library.llama_model_n_swa(handle) > 0 and not settings.get("swa_full")
    if not (windowed or library.llama_model_is_recurrent(handle) or library.llama_model_is_hybrid(handle)):
        return ()
    return tuple(min(context.n_batch, n) for n in (CHECKPOINT_TOKENS + settings["n_ubatch"], CHECKPOINT_TOKENS))


def decode_runs(context: Context, batch: Sequence[BatchToken], tap: RouterTap) -> dict[int, RoutingRun]:
    """Decode one batch; each sequence's part of it."""
    logits = decode_batch(context, batch, tap)
    routing = tap.take_batch(batch)
    known = (routing.unmasked, routing.selection, routing.probabilities)
    scores = next((kind for kind in known if kind is not None), None)
    hashes = np.zeros((len(batch), LOGITS_HASH_BYTES), np.uint8)
    argmax = np.full(len(batch), -1, np.int32)
    for row, place in enumerate(place for place, entry in enumerate(batch) if entry.wants_logits):
        digest = hashlib.blake2b(logits[row].tobytes(), digest_size=LOGITS_HASH_BYTES).digest()
        hashes[place], argmax[place] = np.frombuffer(digest, np.uint8), logits[row].argmax()
    tokens = np.array([entry.token for entry in batch], np.int32)
    sequences = np.array([entry.sequence for entry in batch])
    return {
        int(sequence): RoutingRun(
            routing.layers,
            tokens[mine],
            routing.ids[:, mine],
            hashes[mine],
            argmax[mine],
            None if scores is None else scores[:, mine],
        )
        for sequence in np.unique(sequences)
        for mine in (np.flatnonzero(sequences == sequence),)
    }
