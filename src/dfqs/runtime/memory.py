"""How much memory a model needs at a context length, answered by llama.cpp itself from the header alone.

A *sparse stub* is the file's header followed by a hole of the right length: it takes disk for the header only. Loaded
with simulated allocations it makes llama.cpp report weights, caches and compute buffers for any architecture it knows,
in about a second and without reading a weight. The header may have come from a file or over the network.
"""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from dfqs.errors import RuntimeFailure, UsageError, WorkerCrash
from dfqs.gguf import GGMLType, TensorInfo
from dfqs.model.files import ModelFiles
from dfqs.runtime.checks import check_model
from dfqs.runtime.context import Context, Model
from dfqs.runtime.log_lines import Buffer, parse_flash_attention
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.stub import has_tokens, write_stubs
from dfqs.runtime.worker import Worker
from dfqs.runtime.worker_context import WorkerContext
from dfqs.storage.linux import usable_cpus

_STATE, _TOKENS = "memory stub", "memory stub's tokens"
"""Under which the worker keeps the loaded stub, and what becomes of its tokens."""
_REPACKED = frozenset({GGMLType.Q4_0, GGMLType.Q4_K, GGMLType.IQ4_NL})
"""Types that llama.cpp b11549 repacks on x86-64 (ggml-cpu/repack.cpp); only where it says that it repacks at all."""
SLIDING = "sliding window"
"""What the cache of layers is called that attend to a window."""
_ONE_CACHE = "attention"
"""What a cache is called that is the only one."""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One thing that a context takes memory for, as llama.cpp tells it."""

    kind: Literal["kv", "state", "compute", "output"]
    """`state`: of recurrent layers and compressors, which does not grow with the context."""
    name: str
    """`attention`, `sliding window`, `DSV4 CSA compressed`, ..."""
    bytes: int
    cells: int | None = None
    """Of a cache: entries that it has room for in each layer."""
    layers: int | None = None
    """Of a cache: layers that have it."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that llama.cpp allocates for one context, beside those of Python and the library (some 200 MB)."""

    context_tokens: int
    """As granted: rounded up by llama.cpp, capped at what the model was trained for."""
    weights_bytes: int
    """Of all tensors; of an output that is shared with the embedding and repacked, twice."""
    kv_bytes: int
    """Caches and recurrent states of all sequences."""
    compute_bytes: int
    output_bytes: int
    notices: tuple[str, ...] = ()
    parts: tuple[MemoryPart, ...] = ()
    """All but the weights, one by one."""
    flash_attention: bool | None = None
    """As it came out, where that was left to llama.cpp; None: it did not say."""
    graph_nodes: int | None = None
    """Of the graph of one batch."""

    @property
    def context_bytes(self) -> int:
        """All but the weights."""
        return self.kv_bytes + self.compute_bytes + self.output_bytes

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.context_bytes

    @property
    def rolls_back(self) -> bool:
        """Whether an end can be forgotten: every cache holds every token, and there is nothing else."""
        held = [part for part in self.parts if part.kind in ("kv", "state")]
        return bool(held) and all(part.kind == "kv" and part.name == _ONE_CACHE for part in held)


def measure_memory(model: Path | ModelFiles, context_tokens: int, **settings: Any) -> MemoryNeed:
    """What a model needs at one context length; see `measure_memory_curve`."""
    return measure_memory_curve(model, [context_tokens], **settings)[0]


def measure_memory_curve(
    model: Path | ModelFiles, context_tokens: Sequence[int], worker: Worker | None = None, **settings: Any
) -> tuple[MemoryNeed, ...]:
    """What a model needs at several context lengths.

    Args:
        worker: to use; None starts one.
        settings: of `Context`: `n_ubatch`, `flash_attention`, `type_k`, `type_v`, `n_seq_max`, `kv_unified`,
            `swa_full`.

    Raises:
        FormatError: the header is not sound.
        RuntimeFailure: llama.cpp does not know the model, or not these settings.
    """
    if not context_tokens:
        raise UsageError("no context length to measure")
    with MemoryProbe(check_model(model), worker) as probe:
        return tuple(probe.ask({"n_ctx": tokens, **settings}) for tokens in context_tokens)


class MemoryProbe:
    """A model's header, loaded once in a worker and asked for one configuration after the other. For a `with` block.

    What is asked is a stub without tokens, of which only their number takes memory.

    Args:
        model: whose headers were read, wherever they came from.
        worker: to use; None starts one.
        check_tokens: begin to load them, too, beside everything else: for `require_tokens`.

    Raises (from entering):
        RuntimeFailure: llama.cpp does not load such a model; says why.
        WorkerCrash: it died of it.
    """

    def __init__(self, model: ModelFiles, worker: Worker | None = None, *, check_tokens: bool = False) -> None:
        self._model = model
        self._worker = Worker() if worker is None else worker
        self._own = worker is None
        self._checks_tokens = check_tokens and has_tokens(model.headers)
        self._copied_bytes = 0

    def __enter__(self) -> Self:
        if self._own:
            self._worker.__enter__()
        # Stubs are needed only while they are loaded.
        self._directory = tempfile.TemporaryDirectory(prefix="dfqs-stub-")
        try:
            repacks = self._open(Path(self._directory.name))
            self._copied_bytes = copied_output_bytes(self._model.tensors) if repacks else 0
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A worker that goes on keeps the stub until it is asked about another: letting go of a large vocabulary takes
        # a tenth of a second, and its process is mostly about to end.
        self._close()

    def _open(self, directory: Path) -> bool:
        headers, name = self._model.headers, self._model.shards[0].source
        if not has_tokens(headers):
            return self._worker.call(open_stub, write_stubs(headers, directory), name)
        bare = write_stubs(headers, directory, tokens=False)
        whole = write_stubs(headers, directory) if self._checks_tokens else None
        try:
            return self._worker.call(open_stub, bare, name, whole)
        except WorkerCrash:
            raise
        except RuntimeFailure:
            # What is wrong is said of the header as it is, which may even load.
            whole = whole or write_stubs(headers, directory)
            return self._worker.call(open_stub, whole, name)

    def _close(self) -> None:
        if self._own:
            self._worker.close()
        self._directory.cleanup()

    def require_tokens(self) -> None:
        """
        Raises:
            RuntimeFailure: llama.cpp does not take the model's tokenizer; says why.
            WorkerCrash: it died of it.
        """
        if self._checks_tokens:
            self._worker.call(await_tokens)

    def need(self, settings: ContextSettings) -> MemoryNeed:
        """Bytes that a context would take.

        Raises:
            RuntimeFailure: llama.cpp refuses these settings for this model.
            WorkerCrash: it died of them; the probe can be asked no more.
        """
        return self.ask(asdict(settings))

    def ask(self, settings: dict[str, Any]) -> MemoryNeed:
        """As `need`, for any settings of `Context`."""
        return self._counted(self._worker.call(measure_stub, settings))

    def needs(self, settings: Sequence[ContextSettings]) -> list[MemoryNeed | RuntimeFailure]:
        """As `need`, for several contexts at once, a thread each; a refusal stands where a need would.

        Raises:
            WorkerCrash: it died of one of them; the probe can be asked no more.
        """
        found = self._worker.call(measure_stubs, [asdict(one) for one in settings])
        return [one if isinstance(one, RuntimeFailure) else self._counted(one) for one in found]

    def _counted(self, need: MemoryNeed) -> MemoryNeed:
        return replace(need, weights_bytes=need.weights_bytes + self._copied_bytes)


def copied_output_bytes(tensors: Sequence[TensorInfo]) -> int:
    """Bytes of an output that llama.cpp copies to repack it, because the embedding, which it shares, stays as it is."""
    if any(tensor.name == "output.weight" for tensor in tensors):
        return 0
    return sum(t.length for t in tensors if t.name == "token_embd.weight" and t.type in _REPACKED)


def open_stub(worker: WorkerContext, path: Path, name: str, with_tokens: Path | None = None) -> bool:
    """In the worker: load a stub and keep it.

    Args:
        name: stands for its path in messages.
        with_tokens: a stub whose tokens are loaded meanwhile: for `await_tokens`.

    Returns:
        Whether weights are repacked for this CPU.
    """
    if (kept := worker.state.pop(_STATE, None)) is not None:
        kept.close()
    library = worker.library
    if with_tokens is not None:
        pool = ThreadPoolExecutor(1)
        worker.state[_TOKENS] = pool.submit(lambda: Model(library, with_tokens, vocab_only=True, name=name).close())
        pool.shutdown(wait=False)
    model = worker.state[_STATE] = Model(library, path, load_mode="none", no_alloc=True, name=name)
    return any(buffer.device.endswith("REPACK") for buffer in model.buffers)


def await_tokens(worker: WorkerContext) -> None:
    """In the worker: raise what loading the tokens raised."""
    worker.state[_TOKENS].result()


def measure_stub(worker: WorkerContext, settings: dict[str, Any]) -> MemoryNeed:
    """In the worker: bytes that a context of the loaded stub would take; `settings` are those of `Context`."""
    model: Model = worker.state[_STATE]
    mark = worker.library.log.mark()
    with Context(model, **settings) as context:
        parts = name_parts(context.buffers)
        flash_attention = parse_flash_attention(worker.library.log.since(mark))

        def bytes_of(*kinds: str) -> int:
            return sum(part.bytes for part in parts if part.kind in kinds)

        return MemoryNeed(
            context_tokens=context.n_ctx,
            graph_nodes=context.graph_nodes,
            weights_bytes=model.size_bytes,
            kv_bytes=bytes_of("kv", "state"),
            compute_bytes=bytes_of("compute"),
            output_bytes=bytes_of("output"),
            notices=tuple(context.notices),
            parts=parts,
            flash_attention=flash_attention,
        )


def measure_stubs(worker: WorkerContext, settings: Sequence[dict[str, Any]]) -> list[MemoryNeed | RuntimeFailure]:
    """In the worker: as `measure_stub`, each in a thread. (llama.cpp makes contexts of one model in several threads:
    its test-thread-safety does.)"""

    def measure(one: dict[str, Any]) -> MemoryNeed | RuntimeFailure:
        try:
            return measure_stub(worker, one)
        except RuntimeFailure as error:
            return error

    # The longest first and the second longest last: two of a million tokens at once would take 90 MB more.
    lengths = [one.get("n_ctx") or 0 for one in settings]
    longest = max(range(len(settings)), key=lengths.__getitem__)
    order = [longest, *sorted(set(range(len(settings))) - {longest}, key=lengths.__getitem__)]
    with ThreadPoolExecutor(max_workers=min(len(settings), usable_cpus())) as pool:
        found = dict(zip(order, pool.map(lambda number: measure(settings[number]), order), strict=True))
    return [found[number] for number in range(len(settings))]


def name_parts(buffers: Sequence[Buffer]) -> tuple[MemoryPart, ...]:
    """A context's allocations by what they are for; those of nothing are left out."""
    caches = [buffer for buffer in buffers if buffer.kind == "cache" and buffer.name != "recurrent" and buffer.bytes]
    parts = []
    for buffer in buffers:
        if not buffer.bytes:
            continue
        if buffer.kind == "compute":
            parts.append(MemoryPart("compute", "compute", buffer.bytes))
        elif buffer.kind == "output":
            parts.append(MemoryPart("output", "output", buffer.bytes))
        elif buffer in caches:
            name = buffer.name if len(caches) > 1 and buffer.name else _ONE_CACHE
            parts.append(MemoryPart("kv", name, buffer.bytes, buffer.cells, buffer.layers))
        else:
            name = buffer.name or buffer.kind
            parts.append(MemoryPart("state", name.removesuffix(" state"), buffer.bytes, None, buffer.layers))
    return tuple(parts)
