"""A report with the answers behind it, from what is there: a run, a directory of runs, or a report alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.errors import DfqsError, UsageError
from dfqs.evaluate.scores import ScoredItem
from dfqs.evaluate.stages import FLOOR, NOTES
from dfqs.evaluate.store import read_lines, runs_of
from dfqs.evaluate.stored import model_of
from dfqs.records import read_json
from dfqs.report.record import build_report, find_run
from dfqs.report.schema import Report

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
