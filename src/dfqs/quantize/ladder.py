"""Several classes of one model side by side: what each costs in bytes, and what in quality.

Every rung is measured on the same tokens as the source, which is the reference: losses are compared pair by pair, and
the divergence is from the source's own distribution.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.errors import UsageError
from dfqs.gguf.reader import read_header
from dfqs.gguf.shard_names import parse_shard_name
from dfqs.model.classes import DeploymentClass
from dfqs.model.files import ModelFiles
from dfqs.model.making import CLASS_KEY, IMATRIX_KEY, RECIPE_KEY, SOURCE_KEY
from dfqs.progress import Progress, no_progress
from dfqs.quantize.bootstrap import Estimate, estimate_difference
from dfqs.quantize.metadata import recipe_text
from dfqs.quantize.noise_floor import FLOOR_TOKENS, Resolution, resolve_loss
from dfqs.quantize.perplexity import Measured, PerplexityJob, Summary, logits_bytes, summarise
from dfqs.quantize.quantize import DEFAULT_MEMORY_BYTES, is_unfinished, quantize
from dfqs.quantize.rung import is_ours, measure_rung, rung_files
from dfqs.quantize.source import read_source
from dfqs.records import Document, Record, Text, is_document
from dfqs.runtime import Worker
from dfqs.runtime.loading import InMemory, LoadOrder
from dfqs.storage.atomic import check_output_path
from dfqs.storage.hashing import hash_file
from dfqs.streaming.budget import LoadPlan, choose_load

SOURCE, REFERENCE = "source", "reference"
SCHEMA = "dfqs.ladder/1"


@dataclass(frozen=True, slots=True)
class Rung:
    """One model of the ladder. The first is the source."""

    name: str
    path: Path
    tensor_bytes: int
    bits_per_weight: float
    summary: Summary
    from_previous: Estimate | None
    """Loss minus that of the rung before it, paired; None for the first."""
    step_against_floor: Resolution | None = None
    """Whether that step is more than either rung's own noise floor; None: not known."""


def measure_ladder(
    source: Path | ModelFiles,
    directory: Path,
    classes: Sequence[DeploymentClass],
    text: str,
    *,
    imatrix: Path | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int | None = None,
    max_tokens: int | None = None,
    floor_tokens: int = FLOOR_TOKENS,
    allow_requantize: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    ram: str | None = None,
    force: bool = False,
    settle: Callable[[ModelFiles, LoadPlan], LoadPlan] = lambda _, plan: plan,
    progress: Progress = no_progress,
) -> tuple[Rung, ...]:
    """Quantize `source` to each of `classes` in `directory`, and measure all of them.

    A rung that is there already, made of this source by this recipe, is not made again, and one that was measured
    already is not measured again; `reference.logits.gguf` holds the source's logits.

    Args:
        floor_tokens: of the text that each model is held against itself on, under other numerics; 0: none is.
        restart: throw away what an interrupted run left of a rung that it had not finished, and measure all anew.
        ram, force: of each measurement; see `dfqs.streaming.budget.choose_load`.
        settle: is told how each model is going to be loaded, and may have what streams checked.
        progress: in models.

    Raises:
        UsageError: two classes of one name, something else where a rung should be, or what `quantize` refuses.
    """
    model = read_source(source)
    names = _rung_names(model.path, classes)
    _check_directory(directory, names, [*model.paths, *([imatrix] if imatrix else [])], overwrite)
    make = partial(quantize, imatrix=imatrix, memory_bytes=memory_bytes, threads=threads, overwrite=overwrite)
    make = partial(make, allow_requantize=allow_requantize, restart=restart)
    with Worker(threads=threads) as worker:
        job = PerplexityJob(model.path.absolute(), text, max_tokens=max_tokens, threads=threads)
        load = partial(_choose_order, job, ram=ram, force=force, settle=settle)
        job = replace(job, order=load(model, InMemory()), floor_tokens=floor_tokens)
        progress(0, len(names) + 1, model.path.name)
        measure = partial(measure_rung, worker, directory, anew=restart)
        first = measure(REFERENCE, job)
        rungs, previous = [_rung(SOURCE, model.path, summarise(first))], first
        for index, (class_, name) in enumerate(zip(classes, names, strict=True), start=1):
            progress(index, len(names) + 1, class_.name)
            out = directory / name
            if overwrite or not out.exists() or (not restart and is_unfinished(out)):
                make(model.path, out, class_, worker=worker)  # Opened anew: hours lie between two rungs.
            else:
                _require_rung(out, model, class_, imatrix)
            order = load(read_source(out), InMemory(repack=job.order.repack))
            measured = measure(out.stem, _of_rung(job, out, order), source=job.fingerprint)
            rungs.append(_rung(class_.name, out, summarise(measured, first.losses, first.floor), measured, previous))
            previous = measured
        progress(len(names) + 1, len(names) + 1)
    return tuple(rungs)


def _of_rung(job: PerplexityJob, out: Path, order: LoadOrder) -> PerplexityJob:
    return replace(job, model=out.absolute(), reference=rung_files(out.parent, REFERENCE)[0], order=order)


def _choose_order(
    job: PerplexityJob,
    model: ModelFiles,
    whole: InMemory,
    *,
    ram: str | None,
    force: bool,
    settle: Callable[[ModelFiles, LoadPlan], LoadPlan],
) -> LoadOrder:
    """How a rung is loaded to be measured."""
    beside = logits_bytes(job.window_tokens, model.spec.vocabulary)
    plan = choose_load(model, job.context, ram, whole=whole, beside_bytes=beside, force=force, smaller="another class")
    return settle(model, plan).order


def _rung_names(source: Path, classes: Sequence[DeploymentClass]) -> list[str]:
    """The files of the rungs."""
    shard = parse_shard_name(source.name)
    prefix = shard.prefix if shard else source.name.removesuffix(".gguf")
    # By the names of their files: recipes "a b" and "a_b" would share one.
    names = [f"{prefix}-{_file_name(class_.name)}.gguf" for class_ in classes]
    if len(set(names)) != len(names) or not names:
        raise UsageError("a ladder needs at least one class, and each only once")
    return names


def _check_directory(directory: Path, names: Sequence[str], others: Sequence[Path], overwrite: bool) -> None:
    """Make sure that the ladder's own files are replaced, and nothing else.

    Raises:
        UsageError: something else stands under the name of one of them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    table, plot = directory / "ladder.json", directory / "ladder.svg"
    ours = {table: is_document(table, SCHEMA), plot: is_document(table, SCHEMA)}
    for name in (REFERENCE, *(Path(name).stem for name in names)):
        ours |= {path: is_ours(path) for path in rung_files(directory, name)}
    for path, own in ours.items():
        check_output_path(path, overwrite=own or overwrite, inputs=[*others, *(directory / name for name in names)])


def _require_rung(path: Path, source: ModelFiles, class_: DeploymentClass, imatrix: Path | None) -> None:
    """Make sure that a file that stands where a rung should is that rung: its numbers would be another model's.

    Raises:
        UsageError: it is something else; says what.
    """
    found = read_header(path).metadata
    expected = {
        CLASS_KEY: class_.name,
        RECIPE_KEY: recipe_text(class_),
        IMATRIX_KEY: hash_file(imatrix) if imatrix is not None else None,
        SOURCE_KEY: source.hashes(file=False).content_sha256,
    }
    for key, value in expected.items():
        if found.get(key) != value:
            raise UsageError(
                f"{path} is there already, and is not this rung: its '{key}' is another; choose another directory, "
                "or add --overwrite"
            )


class RungRecord(Record):
    """One model of a ladder in numbers. Sizes in bytes, losses in nats a token, unknown is null."""

    name: Text
    path: Text
    tensor_bytes: int
    bits_per_weight: float
    summary: Summary
    from_previous: Estimate | None
    """Loss minus that of the rung before it, paired; null for the first."""
    step_against_floor: Resolution | None = None
    """Whether that step is more than either rung's own noise floor; null: not known."""


class LadderDocument(Document):
    """`ladder.json`: a model's classes side by side. The first rung is the source."""

    schema_: Literal["dfqs.ladder/1"] = Field(default="dfqs.ladder/1", alias="schema")
    rungs: tuple[RungRecord, ...]

    @classmethod
    def of(cls, rungs: Sequence[Rung]) -> "LadderDocument":
        """All rungs."""
        names = RungRecord.model_fields
        return cls(rungs=tuple(RungRecord(**{name: getattr(rung, name) for name in names}) for rung in rungs))


def _rung(
    name: str, path: Path, summary: Summary, measured: Measured | None = None, previous: Measured | None = None
) -> Rung:
    step = resolution = None
    if measured is not None and previous is not None:
        step = estimate_difference(measured.losses.nll, previous.losses.nll)
        resolution = resolve_loss([measured.floor, previous.floor], step)
    tensors = read_source(path).tensors
    size = sum(tensor.length for tensor in tensors)
    weights = sum(tensor.elements for tensor in tensors)
    return Rung(name, path, size, size * 8 / weights, summary, step, resolution)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
