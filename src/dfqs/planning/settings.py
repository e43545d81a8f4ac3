"""How a model is run, as far as its speed depends on it: the settings that tuning chooses among."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from dfqs.processors import default_threads
from dfqs.records import Record
from dfqs.runtime.abi import CACHE_TYPES
from dfqs.runtime.loading import InMemory, LoadOrder
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.budget import Streamed

Threads = Annotated[int, Field(ge=1, le=512)]
Batch = Annotated[int, Field(ge=1, le=65_536)]
CacheShare = Annotated[float, Field(gt=0, le=1)]
CacheType = Literal["f32", "f16", "bf16", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1", "q8_0"]
assert set(CACHE_TYPES) == set(CacheType.__args__)  # type: ignore[attr-defined]

_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
"""glibc (2.35 or later) then asks the kernel for huge pages under everything that it allocates."""


class RunSettings(Record):
    """The defaults are llama.cpp's own, but for the number of threads, which are this machine's."""

    threads: Threads
    threads_batch: Threads
    """For the prompt."""
    omp_wait_policy: Literal["adaptive", "active", "bounded", "passive", "default"] = "default"
    """`adaptive`: as busy as the machine is when the model is loaded (docs/runtime.md)."""
    n_batch: Batch = 2048
    n_ubatch: Batch = 512
    flash_attention: Literal["auto", "on", "off"] = "auto"
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    load_mode: Literal["auto", "none", "mmap", "direct-io"] = "auto"
    repack: bool = True
    """llama.cpp may copy weights into an order that its kernels like better."""
    huge_pages: bool = False
    streaming: Literal["auto", "cache", "hints"] = "auto"
    """Of a model whose experts come from disk: a cache past the page cache, or the page cache with hints; `auto`: as
    system and file allow (docs/streaming.md)."""
    cache_share: CacheShare = 1.0
    """Of the memory that is left for experts; the rest stays with the page cache."""

    @property
    def wait_policy(self) -> str | None:
        """As `Worker` takes it."""
        return None if self.omp_wait_policy == "adaptive" else self.omp_wait_policy

    @property
    def environment(self) -> Mapping[str, str]:
        """Of the worker process."""
        if not self.huge_pages:
            return {}
        own = os.environ.get(_TUNABLES)
        return {_TUNABLES: f"{own}:{_HUGE_PAGES}" if own else _HUGE_PAGES}

    @property
    def order(self) -> InMemory:
        return InMemory(self.load_mode, self.repack)

    def order_within(self, given: LoadOrder | None) -> LoadOrder:
        """How to load.

        Args:
            given: of a model that memory or its place decides about; None: it may be loaded in any way.
        """
        if given is None:
            return self.order
        if not isinstance(given, Streamed):
            return given
        hints = given.settings.hints if self.streaming == "auto" else self.streaming == "hints"
        how = given.settings
        cache_bytes = int(how.cache_bytes * self.cache_share)
        return replace(given, settings=replace(how, hints=hints, cache_bytes=cache_bytes))

    @property
    def process(self) -> tuple[str, bool, str, bool, str, float]:
        """What a process is started for, and a model loaded with; the rest can change from context to context."""
        return (
            self.omp_wait_policy,
            self.huge_pages,
            self.load_mode,
            self.repack,
            self.streaming,
            self.cache_share,
        )

    def context(self, n_ctx: int | None) -> ContextSettings:
        """Of a session with a context of `n_ctx` tokens."""
        return ContextSettings(
            n_ctx=n_ctx,
            n_batch=self.n_batch,
            n_ubatch=self.n_ubatch,
            threads_batch=self.threads_batch,
            flash_attention=self.flash_attention,
            type_k=self.type_k,
            type_v=self.type_v,
        )

    def but(self, **changes: object) -> "RunSettings":
        """The same with some of them changed."""
        return RunSettings(**{**self.model_dump(), **changes})

    def differences(self, other: "RunSettings") -> tuple[str, ...]:
        """What is set otherwise than in `other`: `threads 2`, `flash_attention off`."""
        mine, theirs = self.model_dump(), other.model_dump()
        return tuple(f"{key} {_shown(mine[key])}" for key in mine if mine[key] != theirs[key])


def default_settings(threads: int | None = None) -> RunSettings:
    """llama.cpp's own, with one thread a physical core."""
    count = threads or default_threads()
    return RunSettings(threads=count, threads_batch=count)


def _shown(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
