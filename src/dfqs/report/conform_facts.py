"""What clauses are judged by: a file, its report, and other verbs' documents, each only where it is of this model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import DfqsError, FormatError, UsageError
from dfqs.evaluate.scores import Completion, Verdict
from dfqs.integrity.findings import Finding
from dfqs.integrity.manifest import Manifest, manifest_findings, manifest_path, read_manifest
from dfqs.integrity.structure import verify_structure
from dfqs.model.description import ModelDescription
from dfqs.model.files import ModelFiles, open_model
from dfqs.model.hashes import ModelHashes
from dfqs.model.origin import ModelOrigin, read_origin
from dfqs.planning.document import PlanDocument
from dfqs.planning.plan import plan_model
from dfqs.progress import Progress, no_progress
from dfqs.records import Document
from dfqs.report.evidence import COMPANIONS, find_documents
from dfqs.report.reading import Reported
from dfqs.report.schema import Report
from dfqs.routing.coherence import RouteDiff
from dfqs.routing.determinism import RouteCheck
from dfqs.routing.identity import read_identity

FORMS: dict[str, type[Document]] = {**COMPANIONS, "dfqs.route-diff/1": RouteDiff}


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is known of a model and its report; None: not known."""

    model: Path
    files: int
    findings: tuple[Finding, ...]
    description: ModelDescription | None
    hashes: ModelHashes | None
    manifest: Path | None
    manifest_findings: tuple[Finding, ...]
    report: Report
    report_place: Path
    plan: PlanDocument | None
    plan_place: str
    check: RouteCheck | None
    check_place: str
    diff: RouteDiff | None
    diff_place: str
    strangers: tuple[str, ...]
    """Documents that are of another model, and were left out."""
    questions: int = 0
    """That were asked, as far as their answers lie beside the report."""
    refusal: str | None = None
    """What the first of them got in place of an answer, where not one got any."""
    origin: ModelOrigin | None = None
    """What the header says of where it comes from."""
    recorded: Manifest | None = None
    """What the manifest beside the model says."""
    paths: tuple[Path, ...] = ()
    """All its files."""

    @property
    def same_file(self) -> bool | None:
        """Whether the report is of this file; None: nothing tells."""
        ours = self.hashes.content_sha256 if self.hashes is not None else None
        theirs = self.report.artifact.content_sha256
        return None if ours is None or theirs is None else ours == theirs


def gather_facts(
    model: Path,
    reported: Reported,
    files: Sequence[Path] = (),
    *,
    hash_bytes: bool = True,
    progress: Progress = no_progress,
) -> Facts:
    """Look at a model and at what was measured on it. Asks the runtime what memory it takes, unless a plan is there.

    Args:
        files: documents that were named; those beside the report are found.
        hash_bytes: read the whole file, to know that the report is of it.

    Raises:
        UsageError: no such file, or a named one that no clause is judged by.
        FormatError: a named document cannot be read.
    """
    structure = verify_structure(model)
    opened, description = _describe(model)
    hashes = opened.hashes(progress=progress) if opened is not None and hash_bytes and structure.readable else None
    manifest, recorded, found = _check_manifest(model, hashes)
    header_sha256 = _header_hash(opened)
    beside = reported.place if reported.place.is_dir() else reported.place.parent
    documents = find_documents((beside,), files, FORMS)
    strangers: list[str] = []

    def is_ours(fits: bool, place: Path) -> bool:
        if not fits:
            strangers.append(f"{place} is of another model")
        return fits

    plan = check = diff = None
    places = {"plan": "", "check": "", "diff": ""}
    for path, document in documents:
        if isinstance(document, PlanDocument) and plan is None and description is not None:
            if is_ours(document.file_bytes == description.file_bytes, path):
                plan, places["plan"] = document, str(path)
        elif isinstance(document, RouteCheck) and check is None:
            if is_ours(document.model.header_sha256 == header_sha256, path):
                check, places["check"] = document, str(path)
        elif (
            isinstance(document, RouteDiff)
            and diff is None
            and is_ours(document.other.model.header_sha256 == header_sha256, path)
        ):
            diff, places["diff"] = document, str(path)
    asked = tuple(item for item in reported.items.values() if _was_computed(item.completion))
    unanswered = bool(asked) and all(item.verdict is Verdict.UNUSABLE for item in asked)
    if plan is None and opened is not None:
        plan, places["plan"] = _plan(opened), "computed now"
    return Facts(
        model, len(opened.paths) if opened is not None else 1, structure.findings, description, hashes, manifest, found,
        reported.report, reported.place, plan, places["plan"], check, places["check"], diff, places["diff"],
        tuple(strangers), len(asked), asked[0].completion.text if unanswered else None,
        read_origin(opened.header.metadata) if opened is not None else None, recorded,
        opened.paths if opened is not None else (model,),
    )  # fmt: skip


def _was_computed(completion: Completion) -> bool:
    """Whether a question came to the model at all: one whose prompt is longer than the context does not."""
    return completion.finish_reason != "context" or bool(completion.generated_tokens)


def _describe(model: Path) -> tuple[ModelFiles | None, ModelDescription | None]:
    try:
        opened = open_model(model)
        return opened, opened.description
    except (FormatError, UsageError):
        return None, None


def _header_hash(opened: ModelFiles | None) -> str | None:
    try:
        return read_identity(opened)[0].header_sha256 if opened is not None else None
    except DfqsError:
        return None


def _plan(opened: ModelFiles) -> PlanDocument | None:
    try:
        return plan_model(opened)
    except DfqsError:
        return None


def _check_manifest(
    model: Path, hashes: ModelHashes | None
) -> tuple[Path | None, Manifest | None, tuple[Finding, ...]]:
    path = manifest_path(model)
    # A shard's own manifest is not one of the whole model.
    if hashes is None or hashes.file_sha256 is None or not path.exists():
        return None, None, ()
    try:
        recorded = read_manifest(path)
        return path, recorded, manifest_findings(recorded, hashes)
    except DfqsError as error:
        return path, None, (Finding("unreadable", str(error), "Write it anew with dfqs manifest."),)
