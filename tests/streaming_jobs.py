"""What the tests of streaming run in a worker: the same tokens through a model in memory and a streamed one."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.runtime.context import Context, Model
from dfqs.runtime.worker_context import WorkerContext
from dfqs.streaming.cache import StreamCounts
from dfqs.streaming.opening import open_streamed
from dfqs.streaming.policy import CacheUse, ChoiceLog, simulate_cache
from dfqs.streaming.settings import StreamSettings
from dfqs.streaming.verification import Recorded

PROMPT_TOKENS = 40
SEQUENCES = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out, as a hash of every logit; for a streamed run, what it took."""

    logits_sha256: str
    counts: StreamCounts | None = None
    forecast: CacheUse | None = None
    """What a simulated cache of that size makes of the choices that were recorded."""
    guessed_bytes: tuple[int, int] | None = None
    """Read before a layer had chosen, and of those what it chose; None where nothing was guessed."""


def run_in_memory(worker: WorkerContext, paths: Sequence[Path], tokens: Sequence[int]) -> Outcome:
    """As `run_streamed`, without streaming."""
    with Model(worker.library, paths[0], load_mode="mmap", gpu_layers=0, repack=False) as model:
        return Outcome(_decode(model, tokens))


def run_streamed(
    worker: WorkerContext, paths: Sequence[Path], tokens: Sequence[int], cache_bytes: int, hints: bool = False
) -> Outcome:
    """A prompt in batches, then token by token, then a second sequence beside the first."""
    log = ChoiceLog()
    with open_streamed(worker.library, paths, StreamSettings(cache_bytes, hints), log=log) as streamed:
        logits = _decode(streamed.model, tokens)
        cache = streamed.stream.cache
        forecast = simulate_cache(streamed.layout.sizes, cache.budget_bytes, log.passes)
        ahead = streamed.experts.ahead
        guesses = (ahead.read_bytes, ahead.used_bytes) if ahead is not None else None
        return Outcome(logits, cache.counts, forecast, guesses)


def decode_on(
    worker: WorkerContext,
    paths: Sequence[Path],
    tokens: Sequence[int],
    cache_bytes: int,
    recorded: Recorded | None = None,
    seconds: float = 40,
    gate: Path | None = None,
) -> int:
    """Load, say so, and decode until the time is over or something happens; how many were checked.

    Args:
        gate: a file that has to be there before the first token.
    """
    with (
        open_streamed(worker.library, paths, StreamSettings(cache_bytes, recorded=recorded)) as streamed,
        Context(streamed.model, 256, flash_attention="off") as context,
    ):
        worker.emit("loaded")
        while gate is not None and not gate.exists():
            time.sleep(0.01)
        end = time.monotonic() + seconds
        while True:
            context.clear()
            for start in range(0, 64, 16):
                context.decode(tokens[start : start + 16], start)
            if time.monotonic() >= end:
                break
        return streamed.experts.check.checked if streamed.experts.check is not None else 0


def read_prompt(
    worker: WorkerContext, paths: Sequence[Path], tokens: Sequence[int], cache_bytes: int, n_ubatch: int
) -> tuple[StreamCounts, tuple[Sequence[tuple[int, Sequence[int]]], ...]]:
    """A prompt in one batch; what streaming did, and which experts each layer of each pass chose."""
    log = ChoiceLog()
    with (
        open_streamed(worker.library, paths, StreamSettings(cache_bytes), log=log) as streamed,
        Context(streamed.model, 512, n_batch=512, n_ubatch=n_ubatch, flash_attention="off") as context,
    ):
        context.decode(tokens)
        return streamed.stream.cache.counts, tuple(log.passes)


def run_while_the_file_changes(worker: WorkerContext, path: Path, tokens: Sequence[int], how: str) -> None:
    """Decode, let something happen to the file, and decode on."""
    with (
        open_streamed(worker.library, [path], StreamSettings(0 if how == "cut" else 1 << 30)) as streamed,
        Context(streamed.model, 256, flash_attention="off") as context,
    ):
        context.decode(tokens[:8])
        if how == "written":
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x55")
        else:
            os.truncate(path, path.stat().st_size // 2)
        context.decode(tokens[8:16], 8)


def _decode(model: Model, tokens: Sequence[int]) -> str:
    digest = hashlib.sha256()
    with Context(
        model,
        512,
        n_batch=32,
        n_ubatch=16,
        flash_attention="off",
        n_seq_max=SEQUENCES,
        kv_unified=True,
    ) as context:
        rows = context.decode(tokens[:PROMPT_TOKENS], logits="all")
        assert rows is not None
        digest.update(rows.tobytes())
        for position in range(PROMPT_TOKENS, len(tokens)):
            row = context.decode([tokens[position]], position)
            assert row is not None
            digest.update(row.tobytes())
        other = context.decode(list(reversed(tokens[:PROMPT_TOKENS])), 0, sequence=1)
        assert other is not None
        digest.update(other.tobytes())
    return digest.hexdigest()
