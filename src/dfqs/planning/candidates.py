"""Which settings are worth trying on a machine, group by group."""

from collections.abc import Sequence
from pathlib import Path

from dfqs.hardware import Machine
from dfqs.planning.settings import RunSettings
from dfqs.streaming.budget import Streamed

UBATCHES = (64, 128, 256, 512, 1024, 2048)
CACHES = (("q8_0", "f16"), ("q8_0", "q8_0"))
"""Pairs of types of K and V beside f16: what is smaller changes the output of every model that was looked at."""
CACHE_SHARES = (0.75, 0.5)
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ROOM = 1.1
"""Of free memory, as a multiple of the file, before weights are copied out of the page cache."""


def thread_candidates(holds: RunSettings, machine: Machine, *, busy: bool, spins: bool = True) -> list[RunSettings]:
    """How many threads, and how they wait for each other.

    Args:
        busy: others keep CPUs busy now; `adaptive` then means `passive`, else `bounded`.
        spins: whether threads that spin for each other are worth a look.
    """
    counts = thread_counts(holds.threads, machine)
    policies = ("adaptive", "active", "bounded" if busy else "passive") if spins else ()
    found = [holds.but(omp_wait_policy=policy) for policy in policies]
    for count in counts:
        if count != holds.threads:
            # A prompt is arithmetic, an answer mostly memory: they can want different numbers.
            for prompt_count in {count, max(count, holds.threads)}:
                found.append(holds.but(threads=count, threads_batch=prompt_count, omp_wait_policy="adaptive"))
    return found


def ways_beside_others(defaults: RunSettings) -> list[RunSettings]:
    """Where to begin when the defaults crawl beside others: threads that sleep, and one fewer of them, as even those
    wait for the one that shares its CPU.
    """
    sleeping = defaults.but(omp_wait_policy="adaptive")
    fewer = defaults.threads - 1
    return [sleeping, sleeping.but(threads=fewer, threads_batch=fewer)] if fewer else [sleeping]


def thread_counts(default: int, machine: Machine) -> tuple[int, ...]:
    """The default, all logical CPUs where there are more, and fewer: memory is often busy before the cores are."""
    fewer = {default * 3 // 4, default // 2, default - 1}
    granted = {int(machine.cpu_quota)} if machine.cpu_quota is not None else set()
    counts = {default, machine.allowed_cpus} | fewer | granted
    return tuple(sorted(count for count in counts if 1 <= count <= max(default, machine.allowed_cpus)))


def memory_candidates(
    holds: RunSettings, file_bytes: int, free_bytes: int, notes: list[str], huge_pages: str | None = None
) -> list[RunSettings]:
    """How weights lie in memory.

    Args:
        notes: gets a sentence for what is left out.
        huge_pages: the kernel's choice, as its file has it; None reads that.
    """
    found = [holds.but(repack=False)]
    if free_bytes < file_bytes * _ROOM:
        notes.append("weights stay in the page cache: there is no memory to copy them to")
        return found
    found += [holds.but(load_mode="none"), holds.but(load_mode="none", repack=False)]
    kernel = _read_huge_pages() if huge_pages is None else huge_pages
    if "[madvise]" in kernel:
        found += [one.but(huge_pages=True) for one in (holds, *found[1:])]
    elif "[always]" not in kernel:
        notes.append("the kernel gives no huge pages (/sys/kernel/mm/transparent_hugepage/enabled)")
    return found


def stream_candidates(holds: RunSettings, order: Streamed, least_bytes: int) -> list[RunSettings]:
    """How experts come from disk, and how much of the memory that is left they get.

    Args:
        least_bytes: that a cache must hold.
    """
    # Where the system allows hints only, there is nothing to choose.
    ways = [] if order.settings.hints else [holds.but(streaming="hints")]
    shares = (share for share in CACHE_SHARES if order.settings.cache_bytes * share >= least_bytes)
    return ways + [holds.but(cache_share=share) for share in shares]


def attention_candidates(holds: RunSettings) -> list[RunSettings]:
    """Flash attention, and types of the caches. (llama.cpp quantizes V under flash attention only.)"""
    found = [holds.but(flash_attention="off")]
    return found + [holds.but(type_k=k, type_v=v) for k, v in CACHES]


def batch_candidates(holds: RunSettings, prompt_tokens: int, sizes: Sequence[int] = UBATCHES) -> list[RunSettings]:
    """How many tokens of a prompt are computed at a time; more than it has would be the same as all of it."""
    return [
        holds.but(n_ubatch=size, n_batch=max(size, holds.n_batch))
        for size in sizes
        if min(size, prompt_tokens) != min(holds.n_ubatch, prompt_tokens) and size <= prompt_tokens
    ]


def _read_huge_pages() -> str:
    try:
        return _HUGE_PAGES.read_text()
    except OSError:
        return ""
