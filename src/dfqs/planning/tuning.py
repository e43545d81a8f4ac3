"""`dfqs.tuning/1`: what tuning found for one model on one machine under one runtime, where it is kept, and who may use
it.

A record holds for a model's content, a machine, a runtime, and how busy the machine was; where one of them is another,
there is no record, and llama.cpp's defaults hold.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dfqs.errors import DfqsError
from dfqs.gguf.file import GGUFFile
from dfqs.hardware import read_machine
from dfqs.model.files import ModelFiles
from dfqs.model.hashes import content_line
from dfqs.planning.halving import Ratio
from dfqs.planning.numerics import OutputNoise
from dfqs.planning.settings import RunSettings
from dfqs.records import Amount, AtLeastOne, Document, Record, Sha256, Text, Whole, read_json, sha256_of, write_json
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.omp_policy import BUSY_CPUS, LoadSample, other_cpus
from dfqs.storage.atomic import check_output_path, storage_errors
from dfqs.storage.cache import cache_directory

SAMPLED_TENSORS, SAMPLED_BYTES = 32, 4096
_SURE = 4
"""An interval whose ends are further apart says nothing in numbers."""


class TunedModel(Record):
    """Which model it was."""

    name: Text
    sampled_sha256: Sha256
    """Of its tensors' names, types and shapes and the first 4,096 bytes of 32 of them, spread evenly over the sorted
    names: the same for one file and for shards, and found without reading 60 GB."""
    file_bytes: Whole


class TunedSpeed(Record):
    """One request, last measured: tokens a second, seconds to load."""

    prompt_tokens_per_s: Amount
    answer_tokens_per_s: Amount
    load_s: Amount


class Gain(Record):
    """A rate as a multiple of llama.cpp's defaults, measured side by side; above 1 is faster."""

    mean: Amount
    low: Amount | None
    """95 %; null with fewer than two pairs."""
    high: Amount | None
    pairs: Whole

    @classmethod
    def of(cls, times: Ratio) -> "Gain":
        """From a ratio of times."""
        rates = times.inverse
        return cls(mean=rates.mean, low=rates.low, high=rates.high, pairs=rates.pairs)


class Tried(Record):
    """One setting that was measured, against what held then."""

    stage: str
    changes: tuple[str, ...]
    """What it sets otherwise."""
    gain: Gain
    """Of the whole request."""
    prompt_gain: Gain
    answer_gain: Gain
    chosen: bool


class Tuning(Document):
    """Settings that make a model fastest on a machine, and how sure that is."""

    schema_: Literal["dfqs.tuning/1"] = Field(default="dfqs.tuning/1", alias="schema")
    model: TunedModel
    machine: dict[str, Any]
    """What of it a speed depends on."""
    runtime: str
    busy: bool
    """Whether others kept the machine busy. Beside others other settings are fast; each state has a record of its
    own."""
    other_cpus: Amount
    """CPUs that others kept busy, on average."""
    streamed: bool
    """Whether experts were read from disk, for lack of memory."""
    prompt_tokens: AtLeastOne
    answer_tokens: AtLeastOne
    """The request that was measured."""
    budget_s: Amount
    spent_s: Amount
    settings: RunSettings
    """To use. The defaults where nothing was surely better."""
    defaults: RunSettings
    """llama.cpp's own."""
    speed: TunedSpeed
    default_speed: TunedSpeed
    gain: Gain
    """Of the whole request."""
    prompt_gain: Gain
    answer_gain: Gain
    drift: Amount
    """The slowest of the same request under the same (default) settings, as a multiple of the fastest: 1 on a machine
    that does not change its speed."""
    noise: OutputNoise | None
    """Null where no other cache types were fast enough to be looked at."""
    tried: tuple[Tried, ...]
    notes: tuple[str, ...]
    """What was left out and why, or what makes it unsure."""


def identify_model(model: ModelFiles) -> TunedModel:
    """A model's content, told by samples."""
    names = sorted(tensor.name for tensor in model.tensors)
    sampled = set(names[:: max(1, -(-len(names) // SAMPLED_TENSORS))])
    lines = []
    for shard in model.shards:
        with GGUFFile(shard.path) as file:
            for tensor in file.header.tensors:
                length = min(SAMPLED_BYTES, tensor.length) if tensor.name in sampled else 0
                data = file.source.read_exactly(file.header.span(tensor).offset, length) if length else b""
                lines.append(
                    content_line(tensor.name, tensor.type.name, tensor.shape, hashlib.sha256(data).hexdigest())
                )
    digest = hashlib.sha256(b"".join(sorted(lines))).hexdigest()
    return TunedModel(name=model.name, sampled_sha256=digest, file_bytes=model.file_bytes)


def tuning_path(model: TunedModel, machine: dict[str, Any], runtime: str, *, busy: bool, streamed: bool) -> Path:
    """Where the record of these conditions lies, if there is one."""
    key = sha256_of([model.sampled_sha256, machine, runtime, busy, streamed])
    return _directory() / f"{key[:32]}.json"


def require_storable() -> None:
    """Have a place for records, before minutes are spent on one.

    Raises:
        UsageError, OSError: the cache cannot be written.
    """
    directory = _directory()
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_output_path(directory / "tuning.json")


def store_tuning(tuning: Tuning) -> Path:
    """Keep a record in place of an earlier one of the same conditions; returns its path.

    Raises:
        UsageError, OSError: the cache cannot be written.
    """
    path = tuning_path(tuning.model, tuning.machine, tuning.runtime, busy=tuning.busy, streamed=tuning.streamed)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, tuning, overwrite=True)
    return path


def find_tuning(model: ModelFiles, *, streamed: bool) -> Tuning | None:
    """The record for a model on this machine as busy as it is now; None where there is none, or none that can be
    read."""
    with contextlib.suppress(DfqsError, OSError):
        if not any(_directory().glob("*.json")):
            # Who never tuned pays for nothing.
            return None
        since = LoadSample()
        identity, machine, runtime = identify_model(model), read_machine().speed_conditions(), runtime_name()
        busy = other_cpus(since) >= BUSY_CPUS
        found = read_json(tuning_path(identity, machine, runtime, busy=busy, streamed=streamed), Tuning)
        same = (found.model.sampled_sha256, found.machine, found.runtime, found.busy, found.streamed)
        if same == (identity.sampled_sha256, machine, runtime, busy, streamed):
            return found
    return None


def describe_settings(settings: RunSettings, defaults: RunSettings) -> str:
    """`flash_attention off, n_ubatch 256`, or that these are the defaults."""
    return ", ".join(settings.differences(defaults)) or "llama.cpp's defaults"


def describe_gain(gain: Gain) -> str:
    """`1.08 x (95 %: 1.05 to 1.11)`."""
    if gain.low is None or gain.high is None:
        return f"{gain.mean:.2f} x"
    if gain.high > _SURE * gain.low:
        return f"{gain.mean:.2f} x (unsure: {gain.pairs} pairs that differ)"
    return f"{gain.mean:.2f} x (95 %: {gain.low:.2f} to {gain.high:.2f})"


def _directory() -> Path:
    return cache_directory() / "tunings"
