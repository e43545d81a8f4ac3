"""A report with the answers behind it, from what is there: a run, a directory of runs, or a report alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.errors import DfqsError, UsageError, printable
from dfqs.evaluate.scores import ScoredItem
from dfqs.evaluate.stages import FLOOR, NOTES
from dfqs.evaluate.store import RunRecord, Subject, read_lines, read_run, runs_of
from dfqs.evaluate.stored import model_of
from dfqs.records import is_document, read_json
from dfqs.report.record import build_report, find_run
from dfqs.report.schema import Artifact, Report

Lines = Mapping[tuple[str, str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Reported:
    """A report and what its numbers were counted from."""

    report: Report
    place: Path
    """As it was given."""
    lines: Lines | None
    """Stored results by stage and key; None: the report came alone."""

    @property
    def items(self) -> dict[tuple[str, str], ScoredItem]:
        """Every judged answer, by stage and key."""
        return scored_items(self.lines or {})


def scored_items(lines: Lines) -> dict[tuple[str, str], ScoredItem]:
    """The judged answers among stored results."""
    return {
        (stage, key): ScoredItem.model_validate(data)
        for (stage, key), data in lines.items()
        if stage not in (NOTES, FLOOR) and model_of(stage, key) is ScoredItem
    }


def read_reported(path: Path, run: int | None = None) -> Reported:
    """A report: of a run's directory, of the run that `find_run` finds, or a stored `report.json`.

    Answers come with a stored report only where the run beside it gives the same numbers.

    Raises:
        UsageError: there is none.
        FormatError: it cannot be read.
    """
    if path.is_dir() and ((path / "run.json").exists() or runs_of(path)):
        directory = find_run(path, run)
        return Reported(build_report(directory), path, read_lines(directory / "results.jsonl")[0])
    if run is not None:
        raise UsageError(f"{path} has no runs to choose from with --run")
    stored = path / "report.json" if path.is_dir() else path
    if not stored.exists():
        what = "no evaluation and no report" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {what}; make one with dfqs eval MODEL -o DIRECTORY")
    report = read_json(stored, Report)
    return Reported(report, path, _lines_behind(report, stored.parent))


def read_subject(path: Path) -> Subject:
    """What an evaluation was made of, with the place where it lay: by its directory, one run's, a run's `run.json`, or
    a `report.json` that lies with its runs (a report itself says what was measured, and not where that is).

    Raises:
        UsageError: no evaluation, or a report that came alone.
        FormatError: it cannot be read.
    """
    if is_document(path, "dfqs.run-record/1"):
        return read_json(path, RunRecord).subject
    directory = path if path.is_dir() else path.parent
    runs = [run for run in (directory, *reversed(runs_of(directory))) if (run / "run.json").exists()]
    if path.is_dir():
        if runs:
            return read_run(runs[0]).subject
        path = path / "report.json"
        if not path.exists():
            raise UsageError(f"{directory} is no model, and no evaluation was written to it")
    artifact = read_json(path, Report).artifact
    for subject in (read_run(run).subject for run in runs):
        if _same_model(subject, artifact):
            return subject
    sha256 = artifact.file_sha256 or artifact.content_sha256
    known_by = "an endpoint" if artifact.kind == "endpoint" else f"SHA-256 {sha256}"
    raise UsageError(
        f"{path} says what was measured ({printable(artifact.name)}, {known_by}) and not where it lies, and no run "
        "beside it does; give the model's file, or the directory of the evaluation with its run-N"
    )


def _same_model(subject: Subject, artifact: Artifact) -> bool:
    mine = (subject.kind, subject.name, subject.file_bytes, subject.file_sha256, subject.content_sha256)
    return mine == (
        artifact.kind,
        artifact.name,
        artifact.file_bytes,
        artifact.file_sha256,
        artifact.content_sha256,
    )


def _lines_behind(report: Report, directory: Path) -> Lines | None:
    """Of the newest run beside a stored report that gives this very report."""
    runs = [directory] if (directory / "run.json").exists() else [*reversed(runs_of(directory))]
    for run in runs:
        try:
            built = build_report(run)
            if (built.metrics, built.conditions, built.artifact) == (
                report.metrics,
                report.conditions,
                report.artifact,
            ):
                return read_lines(run / "results.jsonl")[0]
        except DfqsError:
            continue
    return None
