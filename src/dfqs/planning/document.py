"""`dfqs.plan/1`: what a plan says. Bytes are computed by the runtime that is named, rates by the rule that is named."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from dfqs.model.description import Count
from dfqs.planning.loaders import LoaderVerdict
from dfqs.records import Amount, AtLeastOne, Document, Record, Share, Text, Whole
from dfqs.runtime.requests import ContextSettings


class Verdict(StrEnum):
    """Whether a context can be had within the memory that was asked about."""

    FITS = "FITS"
    """Whatever the settings that are known to matter."""
    FITS_WITH = "FITS WITH"
    """All weights in memory, and not without the settings that are named."""
    STREAMED = "RUNS STREAMED"
    """Experts read from disk when they are chosen; perhaps not without the settings that are named."""
    DOES_NOT_FIT = "DOES NOT FIT"
    UNKNOWN = "UNKNOWN"
    """The runtime did not answer."""

    @property
    def runs(self) -> bool:
        return self in (Verdict.FITS, Verdict.FITS_WITH, Verdict.STREAMED)


class PlanSettings(Record):
    """Settings of a context, by the names that they have in llama.cpp."""

    flash_attention: str
    """`on` or `off`; `auto` where it was left to llama.cpp, which did not say."""
    type_k: str
    type_v: str
    batch: AtLeastOne
    ubatch: AtLeastOne
    swa_full: bool
    """Full-size caches for layers that attend to a sliding window."""

    @classmethod
    def of(cls, settings: ContextSettings, flash_attention: bool | None) -> "PlanSettings":
        """Of a context, with what llama.cpp chose for flash attention; None: it did not say."""
        return cls(
            flash_attention={True: "on", False: "off", None: settings.flash_attention}[flash_attention],
            type_k=settings.type_k,
            type_v=settings.type_v,
            batch=settings.n_batch,
            ubatch=settings.n_ubatch,
            swa_full=settings.swa_full,
        )

    def context(self, tokens: int) -> ContextSettings:
        """Those of a context of so many tokens."""
        return ContextSettings(
            n_ctx=tokens,
            n_batch=self.batch,
            n_ubatch=self.ubatch,
            flash_attention=self.flash_attention,
            type_k=self.type_k,
            type_v=self.type_v,
            swa_full=self.swa_full,
        )


class PlanPart(Record):
    """One thing that memory is taken for."""

    kind: Literal["weights", "kv", "state", "compute", "output", "program"]
    name: Text
    bytes: Whole
    cells: Whole | None
    """Of a cache: entries that it has room for in each layer."""
    layers: Whole | None
    """Of a cache: layers that have it."""


class NeededSetting(Record):
    """A setting without which it would not be so."""

    name: str
    """`swa_full`, `flash_attention`, `ubatch`, `kv` or `context`."""
    value: str
    changed: bool
    """It is not what was asked for."""
    otherwise: str
    """The value with which it does not fit."""
    otherwise_bytes: Whole | None
    """All that would be taken then; null: llama.cpp refuses it."""


class DiskRate(Record):
    """Computed, not measured: what the disk alone allows."""

    disk_bytes_per_s: AtLeastOne
    tokens_per_s: Amount | None
    """Null: nothing has to be read."""


class StreamedPlan(Record):
    """Experts from disk, computed with every expert equally likely; a model's own preferences make it less."""

    resident_bytes: Whole
    """Weights that every token uses."""
    cache_bytes: Whole
    experts_bytes: Whole
    """Of all experts."""
    total_bytes: Whole
    """Resident weights, cache, context and program."""
    touched_bytes_per_token: Whole
    """Of experts that a token uses."""
    hit_share: Share
    """Of these, found in the cache."""
    read_bytes_per_token: Whole
    rates: tuple[DiskRate, ...]


class ContextPlan(Record):
    """One context length under one profile."""

    asked_tokens: AtLeastOne
    context_tokens: AtLeastOne
    """As granted; where it had to be smaller, the one that can be had."""
    profile: Literal["default", "deterministic"]
    """`deterministic`: flash attention off and f16 caches, as routing is compared and scores are measured."""
    settings: PlanSettings
    parts: tuple[PlanPart, ...]
    total_bytes: Whole | None
    """With all weights in memory; null: not known."""
    verdict: Verdict
    needed: tuple[NeededSetting, ...]
    streamed: StreamedPlan | None
    whole_context_tokens: AtLeastOne | None
    """A context that fits with all weights in memory, where this one does not."""
    binding: Literal["weights", "resident weights", "context"] | None
    """What does not fit."""
    least_bytes: Whole | None
    """Memory from which on it would run."""
    advice: Text | None
    notices: tuple[Text, ...]


class DiskPlan(Record):
    """What storage it takes."""

    file_bytes: Whole
    fetch_bytes: Whole
    """Still to be fetched; 0 of a local model. `dfqs pull` writes each byte once."""
    plain_merge_bytes: Whole
    """Shards and the merged file side by side; `merge --in-place` and `--consume` need no second copy."""
    directory: Text
    free_bytes: Whole


class GpuSplit(Record):
    """A model on a GPU and on the CPU, computed and not run: the CPU build's context sizes, and weights by layer."""

    vram_bytes: Whole
    context_tokens: AtLeastOne
    fits: bool
    gpu_layers: Whole
    """`-ngl`"""
    cpu_moe_layers: Whole
    """`--n-cpu-moe`: layers, from the first, whose experts stay on the CPU."""
    arguments: tuple[str, ...]
    """For llama.cpp's programs."""
    gpu_weights_bytes: Whole
    gpu_context_bytes: Whole
    """Caches and compute buffer of the layers on the GPU; where that are not all, their share of the caches."""
    reserve_bytes: Whole
    """Left to the driver: an assumption."""
    ram_bytes: Whole
    """What stays for the CPU, the program included."""
    fits_ram: bool
    basis: Literal["computed, not run"] = "computed, not run"


class EnvelopeRow(Record):
    """One number of the specification's table, held against the plan."""

    component: Literal["RAM", "GPU VRAM", "storage"]
    level: Literal["minimum", "recommended"]
    given_bytes: Whole
    needed_bytes: Whole | None
    """Null: not known."""
    holds: bool | None
    needed_for: Text


class PlanDocument(Document):
    """Whether a model fits, with which settings, and what it takes, by the named runtime. Unknown is null."""

    schema_: Literal["dfqs.plan/1"] = Field(default="dfqs.plan/1", alias="schema")
    source: Text
    """Path or address."""
    name: Text | None
    architecture: Text
    parameters: Count
    parameters_active: Count
    file_bytes: Count
    tensor_bytes: Count
    trained_context_tokens: Count | None
    runtime: str
    """The build that every number of memory belongs to."""
    unknown: Text | None
    """Why the runtime did not answer; what is said then is from the header alone."""
    memory_bytes: Whole
    """That may be taken."""
    memory_of: Literal["this machine", "given"]
    contexts: tuple[ContextPlan, ...]
    disk: DiskPlan
    split: GpuSplit | None
    envelope: tuple[EnvelopeRow, ...]
    loaders: tuple[LoaderVerdict, ...]
