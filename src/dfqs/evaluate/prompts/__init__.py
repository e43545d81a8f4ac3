"""The frozen prompt sets: what is asked, and proof that it is what was always asked.

A set is a JSONL or JSON file beside this module and an entry in `manifest.json` that pins the file's SHA-256, the words
put around each item, and the token cap. `set_sha256`, the hash of that whole entry, stands in every report.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, ValidationError

from dfqs.errors import IntegrityError
from dfqs.records import Document, Record, read_json, sha256_of

DIRECTORY = Path(__file__).parent


class ReasoningItem(Record):
    """One question with one exact answer."""

    id: str
    family: str
    level: int
    question: str
    answer: str
    kind: Literal["number", "time", "word", "text"]
    choices: tuple[str, ...]

    @property
    def chance(self) -> float:
        """The score of answering at random among `choices`; 0 for an open answer."""
        return 1 / len(self.choices) if self.choices else 0.0


class CodeItem(Record):
    """One function to write. `tests` define `check(candidate)` and are never shown to the model."""

    id: str
    level: int
    entry_point: str
    prompt: str
    tests: str
    helpers: str = ""
    """Definitions that the problem gives beside the function."""
    prelude: str = ""
    """Definitions that the tests use."""


class ToolItem(Record):
    """One message, and the call that it needs."""

    id: str
    level: int
    question: str
    tools: tuple[dict[str, Any], ...]
    """Name, description and parameters (JSON Schema) of each."""
    call: dict[str, Any] | None
    """`name` and `arguments`; None: it is to be answered without a call."""


class Check(Record):
    """One rule that an answer must keep; which fields count depends on the kind (`dfqs.evaluate.profile`)."""

    kind: str
    values: tuple[str, ...] = ()
    value: Any = None
    count: int = 0
    least: int = 0
    most: int = 10**9

    def describe(self) -> str:
        """In a few words, for whoever reads results."""
        fields = self.model_dump(exclude_defaults=True)
        return ", ".join(f"{name} {value}" for name, value in fields.items())[:300]


class ProfileItem(Record):
    """One request of a row of the capability profile."""

    id: str
    row: str
    level: int
    prompt: str
    checks: tuple[Check, ...]


class ContextVocabulary(Record):
    """What the growing document is made of; see `dfqs.evaluate.context`."""

    seed: str
    qualities: tuple[str, ...]
    animals: tuple[str, ...]
    places: tuple[str, ...]
    subjects: tuple[str, ...]
    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    times: tuple[str, ...]
    syllables: tuple[str, ...]
    """Of names that mean nothing."""
    opening: str
    fact: str
    question: str
    key_fact: str
    key_question: str
    chain_value: str
    chain_copy: str
    chain_question: str
    counted: str
    count_question: str
    filler_every: int
    """Every so many lines one is followed by a sentence of filler."""


class SetEntry(Record):
    """One set in the manifest."""

    name: str
    version: int
    file: str
    file_sha256: str
    items: int
    instruction: str
    """`{item}` is replaced by the item's text."""
    max_tokens: int
    set_sha256: str

    def hash(self) -> str:
        """SHA-256 of the entry's canonical form without `set_sha256` itself."""
        return sha256_of(self.model_dump(mode="json", exclude={"set_sha256"}))


class Manifest(Document):
    """All sets."""

    schema_: Literal["dfqs.prompts/1"] = Field(default="dfqs.prompts/1", alias="schema")
    sets: tuple[SetEntry, ...]


ItemT = TypeVar("ItemT", bound=Record)


@dataclass(frozen=True, slots=True)
class PromptSet(Generic[ItemT]):
    """A set whose bytes are the frozen ones."""

    entry: SetEntry
    items: tuple[ItemT, ...]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def sha256(self) -> str:
        return self.entry.set_sha256

    def prompt(self, text: str) -> str:
        """What the model is asked: the set's instruction with `text` in its place."""
        return self.entry.instruction.replace("{item}", text)


def read_reasoning_set(directory: Path = DIRECTORY) -> PromptSet[ReasoningItem]:
    """The 64 reasoning questions. Raises IntegrityError when a byte of them or of their entry changed."""
    return _read_set("reasoning", ReasoningItem, directory)


def read_gym_set(directory: Path = DIRECTORY) -> PromptSet[ReasoningItem]:
    """96 questions of reasoning-gym. Raises IntegrityError when a byte of them or of their entry changed."""
    return _read_set("gym", ReasoningItem, directory)


def read_tool_set(directory: Path = DIRECTORY) -> PromptSet[ToolItem]:
    """24 messages with tools. Raises IntegrityError when a byte of them or of their entry changed."""
    return _read_set("tools", ToolItem, directory)


def read_profile_set(directory: Path = DIRECTORY) -> PromptSet[ProfileItem]:
    """39 requests of four rows. Raises IntegrityError when a byte of them or of their entry changed."""
    return _read_set("profile", ProfileItem, directory)


def read_code_set(directory: Path = DIRECTORY) -> PromptSet[CodeItem]:
    """The 32 code problems. Raises IntegrityError when a byte of them or of their entry changed."""
    return _read_set("code", CodeItem, directory)


def read_context_set(directory: Path = DIRECTORY) -> PromptSet[ContextVocabulary]:
    """What the context document is made of. Raises IntegrityError when a byte of it or of its entry changed."""
    return _read_set("context", ContextVocabulary, directory)


def build_entry(
    name: str, version: int, file: str, file_sha256: str, items: int, instruction: str, max_tokens: int
) -> SetEntry:
    """The manifest entry of a set, with both hashes."""
    fields: dict[str, Any] = {
        "name": name,
        "version": version,
        "file": file,
        "file_sha256": file_sha256,
        "items": items,
        "instruction": instruction,
        "max_tokens": max_tokens,
    }
    return SetEntry(**fields, set_sha256=sha256_of(fields))


def _read_set(name: str, model: type[ItemT], directory: Path) -> PromptSet[ItemT]:
    manifest = read_json(directory / "manifest.json", Manifest)
    entry = next((entry for entry in manifest.sets if entry.name == name), None)
    if entry is None:
        raise IntegrityError(f"the manifest of prompt sets in {directory} has no set '{name}'; reinstall dfqs")
    if entry.hash() != entry.set_sha256:
        raise _changed(name, directory / "manifest.json")
    path = directory / entry.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path}: {error.strerror}; reinstall dfqs") from None
    if hashlib.sha256(data).hexdigest() != entry.file_sha256:
        raise _changed(name, path)
    try:
        items = _parse(data, model, entry.file.endswith(".jsonl"))
    except (ValueError, ValidationError) as error:
        raise IntegrityError(f"{path} does not hold what a set '{name}' holds: {error}") from None
    return PromptSet(entry, items)


def _parse(data: bytes, model: type[ItemT], lines: bool) -> tuple[ItemT, ...]:
    documents: Sequence[bytes] = data.splitlines() if lines else [data]
    return tuple(model.model_validate(json.loads(document)) for document in documents)


def _changed(name: str, path: Path) -> IntegrityError:
    return IntegrityError(
        f"the frozen prompt set '{name}' is not the one that was frozen: {path} has other bytes than its hash says. "
        "Scores on it would compare with nothing; reinstall dfqs"
    )
