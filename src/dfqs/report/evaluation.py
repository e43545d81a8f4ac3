"""A model evaluated in one call: measured, its results stored, its report written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.run import Request, StageProgress, evaluate
from dfqs.evaluate.stages import STAGES
from dfqs.evaluate.store import read_lines
from dfqs.evaluate.subject import describe_subject, known_subject
from dfqs.evaluate.suites import find_suite
from dfqs.model.files import ModelFiles
from dfqs.progress import Progress, no_progress
from dfqs.report.evidence import gather_evidence
from dfqs.report.page import render_page
from dfqs.report.reading import Reported
from dfqs.report.record import build_report, check_report_place, write_report
from dfqs.report.schema import Report
from dfqs.runtime.checks import check_model


@contextmanager
def undrawn(stage: str) -> Iterator[Progress]:
    """Stages of which nobody watches the progress."""
    yield no_progress


def evaluate_model(
    model: Path | ModelFiles,
    out: Path,
    *,
    suite: str = "standard",
    stages: tuple[str, ...] = STAGES,
    limit: int | None = None,
    max_context: int | None = None,
    threads: int | None = None,
    draw: StageProgress = undrawn,
) -> Report:
    """Measure the five metrics of a file and write the report into `out` (JSON, Markdown and HTML).

    The same call goes on where a killed one stopped.

    Args:
        limit: at most so many items of each set, and questions at each length.
        max_context: longest context that the search for the boundary goes to, in tokens; None: the suite's longest.
        draw: opens a stage for drawing its progress.

    Raises:
        UsageError: a suite or stage that does not exist, or an `out` that is somebody else's.
        FormatError, SpaceError, RuntimeFailure, WorkerCrash: what stops the work.
    """
    request = Request(find_suite(suite), stages, limit, max_context, threads)
    check_report_place(out)
    opened = check_model(model)
    subject = known_subject(opened, out) or describe_subject(opened, opened.hashes())
    with LocalAnswerer(opened, threads=threads, max_context=request.longest) as answerer:
        directory = evaluate(answerer, subject, opened, request, out, draw)
    report = build_report(directory)
    publish_report(report, directory, out)
    return report


def publish_report(report: Report, directory: Path, out: Path) -> tuple[Path, ...]:
    """Write a run's report into the run's directory and, as the newest, into `out`; returns the paths written last.

    A run in which nothing was measured does not replace the report of one that has something to say.
    """
    page = page_of(report, directory, out)
    paths = write_report(report, page, directory)
    measured = any(value is not None for value in report.metrics.model_dump().values())
    if measured or not (out / "report.json").exists():
        paths = write_report(report, page, out)
    return paths


def page_of(report: Report, directory: Path, *beside: Path, files: Sequence[Path] = ()) -> str:
    """A run's page, with what other verbs left in its directory, beside it, and in `files`.

    Raises:
        UsageError, FormatError: a file that was named is nothing that a page shows.
    """
    reported = Reported(report, directory, read_lines(directory / "results.jsonl")[0])
    return render_page(report, gather_evidence(reported, (directory, *beside), files))
