"""How experts are streamed on this system and from this file: chosen from facts, with the reason said.

Pure; `dfqs.streaming.surroundings` looks the facts up. Two mechanisms stream: a cache of our own in anonymous memory,
filled past the page cache; and hints, where the page cache is the cache and is told what to read. Where neither helps
a model is loaded whole.

The cache cuts the process's memory map into pieces, and Linux allows a process `vm.max_map_count` of them (65,530 by
default). A file aligned to 32 bytes has, between any two experts of a tensor, one page that both share. Copied
into anonymous memory like everything that stays, it separates the two for good: as many pieces as slices, twice. Left
to the page cache it is one piece with the slices around it that are not in memory, so only slices that are count.
"""

from dataclasses import dataclass
from enum import StrEnum

from dfqs.streaming.layout import StreamLayout

MAP_RESERVE = 4_000
"""Pieces that the process has besides: libraries, threads, buffers; measured 700 with eight threads."""
IN_MEMORY = frozenset({"tmpfs", "ramfs", "hugetlbfs"})
"""File systems whose files are memory."""
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "glusterfs", "lustre", "beegfs", "virtiofs"}
    | {f"fuse.{name}" for name in ("sshfs", "rclone", "s3fs", "gcsfuse", "glusterfs", "ceph", "davfs2", "juicefs")}
)
"""File systems whose bytes come from another machine, as the kernel names them."""


class Mechanism(StrEnum):
    """How a model's experts come into memory."""

    WHOLE = "whole"
    """They are not streamed."""
    CACHE = "cache"
    HINTS = "hints"


class DirectReads(StrEnum):
    """What became of a read that asks to go past the page cache."""

    WORK = "work"
    REFUSED = "refused"
    """The file system does not take them, or not at every page."""
    IGNORED = "ignored"
    """It took the read, and the page cache had the bytes afterwards (compressed files, for one)."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """How many pieces a layout can cut a memory map into."""

    slices: int
    """Ranges of pages that come and go, of all experts."""
    parts: int
    """Ranges of pages that stay."""
    borders: int
    """Of those, the single pages between two slices."""
    files: int

    @classmethod
    def of(cls, layout: StreamLayout) -> "Cuts":
        """Count them."""
        slices = sum(len(expert.ranges) for expert in layout.experts.values())
        files = len({pages.file for pages in layout.resident})
        return cls(slices, len(layout.resident), len(layout.borders), files)

    @property
    def most(self) -> int:
        """Pieces at worst, where everything that stays is copied."""
        return self.slices + self.parts

    def slices_within(self, pieces: int) -> int:
        """Slices that can be in memory with so many pieces at worst, where borders are left to the page cache."""
        return max((pieces - self.files) // 2 - (self.parts - self.borders), 0)


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What the choice depends on."""

    system: str
    """`sys.platform`."""
    file_system: str | None
    """As the kernel names it; of several files, one that is in memory or else the first. None: not known."""
    is_dax: bool
    """The file system is memory that is addressed like memory (mounted with `dax`)."""
    direct: DirectReads
    map_limit: int | None
    """`vm.max_map_count`; None: not known."""
    cuts: Cuts
    expert_slices: int
    """Slices of one expert at most."""
    least_experts: int
    """That a layer needs together."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How to stream, and why not better."""

    mechanism: Mechanism
    reason: str | None = None
    """None where nothing stands in the way of the cache, nor makes it slower."""
    copies_borders: bool = True
    """Whether pages that two slices share are copied with what stays."""
    most_experts: int | None = None
    """In memory at a time; None: as many as there is memory for."""
    is_in_memory: bool = False
    """The file is memory already, whoever uses it."""


def choose_mechanism(facts: StreamFacts) -> Choice:
    """Choose; the reason is the end of a sentence that says how experts are streamed."""
    if facts.system != "linux":
        return Choice(
            Mechanism.WHOLE, f"pages can be exchanged under a loaded model on Linux only, not on {facts.system}"
        )
    if facts.file_system in IN_MEMORY:
        return Choice(Mechanism.WHOLE, f"the file is in memory already ({facts.file_system})", is_in_memory=True)
    if facts.is_dax:
        return Choice(
            Mechanism.WHOLE, f"the file is in memory already ({facts.file_system}, mounted with dax)", is_in_memory=True
        )
    wanted = facts.cuts.most + MAP_RESERVE
    fits = facts.map_limit is None or wanted <= facts.map_limit
    where = facts.file_system or "this file system"
    if facts.direct is DirectReads.REFUSED:
        return Choice(Mechanism.HINTS, f"{where} does not read past the page cache", fits)
    if facts.direct is DirectReads.IGNORED:
        return Choice(Mechanism.HINTS, f"{where} puts into the page cache even what is read past it", fits)
    if fits or facts.map_limit is None:
        far = facts.file_system in NETWORK
        return Choice(Mechanism.CACHE, f"the file comes over a network ({where})" if far else None)
    experts = facts.cuts.slices_within(facts.map_limit - MAP_RESERVE) // facts.expert_slices
    limit, more = f"vm.max_map_count is {facts.map_limit:,}", f"(sysctl -w vm.max_map_count={wanted})"
    if experts < facts.least_experts:
        return Choice(Mechanism.HINTS, f"{limit}, too few for a cache of these experts {more}", False)
    return Choice(Mechanism.CACHE, f"{limit}, which allows {experts:,} experts at a time {more}", False, experts)
