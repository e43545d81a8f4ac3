"""`dfqs eval --blame`: what makes two files answer differently."""

from dataclasses import replace
from pathlib import Path

import typer

from dfqs.cli.drawing import progress_bar
from dfqs.cli.loading import Loading
from dfqs.cli.output import column_table, emit, note, out, print_plain, warn
from dfqs.errors import UsageError, printable
from dfqs.evaluate.blame import BLAME_CONTEXT_TOKENS, ITEMS, BlameDocument, Effect, blame
from dfqs.evaluate.local import answer_contexts
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.evaluate.subject import is_untouched
from dfqs.gguf.beginnings import SAMPLE_BYTES
from dfqs.model.files import ModelFiles
from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.noise_floor import Resolution
from dfqs.report.reading import read_subject
from dfqs.runtime.checks import check_model
from dfqs.runtime.loading import LoadOrder

UNDECIDED = 1


def run_blame(
    model: ModelFiles, reference: Path, limit: int | None, threads: int | None, loading: Loading, json_: bool
) -> None:
    """Measure and show.

    Raises:
        UsageError: the reference is neither a model nor an evaluation whose model is still there.
        typer.Exit: 1, where nothing could be compared.
    """
    theirs = open_reference(reference)
    with progress_bar("attributing", "answers") as progress:
        found = blame(
            model,
            theirs,
            items=limit or ITEMS,
            threads=threads,
            orders=(_order(theirs, replace(loading, template=None)), _order(model, loading)),
            progress=progress,
        )
    emit(found, json_, lambda: _show(found))
    if found.cause is None:
        raise typer.Exit(UNDECIDED)


def _order(model: ModelFiles, loading: Loading) -> LoadOrder:
    contexts = answer_contexts(model, BLAME_CONTEXT_TOKENS)
    return loading.plan(model, contexts, "a smaller model", whole=CPU_ONLY).order


def open_reference(reference: Path) -> ModelFiles:
    """The file itself, or the one that an evaluation was made of: its directory, one run's, or its report.

    Raises:
        UsageError: nothing that leads to a model that is here.
    """
    if not reference.is_dir() and not _is_json(reference):
        return check_model(reference)
    subject = read_subject(reference)
    if subject.kind == "endpoint":
        raise UsageError(
            f"{reference} is of an endpoint ({printable(subject.location, 120)}), and weights are needed; give the "
            "file that it serves"
        )
    location = Path(subject.location)
    if not location.is_file():
        raise UsageError(f"the model of {reference} is not at {location} any more; give the file itself")
    model = check_model(location)
    if subject.file_bytes not in (None, model.file_bytes):
        raise UsageError(
            f"{location} has {model.file_bytes:,} bytes, and had {subject.file_bytes:,} when {reference} was measured; "
            "give the file that is meant"
        )
    if not is_untouched(model, subject):
        warn(f"{location} was written or moved since {reference} was measured; taken as it is now")
    return model


def _is_json(path: Path) -> bool:
    """Whether a file begins as dfqs's documents do, and no model does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(SAMPLE_BYTES).lstrip().startswith(b"{")


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
