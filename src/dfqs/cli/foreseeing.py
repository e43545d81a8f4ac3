"""What a model that is about to be fetched will take of memory, in words."""

from dfqs.errors import SpaceError, printable
from dfqs.gguf.shard import Shard
from dfqs.model.files import ModelFiles
from dfqs.pull import PullPlan
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.budget import Shortfall, Streamed, foresee_load
from dfqs.units import format_bytes


def memory_words(plan: PullPlan, context_tokens: int | None, ram: str | None) -> str:
    """How it will lie in memory.

    Raises:
        SpaceError: it cannot be loaded here at all.
    """
    shards = tuple(Shard(printable(header.source_name, 200), header) for header in plan.headers)
    found = foresee_load(ModelFiles(shards), ContextSettings(n_ctx=context_tokens), ram)
    if isinstance(found, Shortfall):
        raise SpaceError(f"{found.describe(offers_force=True)}; nothing was fetched")
    if isinstance(found.order, Streamed):
        return f"larger than memory: its experts will be read from disk, {format_bytes(found.total_bytes)} in memory"
    return f"takes {format_bytes(found.total_bytes)} of memory, which is there"
