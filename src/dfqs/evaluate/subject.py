"""What is measured, named so that a run can tell later whether it is still the same, and say what it was."""

from pathlib import Path

from dfqs.evaluate.store import Subject, read_run, runs_of
from dfqs.model.files import ModelFiles
from dfqs.model.hashes import ModelHashes
from dfqs.records import readable_text


def known_subject(model: ModelFiles, out: Path) -> Subject | None:
    """The model as a run in `out` knows it, so that it is hashed once; None where its files have other places, sizes
    or times than in every run."""
    stamp, location = _stamp(model), readable_text(model.path.resolve())
    for directory in reversed(runs_of(out)):
        if (directory / "run.json").exists():
            before = read_run(directory).subject
            if (before.stamp, before.location) == (stamp, location):
                return before
    return None


def is_untouched(model: ModelFiles, subject: Subject) -> bool:
    """Whether a model's files have the sizes, times and places that they were measured with."""
    return subject.stamp in (None, _stamp(model))


def describe_subject(model: ModelFiles, hashes: ModelHashes) -> Subject:
    """A model's files as a run keeps them.

    Raises:
        FormatError: its keys do not describe a model.
    """
    return Subject(
        kind="file",
        name=readable_text(model.name),
        location=readable_text(model.path.resolve()),
        file_bytes=model.file_bytes,
        file_sha256=hashes.file_sha256,
        content_sha256=hashes.content_sha256,
        stamp=_stamp(model),
        model=model.description,
    )


def _stamp(model: ModelFiles) -> str:
    states = [path.stat() for path in model.paths]
    return ",".join(f"{state.st_size}-{state.st_mtime_ns}-{state.st_ino}" for state in states)
