"""What goes into a repository: the model, its manifest and signature, and what a report says of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfqs.errors import DfqsError, IntegrityError, UsageError, printable
from dfqs.integrity.findings import Finding, Severity
from dfqs.integrity.manifest import manifest_findings, manifest_of, manifest_path, read_manifest, write_manifest
from dfqs.model.files import ModelFiles, open_model
from dfqs.model.hashes import ModelHashes
from dfqs.progress import Progress, no_progress
from dfqs.pull.hub import is_safe_name
from dfqs.records import read_json
from dfqs.report.card_files import CardOptions, UsageOf, make_card
from dfqs.report.conform_facts import gather_facts
from dfqs.report.evidence import gather_evidence, read_companion
from dfqs.report.page import render_page
from dfqs.report.preset import PRESET_NAME, render_preset
from dfqs.report.reading import Reported
from dfqs.report.schema import Report
from dfqs.storage.hashing import hash_file
from dfqs.storage.identity import FileStamp

SIGNATURE_SUFFIXES = (".sig", ".derivation.sigstore.json")
"""Of what `dfqs attest` leaves beside a model."""
_SMALL_BYTES = 64 << 20
_GIT_BYTES = 10 << 20
"""The Hub keeps no larger file outside of its large-file storage."""


@dataclass(frozen=True, slots=True)
class PublishFile:
    """One file of the repository, on this disk or made here."""

    name: str
    """Path in the repository."""
    size_bytes: int
    sha256: str
    path: Path | None
    stamp: FileStamp | None
    """Of the file when it was hashed."""
    data: bytes | None

    @property
    def git_sha1(self) -> str | None:
        """As git names it; None: too large to be kept by git itself."""
        if self.data is None and self.size_bytes > _GIT_BYTES:
            return None
        data = self.data if self.path is None else self.path.read_bytes()
        assert data is not None
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Published:
    """Everything that is to be in the repository."""

    files: tuple[PublishFile, ...]
    notes: tuple[str, ...]
    """What is left out, and why."""


def open_publishable(model: Path) -> ModelFiles:
    """The model, by its headers.

    Raises:
        UsageError: it is no model, or has a name that a repository cannot have.
        FormatError: it cannot be read.
    """
    opened = open_model(model)
    opened.require_loadable()
    for path in opened.paths:
        if not is_safe_name(path.name) or path.name.startswith("."):
            raise UsageError(f"'{printable(path.name)}' is no name for a file in a repository; rename it")
    return opened


def gather_published(
    model: Path,
    reported: Reported | None,
    options: CardOptions,
    usage_of: UsageOf,
    *,
    documents: Sequence[Path] = (),
    write: bool = False,
    progress: Progress = no_progress,
) -> Published:
    """Look at a model and make what is published with it.

    Args:
        documents: of other verbs, for card and page.
        write: a manifest that is missing is written beside the model; else it is only counted in.
        progress: in bytes of the model.

    Raises:
        UsageError: it is no model, a report of another file, or a name that a repository cannot have.
        IntegrityError: the model is not what its manifest recorded.
        FormatError: something cannot be read.
    """
    opened = open_publishable(model)
    stamps = {path: FileStamp.of(path.stat()) for path in opened.paths}
    made: dict[str, bytes] = {}
    notes: list[str] = []
    report: Report | None = None
    if reported is not None:
        settled = _settle(reported)
        report = settled.report
        facts = gather_facts(model, settled, documents, progress=progress)
        hashes, findings = facts.hashes, facts.manifest_findings
        card = make_card(facts, options, usage_of)
        made["README.md"] = card.readme.encode()
        made |= {name: text.encode() for name, text in card.beside.items()}
        made |= _report_files(settled, documents)
        notes += [f"{stranger}, and was left out" for stranger in facts.strangers]
    else:
        hashes = opened.hashes(progress=progress)
        findings = _findings(model, hashes)
        notes.append("no report was given, so there is no card (--report DIRECTORY)")
    if hashes is None:
        raise UsageError(f"{model} cannot be read as a model; dfqs verify tells what is wrong with it")
    _require_recorded(model, findings)
    made[PRESET_NAME] = render_preset(opened.description, report).encode()
    files = [_model_file(path, stamps[path], opened, hashes) for path in opened.paths]
    files += _manifest_file(opened, hashes, notes, write=write)
    files += [_disk_file(path) for path in _signatures(opened.path)]
    files += [_made_file(name, data) for name, data in sorted(made.items())]
    return Published(tuple(files), tuple(notes))


def _settle(reported: Reported) -> Reported:
    """With the stored report, where making it anew changes nothing but when that was: else every call would publish."""
    stored = reported.place / "report.json"
    try:
        before = read_json(stored, Report) if reported.place.is_dir() and stored.exists() else None
    except DfqsError:
        return reported
    if before is None:
        return reported
    made = {"measured_at": before.measured_at, "dfqs_version": before.dfqs_version}
    return replace(reported, report=before) if reported.report.model_copy(update=made) == before else reported


def _report_files(reported: Reported, documents: Sequence[Path]) -> dict[str, bytes]:
    beside = reported.place if reported.place.is_dir() else reported.place.parent
    page = render_page(reported.report, gather_evidence(reported, (beside,), _companions(documents)))
    text = json.dumps(reported.report.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    return {"report.json": text.encode(), "report.html": page.encode()}


def _companions(documents: Sequence[Path]) -> tuple[Path, ...]:
    """Those that a page can show; a clause can be judged by others too."""
    kept = []
    for path in documents:
        try:
            found = read_companion(path)
        except DfqsError:
            continue
        kept += [path] if found is not None else []
    return tuple(kept)


def _findings(model: Path, hashes: ModelHashes) -> tuple[Finding, ...]:
    path = manifest_path(model)
    return manifest_findings(read_manifest(path), hashes) if path.exists() else ()


def _require_recorded(model: Path, findings: Sequence[Finding]) -> None:
    wrong = [finding for finding in findings if finding.severity is Severity.ERROR]
    if wrong:
        what = f"'{printable(wrong[0].name)}': {wrong[0].message}" if wrong[0].name else wrong[0].message
        raise IntegrityError(
            f"{model} is not what {manifest_path(model).name} recorded ({what}), and is not published. "
            f"dfqs verify {model} --manifest {manifest_path(model)} says more"
        )


def _model_file(path: Path, stamp: FileStamp, opened: ModelFiles, hashes: ModelHashes) -> PublishFile:
    digest = hashes.file_sha256 if len(opened.paths) == 1 else None
    digest = digest or hash_file(path)
    if FileStamp.of(path.stat()) != stamp:
        raise IntegrityError(f"{path} changed while it was hashed; nothing was uploaded")
    return PublishFile(path.name, stamp.bytes, digest, path, stamp, None)


def _manifest_file(opened: ModelFiles, hashes: ModelHashes, notes: list[str], *, write: bool) -> list[PublishFile]:
    path = manifest_path(opened.path)
    if path.exists():
        return [_disk_file(path)]
    if hashes.file_sha256 is None:
        notes.append("a set of shards has no manifest; merge it to one file to have one")
        return []
    manifest = manifest_of(opened.path.name, hashes)
    if write:
        return [_disk_file(write_manifest(opened.path, manifest))]
    notes.append(f"{path.name} will be written, for there is none")
    return [_made_file(path.name, json.dumps(manifest.model_dump(mode="json"), indent=2).encode())]


def _signatures(model: Path) -> list[Path]:
    names = [f"{name}{suffix}" for name in (model.name, model.stem) for suffix in SIGNATURE_SUFFIXES]
    return [path for name in names if (path := model.with_name(name)).is_file()]


def _disk_file(path: Path) -> PublishFile:
    """A small file, read once: what is uploaded is what was hashed."""
    if path.stat().st_size > _SMALL_BYTES:
        raise UsageError(f"{path} is larger than anything that is published beside a model")
    return _made_file(path.name, path.read_bytes())


def _made_file(name: str, data: bytes) -> PublishFile:
    return PublishFile(name, len(data), hashlib.sha256(data).hexdigest(), None, None, data)
