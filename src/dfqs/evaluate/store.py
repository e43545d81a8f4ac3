"""Results on disk: one line an item, durable before the next item begins, so that the same command goes on.

    OUT/run-1/run.json        what is measured, and under which conditions
    OUT/run-1/results.jsonl   one result a line, appended and fsynced

A run goes on only under the conditions it began with; anything else begins `run-2`, which says why. A line that a power
cut left half-written is ignored and overwritten.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from dfqs.errors import DfqsError, FormatError, printable
from dfqs.evaluate.conditions import ScoreConditions, differences
from dfqs.evaluate.speed import LOAD_MODE
from dfqs.evaluate.stages import STAGES
from dfqs.evaluate.stored import check_line
from dfqs.model.description import ModelDescription
from dfqs.records import AtLeastOne, Document, Record, Text, Whole, read_json, write_json
from dfqs.storage.atomic import storage_errors
from dfqs.storage.disk import Disk, LocalDisk
from dfqs.storage.journal import Journal, JournalKind, read_unlocked
from dfqs.storage.locks import open_locked

RESULTS_LIMIT_BYTES = 32 << 20
"""Of `results.jsonl`. The standard suite stores some megabytes; read, they take some 20 times that."""
LINE_LIMIT_BYTES = 2 << 20
LINES_LIMIT = 100_000
UNKNOWN_LIMIT_BYTES = 1 << 20
"""Of lines of stages and notes that this version does not know."""
RESULTS = JournalKind(
    schema="dfqs.run-record/1",
    work="run",
    busy="another evaluation is writing into this directory; give it another -o",
    give_up="give --restart to begin another run",
    limit_bytes=RESULTS_LIMIT_BYTES,
    line_bytes=LINE_LIMIT_BYTES,
    is_plain=True,
)
"""Each line of `results.jsonl` is a result; what they belong to stands in `run.json`."""
_RUN_NAME = re.compile(r"run-([1-9][0-9]{0,8})")


class Subject(Record):
    """What is measured."""

    kind: Literal["file", "endpoint"]
    name: str
    location: str
    """Path, or address and model name."""
    file_bytes: Whole | None = None
    file_sha256: str | None = None
    content_sha256: str | None = None
    stamp: str | None = None
    """Size, time and inode of the files that were hashed."""
    model: ModelDescription | None = None
    """What the file is; a report is made from this when the file is long gone. None behind an endpoint."""


class RunRecord(Document):
    """`run.json`."""

    schema_: Literal["dfqs.run-record/1"] = Field(default="dfqs.run-record/1", alias="schema")
    earlier_keys = (("schema_id", "schema"),)
    subject: Subject
    conditions: ScoreConditions
    threads: AtLeastOne | None
    curve_lengths: Annotated[tuple[AtLeastOne, ...], Field(min_length=1)]
    decode_repeats: AtLeastOne
    load_mode: Text = LOAD_MODE
    """How weights come into memory: a word of llama.cpp, or `streamed`."""
    memory_bytes: Whole | None = None
    """That is kept to, where there is a limit."""
    began_anew: tuple[str, ...] = ()
    """Why the run before it was not continued."""


class Line(Record):
    """One line of `results.jsonl`."""

    stage: str
    key: str
    data: dict[str, Any]


@dataclass(slots=True)
class Store:
    """One run's directory, open for appending. Make it with `open_store`."""

    directory: Path
    record: RunRecord
    _journal: Journal
    _lines: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def get(self, stage: str, key: str) -> dict[str, Any] | None:
        """What was stored under `key`; of several the last."""
        return self._lines.get((stage, key))

    def stage(self, stage: str) -> dict[str, dict[str, Any]]:
        """All results of a stage, in the order in which their keys first came."""
        return {key: data for (name, key), data in self._lines.items() if name == stage}

    def append(self, stage: str, key: str, data: dict[str, Any]) -> None:
        """Store one result; it is on the disk when this returns.

        Raises:
            SpaceError: the disk is full; what was stored before is whole.
        """
        if self._lines.get((stage, key)) == data:
            return
        # As the next call of the command will read it.
        data = json.loads(whole_text(json.dumps(data, ensure_ascii=False, allow_nan=False)))
        with storage_errors(self.directory):
            self._journal.append({"stage": stage, "key": whole_text(key), "data": data})
        self._lines[stage, key] = data

    def close(self) -> None:
        """Let another process have it."""
        self._journal.close()


@contextlib.contextmanager
def open_store(out: Path, planned: RunRecord, *, restart: bool = False) -> Iterator[Store]:
    """The run in `out` to go on with, or a new one as planned.

    Args:
        restart: begin a new one in any case. Those that are there stay.

    Raises:
        UsageError: another process is evaluating into the same directory.
        FormatError: a stored run cannot be read.
    """
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = open_locked(out / ".lock", f"another evaluation is writing into {out}; give it another -o")
    try:
        store = open_run(*_choose_run(out, planned, restart))
        try:
            yield store
        finally:
            store.close()
    finally:
        os.close(lock)


def open_run(directory: Path, record: RunRecord, disk: Disk | None = None) -> Store:
    """A run with the results that it has, open for appending.

    Raises:
        FormatError: they cannot be read.
    """
    path, disk = directory / "results.jsonl", disk or LocalDisk()
    lines = _Lines(path)
    with storage_errors(directory):
        journal = Journal.open_or_create(disk, path, RESULTS)
        try:
            journal.read(lines.take)
            disk.sync_directory(directory)
        except BaseException:
            journal.close()
            raise
    return Store(directory, record, journal, lines.found)


def read_lines(path: Path) -> tuple[dict[tuple[str, str], dict[str, Any]], int]:
    """Stored results by (stage, key), and how many bytes of the file are whole lines.

    Raises:
        FormatError: a line in the middle is damaged; only the last can be torn by a power cut. Or a line is none of an
            evaluation, or the file is larger than results can be.
    """
    lines = _Lines(path)
    length = read_unlocked(path, RESULTS, lines.take) if path.exists() else 0
    return lines.found, length


class _Lines:
    """Takes stored results in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[tuple[str, str], dict[str, Any]] = {}
        self._unknown_bytes = 0

    def take(self, number: int, record: dict[str, Any]) -> bool:
        try:
            line = Line.model_validate(record)
        except ValidationError:
            raise FormatError(f"line {number + 1:,} is not a line of results", path=self.path) from None
        try:
            if not check_line(line.stage, line.key, line.data):
                self._unknown_bytes += len(str(line.data))
        except FormatError as error:
            raise FormatError(f"line {number + 1:,}: {error.detail}", path=self.path) from None
        self.found[line.stage, line.key] = line.data
        if len(self.found) > LINES_LIMIT or self._unknown_bytes > UNKNOWN_LIMIT_BYTES:
            raise FormatError(f"more than an evaluation stores, from line {number + 1:,} on", path=self.path)
        return True


def whole_text(text: str) -> str:
    """`text` with the halves of UTF-16 pairs put together, and single ones replaced.

    Servers send them (JSON allows `\\ud83d`, and a stream can break between two halves), files and reports cannot hold
    them.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def runs_of(out: Path) -> tuple[Path, ...]:
    """The directories of the runs in `out`, oldest first."""
    names = {int(match[1]): path for path in out.glob("run-*") if (match := _RUN_NAME.fullmatch(path.name))}
    return tuple(names[number] for number in sorted(names) if names[number].is_dir())


def latest_run(out: Path) -> Path | None:
    """The directory of the newest run in `out`."""
    return next(reversed(runs_of(out)), None)


def has_results(out: Path) -> bool:
    """Whether the newest run in `out` has any answer or time, and not only notes."""
    run = latest_run(out)
    with contextlib.suppress(OSError, DfqsError):
        return run is not None and any(stage in STAGES for stage, _ in read_lines(run / "results.jsonl")[0])
    return False


def read_run(directory: Path) -> RunRecord:
    """What a run measures, and under which conditions."""
    return read_json(directory / "run.json", RunRecord)


def _choose_run(out: Path, planned: RunRecord, restart: bool) -> tuple[Path, RunRecord]:
    """The newest run that began with the same, or a new one that says what is other than in the newest."""
    runs = runs_of(out)
    why: tuple[str, ...] | None = ("--restart was given",) if restart and runs else None
    for directory in () if restart else reversed(runs):
        if not (directory / "run.json").exists():
            continue
        before = read_run(directory)
        conditions = _with_code_python(planned.conditions, before.conditions)
        before = before.model_copy(update={"conditions": _with_code_python(before.conditions, conditions)})
        changes = _changes(before, planned.model_copy(update={"conditions": conditions}))
        if not changes:
            if before.subject.model is None:
                described = before.subject.model_copy(update={"model": planned.subject.model})
                before = before.model_copy(update={"subject": described})
            # Memory may be other than last time; what depends on it is stored with it.
            before = before.model_copy(update={"memory_bytes": planned.memory_bytes})
            write_json(directory / "run.json", before, overwrite=True)
            return directory, before
        why = why if why is not None else changes
    number = int(runs[-1].name[4:]) + 1 if runs else 1
    if runs and not (runs[-1] / "run.json").exists():
        # Killed between making the directory and its record: nothing was measured in it.
        number -= 1
    directory = out / f"run-{number}"
    record = planned.model_copy(update={"began_anew": why or ()})
    with storage_errors(directory):
        directory.mkdir(exist_ok=True)
    write_json(directory / "run.json", record, overwrite=True)
    return directory, record


def _changes(before: RunRecord, planned: RunRecord) -> tuple[str, ...]:
    """What is other than in a run; empty: it can go on."""
    other_model = _changed_subject(before.subject, planned.subject)
    if other_model:
        # Its template and its context come with it.
        return other_model
    threads = (f"threads: {before.threads} -> {planned.threads}",) if before.threads != planned.threads else ()
    modes = (before.load_mode, planned.load_mode)
    loading = (f"load_mode: {printable(modes[0])} -> {modes[1]}",) if modes[0] != modes[1] else ()
    return (*differences(before.conditions, planned.conditions), *threads, *loading)


def _with_code_python(conditions: ScoreConditions, other: ScoreConditions) -> ScoreConditions:
    """A run in which no code was run yet goes on with whatever Python there is."""
    if conditions.code_python is not None:
        return conditions
    return conditions.model_copy(update={"code_python": other.code_python})


def _changed_subject(before: Subject, now: Subject) -> tuple[str, ...]:
    # A file that moved is the same file; and how it is described changes with the version that describes it.
    placeless = {"location": "", "stamp": None, "model": None} if now.kind == "file" else {}
    old, new = (subject.model_copy(update=placeless) for subject in (before, now))
    changed = tuple(f"model {difference}" for difference in differences(old, new))
    if not changed:
        return ()
    if before.name == now.name:
        return (f"another model under the same name, {printable(now.name)}", *changed)
    return (f"another model: {printable(now.name)} in place of {printable(before.name)}", *changed)
