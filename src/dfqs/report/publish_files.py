"""What goes into a repository: the model, its manifest and signature, and what a report says of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dfqs.errors import DfqsError, IntegrityError, UsageError, printable
from dfqs.integrity.attest import attestation_places
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
    notes: list[str] = []
    settled = _settle(reported) if reported is not None else None
    facts = gather_facts(model, settled, documents, progress=progress) if settled is not None else None
    hashes = facts.hashes if facts is not None else opened.hashes(progress=progress)
    if hashes is None:
        raise UsageError(f"{model} cannot be read as a model; dfqs verify tells what is wrong with it")
    files = [_model_file(path, stamps[path], opened, hashes) for path in opened.paths]
    for file in files:
        _require_recorded(file, hashes)
    files += _manifest_files(opened, hashes, notes, write=write)
    places = attestation_places(opened)
    files += [_disk_file(path) for path in (places.signature, places.derivation) if path.is_file()]
    made = {PRESET_NAME: render_preset(opened.description, settled.report if settled is not None else None).encode()}
    if settled is None or facts is None:
        notes.append("no report was given, so there is no card (--report DIRECTORY)")
    else:
        # Also where it was written a moment ago: the next call finds it, and its card must be the same.
        place = manifest_path(opened.path)
        recorded = read_manifest(place) if hashes.file_sha256 is not None and place.exists() else None
        card = make_card(
            replace(facts, manifest=place if recorded is not None else None, recorded=recorded), options, usage_of
        )
        made["README.md"] = card.readme.encode()
        made |= {name: text.encode() for name, text in card.beside.items()}
        made |= _report_files(settled, documents)
        notes += [f"{stranger}, and was left out" for stranger in facts.strangers]
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


def _require_recorded(file: PublishFile, hashes: ModelHashes) -> None:
    """A file is what its manifest says.

    Raises:
        IntegrityError: it is not.
        FormatError: there is a manifest, and it cannot be read.
    """
    assert file.path is not None
    place = manifest_path(file.path)
    if not place.exists():
        return
    recorded = read_manifest(place)
    found: Sequence[Finding] = ()
    if hashes.file_sha256 is not None:
        found = [entry for entry in manifest_findings(recorded, hashes) if entry.severity is Severity.ERROR]
    elif recorded.file_sha256 != file.sha256:
        # Of a shard, whose tensors are some of the model's.
        found = [Finding("differs", "its bytes are others", "")]
    if found:
        what = f"'{printable(found[0].name)}': {found[0].message}" if found[0].name else found[0].message
        raise IntegrityError(
            f"{file.path} is not what {place.name} recorded ({what}), and is not published. "
            f"dfqs verify {file.path} --manifest {place} says more"
        )


def _model_file(path: Path, stamp: FileStamp, opened: ModelFiles, hashes: ModelHashes) -> PublishFile:
    digest = hashes.file_sha256 if len(opened.paths) == 1 else None
    digest = digest or hash_file(path)
    if FileStamp.of(path.stat()) != stamp:
        raise IntegrityError(f"{path} changed while it was hashed; nothing was uploaded")
    return PublishFile(path.name, stamp.bytes, digest, path, stamp, None)


def _manifest_files(opened: ModelFiles, hashes: ModelHashes, notes: list[str], *, write: bool) -> list[PublishFile]:
    """One a file, as far as there are any; of a single file it is made."""
    places = [manifest_path(path) for path in opened.paths]
    found = [_disk_file(place) for place in places if place.exists()]
    if found:
        return found
    if hashes.file_sha256 is None:
        notes.append("these shards have no manifests; dfqs manifest makes one of each, or merge them to one file")
        return []
    manifest = manifest_of(opened.path.name, hashes)
    if write:
        return [_disk_file(write_manifest(opened.path, manifest))]
    notes.append(f"{places[0].name} will be written, for there is none")
    return [_made_file(places[0].name, json.dumps(manifest.model_dump(mode="json"), indent=2).encode())]


def _disk_file(path: Path) -> PublishFile:
    """A small file, read once: what is uploaded is what was hashed."""
    if path.stat().st_size > _SMALL_BYTES:
        raise UsageError(f"{path} is larger than anything that is published beside a model")
    return _made_file(path.name, path.read_bytes())


def _made_file(name: str, data: bytes) -> PublishFile:
    return PublishFile(name, len(data), hashlib.sha256(data).hexdigest(), None, None, data)
