"""`dfqs eval --blame`: what makes two files answer differently."""

from pathlib import Path

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.loading import Loading
from dfqs.cli.output import column_table, emit, note, out, print_plain
from dfqs.errors import UsageError
from dfqs.evaluate.blame import BLAME_CONTEXT_TOKENS, ITEMS, BlameDocument, Effect, blame
from dfqs.evaluate.local import answer_contexts
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.evaluate.store import read_run, runs_of
from dfqs.model.files import ModelFiles
from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.noise_floor import Resolution
from dfqs.runtime.checks import check_model
from dfqs.runtime.loading import LoadOrder

UNDECIDED = 1


def run_blame(
    model: ModelFiles, reference: Path, limit: int | None, threads: int | None, loading: Loading, json_: bool
) -> None:
    """Measure and show.

    Raises:
        UsageError: the reference is neither a model nor a run whose model is still there.
        typer.Exit: 1, where nothing could be compared.
    """
    theirs = check_model(_model_of(reference))
    with progress_bar("attributing", "answers") as progress:
        found = blame(
            model,
            theirs,
            items=limit or ITEMS,
            threads=threads,
            orders=(_order(theirs, loading), _order(model, loading)),
            progress=progress,
        )
    emit(found, json_, lambda: _show(found))
    if found.cause is None:
        raise typer.Exit(UNDECIDED)


def _order(model: ModelFiles, loading: Loading) -> LoadOrder:
    contexts = answer_contexts(model, BLAME_CONTEXT_TOKENS)
    return loading.plan(model, contexts, "a smaller model", whole=CPU_ONLY).order


def _model_of(reference: Path) -> Path:
    """The file itself, or the one that a run's directory was made of."""
    if not reference.is_dir():
        return reference
    runs = [reference] if (reference / "run.json").exists() else [*reversed(runs_of(reference))]
    for run in runs:
        if (run / "run.json").exists():
            location = Path(read_run(run).subject.location)
            if location.is_file():
                return location
            raise UsageError(f"the model of {run} is not at {location} any more; name the file itself")
    raise UsageError(f"{reference} is no model, and no evaluation was written to it")


def _show(found: BlameDocument) -> None:
    print_plain(f"{found.cause.value if found.cause is not None else 'not decided'}: {found.reason}")
    columns = ("Changed", "Amount, nats an answer", "Mean", "More than itself")
    table = column_table(*columns, words=columns[:1])
    for effect in (found.weights, found.prompt, found.total):
        if effect is not None:
            resolved = "yes" if effect.resolution is Resolution.RESOLVED else effect.resolution.value
            table.add_row(_changed(effect), _interval(effect.absolute), f"{effect.signed.mean:+.4f}", resolved)
    out.print_table(table)
    if found.itself is not None:
        note(f"with flash attention the files differ from themselves by {_interval(found.itself)} nats an answer")
    note(
        f"{found.questions} questions: {found.same_text} written alike by both templates, {found.same_tokens} the same "
        f"tokens{'' if found.same_vocabulary else '; the vocabularies differ'}"
    )
    weights = found.closeness
    apart = [each for each in weights.compared if not each.within]
    same = sum(each.relative_rmse == 0 for each in weights.compared)
    note(
        f"{len(weights.compared)} of {weights.tensors} tensors read in both: {same} the same, {len(apart)} further "
        f"apart than rounding; {weights.only_reference} only in the reference, {weights.only_model} only in the model"
    )
    for each in apart[:5]:
        distance = "no numbers" if each.relative_rmse is None else f"relative distance {each.relative_rmse:.4f}"
        note(f"{each.name}: {each.reference_type} and {each.type}, {distance}, rounding makes {each.rounding:.4f}")


def _changed(effect: Effect) -> str:
    names = {"weights": "the weights", "rendering": "the rendering", "both": "both: each as it is used"}
    return names[effect.changed]


def _interval(estimate: Estimate) -> str:
    between = "" if estimate.low is None else f" ({estimate.low:.4f} to {estimate.high:.4f})"
    return f"{estimate.mean:.4f}{between}"
