"""What the session tests do inside a worker; they return plain data, and the tests judge it."""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqs.runtime.context import Buffer, Context, EvalCallback, Model, TensorView
from dfqs.runtime.conversation import Conversation
from dfqs.runtime.requests import Answer, Prompt, Sampling
from dfqs.runtime.sampling import Sampler
from dfqs.runtime.worker_context import WorkerContext

Array = NDArray[Any]
REFERENCE: dict[str, Any] = {"n_ctx": 512, "flash_attention": "off", "threads": 1}


class WatchingFailed(Exception):
    pass


def model_of(worker: WorkerContext, path: Path) -> Model:
    """Loaded once for all tests of a module."""
    key = f"model:{path}"
    if key not in worker.state:
        worker.state[key] = Model(worker.library, path)
    model: Model = worker.state[key]
    return model


def greedy(
    worker: WorkerContext, path: Path, prompt: str, count: int, settings: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and `count` tokens that follow, by the largest logit."""
    model = model_of(worker, path)
    with Context(model, **settings) as context:
        tokens = model.tokenize(prompt)
        logits = context.decode(tokens)
        generated: list[int] = []
        while len(generated) < count:
            assert logits is not None
            generated.append(int(logits.argmax()))
            if model.is_end(generated[-1]):
                break
            logits = context.decode([generated[-1]], len(tokens) + len(generated) - 1)
    return tokens, generated


def render(worker: WorkerContext, path: Path, messages: list[dict[str, str]]) -> tuple[str, list[int]]:
    model = model_of(worker, path)
    text = model.apply_chat_template(messages)
    return text, model.tokenize_chat(text)


def tokenize(worker: WorkerContext, path: Path, text: str, add_special: bool, parse_special: bool) -> list[int]:
    return model_of(worker, path).tokenize(text, add_special, parse_special)


def detokenize(worker: WorkerContext, path: Path, tokens: Sequence[int]) -> str:
    return model_of(worker, path).detokenize(tokens)


def piece(worker: WorkerContext, path: Path, token: int) -> bytes:
    return model_of(worker, path).piece(token)


def vocabulary_size(worker: WorkerContext, path: Path) -> int:
    return model_of(worker, path).vocab_size


def load(worker: WorkerContext, path: Path, options: dict[str, Any]) -> int:
    with Model(worker.library, path, **options) as model:
        return model.layers


def load_with_failing_progress(worker: WorkerContext, path: Path) -> None:
    def fail(done: int, total: int | None = None, note: str = "") -> None:
        raise WatchingFailed(f"at {done} of {total}")

    Model(worker.library, path, progress=fail)


def make_context_with_little_memory(worker: WorkerContext, path: Path, n_ctx: int) -> None:
    """With 64 MiB of address space more than the loaded model has."""
    with Model(worker.library, path) as model:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + (64 << 20), resource.RLIM_INFINITY))
        Context(model, n_ctx, threads=1)


def decode_in_three_ways(
    worker: WorkerContext, path: Path, tokens: list[int], settings: dict[str, Any]
) -> tuple[Array, Array, list[tuple[int, Array]], Array | None]:
    """Last, all, all in batches, none."""
    model = model_of(worker, path)
    batches: list[tuple[int, Array]] = []
    with Context(model, **settings) as context:
        last = context.decode(tokens)
        context.clear()
        everything = context.decode(tokens, logits="all")
        context.clear()
        assert context.decode(tokens, logits="all", take=lambda i, rows: batches.append((i, rows.copy()))) is None
        context.clear()
        nothing = context.decode(tokens, logits="none")
    assert last is not None and everything is not None
    return last, everything, batches, nothing


def decode_parts(
    worker: WorkerContext, path: Path, parts: list[tuple[list[int], int]], settings: dict[str, Any]
) -> Array:
    """Logits after decoding each `(tokens, position)` in turn."""
    with Context(model_of(worker, path), **settings) as context:
        logits = None
        for tokens, position in parts:
            logits = context.decode(tokens, position)
        assert logits is not None
        return logits


def branch(
    worker: WorkerContext, path: Path, prefix: list[int], question: list[int], rest: list[int], swa_full: bool
) -> tuple[Array, Array, Array, Array]:
    """Question on a branch, and the rest on the trunk: each branched, then each from scratch."""
    model = model_of(worker, path)
    settings = {**REFERENCE, "n_seq_max": 2, "kv_unified": True, "swa_full": swa_full}
    results = []
    with Context(model, **settings) as context:
        context.decode(prefix, logits="none")
        context.copy_sequence(0, 1)
        results.append(context.decode(question, len(prefix), sequence=1))
        assert context.remove_sequence(1)
        results.append(context.decode(rest, len(prefix)))
    for tail in (question, rest):
        with Context(model, **settings) as context:
            context.decode(prefix, logits="none")
            results.append(context.decode(tail, len(prefix)))
    first, second, third, fourth = results
    assert first is not None and second is not None and third is not None and fourth is not None
    return first, second, third, fourth


def roll_back(worker: WorkerContext, path: Path, tokens: list[int], cut: int) -> tuple[bool, int]:
    with Context(model_of(worker, path), **REFERENCE) as context:
        context.decode(tokens, logits="none")
        return context.remove_sequence(0, cut), context.end_position()


def save_and_load(worker: WorkerContext, path: Path, prefix: list[int], rest: list[int]) -> tuple[Array, Array]:
    model = model_of(worker, path)
    with Context(model, **REFERENCE) as context:
        context.decode(prefix, logits="none")
        saved = context.save_sequence()
        straight = context.decode(rest, len(prefix))
    with Context(model, **REFERENCE) as context:
        context.load_sequence(saved)
        restored = context.decode(rest, len(prefix))
    assert straight is not None and restored is not None
    return straight, restored


def load_bad_state(worker: WorkerContext, path: Path) -> None:
    with Context(model_of(worker, path), **REFERENCE) as context:
        context.load_sequence(b"not a state")


def describe_context(
    worker: WorkerContext, path: Path, settings: dict[str, Any]
) -> tuple[int, list[str], tuple[Buffer, ...]]:
    with Context(model_of(worker, path), **settings) as context:
        return context.n_ctx, context.notices, context.buffers


def watch(
    worker: WorkerContext, path: Path, tokens: list[int], names: list[str], logits: str = "all"
) -> dict[str, Array]:
    """Copies of the tensors of these names."""
    seen: dict[str, Array] = {}

    def take(name: str, op: str, tensor: TensorView) -> None:
        seen[name] = tensor()

    callback = EvalCallback(lambda name, op: name in names, take)
    with Context(model_of(worker, path), eval_callback=callback, **REFERENCE) as context:
        context.decode(tokens, logits=logits)  # type: ignore[arg-type]
    return seen


def watch_inputs(worker: WorkerContext, path: Path, tokens: list[int]) -> list[tuple[str, str, str, tuple[int, ...]]]:
    """Each matrix product with experts: its name, op, weight and the shape of its activations."""
    seen: list[tuple[str, str, str, tuple[int, ...]]] = []

    def take(name: str, op: str, tensor: TensorView) -> None:
        weight, activations = tensor.source(0), tensor.source(1)
        assert weight is not None and activations is not None
        seen.append((name, op, weight.name, activations.shape))

    callback = EvalCallback(lambda name, op: op == "MUL_MAT_ID", take)
    with Context(model_of(worker, path), eval_callback=callback, **REFERENCE) as context:
        context.decode(tokens)
    return seen


def fail_while_watching(worker: WorkerContext, path: Path, tokens: list[int], where: str) -> tuple[str, Array, Array]:
    """What came out of the failing decode, then logits of the same context and of one that was never disturbed."""
    failing = True

    def fail(here: str) -> bool:
        if failing and here == where:
            raise WatchingFailed(f"in {where}")
        return True

    def take(name: str, op: str, tensor: TensorView) -> None:
        fail("take")

    callback = EvalCallback(lambda name, op: name.startswith("ffn_") and fail("wants"), take)
    model = model_of(worker, path)
    with Context(model, eval_callback=callback, **REFERENCE) as context:
        try:
            context.decode(tokens)
            outcome = "nothing was raised"
        except WatchingFailed as error:
            outcome = str(error)
        failing = False
        context.clear()
        after = context.decode(tokens)
    with Context(model, **REFERENCE) as context:
        undisturbed = context.decode(tokens)
    assert after is not None and undisturbed is not None
    return outcome, after, undisturbed


def sample(worker: WorkerContext, path: Path, prompt: str, sampling: Sampling, count: int) -> list[int]:
    """`count` draws from the logits after `prompt`."""
    model = model_of(worker, path)
    with Context(model, **REFERENCE) as context, Sampler(model, sampling) as sampler:
        context.decode(model.tokenize(prompt))
        return [sampler.sample(context) for _ in range(count)]


def converse(
    worker: WorkerContext, path: Path, prompts: list[Prompt], sampling: Sampling, n_ctx: int
) -> list[tuple[Answer, list[str]]]:
    """Answers on one session, with the pieces that came."""
    answers = []
    with Context(model_of(worker, path), **{**REFERENCE, "n_ctx": n_ctx}) as context:
        session = Conversation(context.model, context)
        for prompt in prompts:
            pieces: list[str] = []
            answers.append((session.answer(prompt, sampling, pieces.append), pieces))
    return answers


def stop_between_pieces(worker: WorkerContext, path: Path, prompt: str) -> tuple[Answer, Answer, Answer]:
    """An answer stopped after three pieces; then the same prompt again, and on a fresh session."""
    model = model_of(worker, path)
    sampling = Sampling(max_tokens=20)
    with Context(model, **REFERENCE) as context:
        session = Conversation(model, context)
        pieces: list[str] = []

        def take(text: str) -> None:
            pieces.append(text)
            if len(pieces) == 3:
                worker.stop.request()

        stopped = session.answer(prompt, sampling, take)
        worker.stop.clear()
        again = session.answer(prompt, sampling, pieces.append)
    with Context(model, **REFERENCE) as context:
        fresh = Conversation(model, context).answer(prompt, sampling, pieces.append)
    return stopped, again, fresh


def finite(values: Array) -> bool:
    return bool(np.isfinite(values).all())
