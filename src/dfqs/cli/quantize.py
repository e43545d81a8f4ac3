"""`dfqs quantize`: an artifact of a deployment class out of a model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.documents.quantize import QuantizeDocument
from dfqs.cli.drawing import progress_bar
from dfqs.cli.guard import check_output
from dfqs.cli.inspect import role_table
from dfqs.cli.options import Align, AllowRequantize, DryRun, Imatrix, Json, Memory, Model, Overwrite, Restart, Threads
from dfqs.cli.output import emit, note, out, print_plain, warn
from dfqs.errors import AlreadyDone, UsageError, printable
from dfqs.model.classes import CLASSES
from dfqs.model.files import ModelFiles
from dfqs.quantize.checks import check_experts, check_gain, check_imatrix, gain_problem
from dfqs.quantize.metadata import ImatrixOrigin
from dfqs.quantize.mixtures import MIXTURES
from dfqs.quantize.plan import QuantizationPlan
from dfqs.quantize.quantize import Quantized, quantize
from dfqs.quantize.source import class_for, plan_source, read_source
from dfqs.units import format_bytes, format_count, format_duration, format_number_of, parse_size

SHOWN_NOTES = 12
"""So many exceptions are listed one by one for people; `--json` has them all."""


def command(
    source: Model,
    output: Annotated[Path | None, typer.Argument(help="The file to write.", show_default=False)] = None,
    class_: Annotated[
        str,
        typer.Option(
            "--class",
            "-c",
            help=f"For models with experts: {', '.join(CLASSES)}. llama-quantize's mixtures: {', '.join(MIXTURES)}. Or "
            "a recipe that ends in .toml.",
        ),
    ] = "IQ1_S-XL",
    imatrix: Imatrix = None,
    memory: Memory = "2G",
    threads: Threads = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Write shards of at most this much tensor data in place of one file.", show_default=False),
    ] = None,
    align: Align = None,
    allow_requantize: AllowRequantize = False,
    force: Annotated[
        bool, typer.Option("--force", help="Make the file even where nothing changes in it, or it grows.")
    ] = False,
    overwrite: Overwrite = False,
    restart: Restart = False,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Make an artifact of a deployment class: each tensor gets the type that the class has for its role.

    Killed at any moment, the same command goes on where it was. The bytes do not depend on threads or memory.

    Example: dfqs quantize model-f16.gguf model-iq1.gguf --class IQ1_S-XL --imatrix model.imatrix.gguf
    """
    read = read_source(source)
    memory_bytes, max_shard_bytes = parse_size(memory), parse_size(max_shard_size) if max_shard_size else None
    plan = plan_source(read, recipe := class_for(class_, read, has_imatrix=imatrix is not None))
    warn_of_idle_exceptions(plan)
    if dry_run:
        _warn_of_refusals(read, plan, force)
        _report(plan, None, json_, check_imatrix(plan, read, imatrix) if imatrix is not None else None)
        return
    if output is None:
        raise UsageError("name the file to write (or add --dry-run to see what it would be)")
    # What is there already is seen to beside the journal: it may be our own, of a run that was cut off.
    check_output(output, (source, imatrix, Path(class_) if class_.endswith(".toml") else None), overwrite=True)
    _refuse(read, plan, force)
    make = partial(
        quantize,
        imatrix=imatrix,
        memory_bytes=memory_bytes,
        threads=threads,
        max_shard_bytes=max_shard_bytes,
        align=align,
        allow_requantize=allow_requantize,
        overwrite=overwrite,
        restart=restart,
    )
    _make(partial(make, source, output, recipe), plan, json_)


def _refuse(source: ModelFiles, plan: QuantizationPlan, force: bool) -> None:
    """What is not worth the hours, or cannot be done."""
    check_experts(source, plan.class_)
    if not force:
        check_gain(plan)


def _make(make: Callable[..., Quantized], plan: QuantizationPlan, json_: bool) -> None:
    try:
        with progress_bar(f"quantizing to {plan.class_.name}", "parameters") as progress:
            result = make(progress=progress)
    except AlreadyDone as error:
        note(str(error))
        emit(QuantizeDocument.of(plan, None, None, done_already=True), json_, lambda: None)
        return
    except KeyboardInterrupt:
        note("finished tensors are kept beside the output; the same command goes on from there")
        raise
    _report(plan, result, json_, result.imatrix)


def _warn_of_refusals(source: ModelFiles, plan: QuantizationPlan, force: bool) -> None:
    """What the real run will refuse."""
    try:
        check_experts(source, plan.class_)
    except UsageError as error:
        warn(f"the real run will refuse this: {error}")
    problem = gain_problem(plan)
    if problem is not None and not force:
        warn(f"the real run needs --force: {problem}")


def warn_of_idle_exceptions(plan: QuantizationPlan) -> None:
    """What a recipe says of tensors that this model has not."""
    for entry in plan.idle_exceptions:
        warn(f"an exception of {plan.class_.name} fits no tensor of this model: {printable(entry)}")


def _report(plan: QuantizationPlan, result: Quantized | None, json_: bool, imatrix: ImatrixOrigin | None) -> None:
    if imatrix is not None and imatrix.unseen_experts:
        warn(
            f"no text reached {format_number_of(imatrix.unseen_experts, '(layer, expert) pair')} when importance was "
            "measured: all columns weigh the same there; more text for `dfqs imatrix` helps"
        )
    if imatrix is not None and imatrix.silent_weights:
        warn(
            f"the importance matrix has nothing but zeroes for {format_number_of(imatrix.silent_weights, 'tensor')}: "
            "all columns weigh the same there"
        )
    emit(QuantizeDocument.of(plan, result, imatrix), json_, lambda: _show(plan, result))


def _show(plan: QuantizationPlan, result: Quantized | None) -> None:
    """The same for people."""
    out.print_table(role_table(plan.roles))
    weights = sum(size.parameters for size in plan.roles)
    total = sum(size.bytes for size in plan.roles)
    bits = f", {total * 8 / weights:.2f} bits per weight" if weights else ""
    print_plain(f"{plan.class_.name}: {format_bytes(total)} for {format_count(weights)} parameters{bits}")
    if plan.native_experts:
        count = format_number_of(len(plan.native_experts), "expert tensor")
        print_plain(
            f"{count} of {plan.native_experts[0].source.type.name} in the input: taken for the type that the model is "
            "published in, which has lost nothing yet"
        )
    if plan.notes:
        print_plain(f"{format_number_of(len(plan.notes), 'tensor')} of another type than the class says:")
        for line in plan.notes[:SHOWN_NOTES]:
            print_plain(f"  - {line}")
        if len(plan.notes) > SHOWN_NOTES:
            print_plain(f"  - and {len(plan.notes) - SHOWN_NOTES} more (--json lists all)")
    if result is None:
        _hint_at_needs(plan)
        return
    outcome = result.outcome
    rate = f", {format_count(outcome.quantized_parameters / outcome.wall_s)} a second" if outcome.wall_s > 0 else ""
    resumed = f" ({format_number_of(outcome.resumed, 'tensor')} done before)" if outcome.resumed else ""
    for path, manifest in zip(result.paths, result.manifests, strict=True):
        print_plain(f"wrote {path} ({manifest.name} beside it)")
    note(f"{format_duration(outcome.wall_s)} on {format_number_of(outcome.threads, 'thread')}{rate}{resumed}")


def _hint_at_needs(plan: QuantizationPlan) -> None:
    if plan.requantized:
        count = format_number_of(len(plan.requantized), "input tensor")
        note(f"to take {count} below Q8_0 the real run needs --allow-requantize")
    if plan.needing_importance:
        count = format_number_of(len(plan.needing_importance), "tensor")
        note(f"for {count} the real run needs an importance matrix (--imatrix)")
