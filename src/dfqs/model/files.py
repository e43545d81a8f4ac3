"""A model behind one handle, whether it lies in one file or in shards: what every verb opens first, and passes on.

Opening reads headers, nothing else; what they say is worked out when it is asked for, and kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dfqs.errors import ShardError, printable
from dfqs.gguf.kinds import FileKind, file_kind, require_model
from dfqs.gguf.layout import TensorInfo
from dfqs.gguf.reader import Header, HeaderBudget, parse_header
from dfqs.gguf.shard import SPLIT_COUNT, STALE_COUNT_FIX, Shard, is_whole_model, read_model_shards
from dfqs.model.facts import ModelFacts, find_facts
from dfqs.model.spec import ModelSpec, read_model_spec
from dfqs.progress import Progress, no_progress

if TYPE_CHECKING:
    from dfqs.model.description import ModelDescription
    from dfqs.model.hashes import ModelHashes

_HASHES = "dfqs.model.hashes"
"""Loaded by who hashes: it comes with all that reads fast."""
_DEMONSTRATION = "dfqs.embedded."
"""Keys of the model that dfqs builds to show itself with, and of what is quantized from it."""


@dataclass(eq=False)
class ModelFiles:
    """The files of one model, or of another kind of GGUF, with their headers. Make it with `open_model`."""

    shards: tuple[Shard, ...]
    """In order; one for a model that is a single file."""
    _parts: "tuple[ModelHashes, ...] | None" = field(default=None, init=False, repr=False)

    @property
    def path(self) -> Path:
        """The file, or the first shard: what llama.cpp is given."""
        return self.shards[0].path

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(shard.path for shard in self.shards)

    @property
    def header(self) -> Header:
        """Of the file or the first shard, which has the model's keys."""
        return self.shards[0].header

    @property
    def headers(self) -> tuple[Header, ...]:
        return tuple(shard.header for shard in self.shards)

    @cached_property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Of all files, in order."""
        return tuple(tensor for shard in self.shards for tensor in shard.tensors)

    @property
    def file_bytes(self) -> int:
        """Of all files."""
        return sum(shard.header.file_size for shard in self.shards)

    @cached_property
    def kind(self) -> FileKind:
        """A model, or one of the other things that are kept in this format."""
        return file_kind(self.header)

    @cached_property
    def spec(self) -> ModelSpec:
        """Shape and size, over the tensors of all files.

        Raises:
            FormatError: a key that every model has is missing or of the wrong type.
            UsageError: it is a GGUF of another kind.
        """
        return read_model_spec(self.header, self.tensors)

    @cached_property
    def facts(self) -> ModelFacts:
        """What it is, worked out of the spec: `description` before it is a record.

        Raises:
            As `spec`; FormatError: numbers that no model has.
        """
        return find_facts(
            self.spec,
            files=len(self.shards),
            file_bytes=self.file_bytes,
            license=self.header.metadata.text("general.license"),
            source_name=self.shards[0].source,
        )

    @cached_property
    def description(self) -> "ModelDescription":
        """What it is, as a record to print or to store.

        Raises:
            As `facts`.
        """
        # Records are not on the way of a look at a header.
        describe = import_module("dfqs.model.description").describe_model
        described: ModelDescription = describe(self.facts, self.shards[0].source)
        return described

    @property
    def name(self) -> str:
        """`general.name`, or the file's stem."""
        name = self.header.metadata.text("general.name")
        return printable(name) if name and name.strip() else self.path.stem

    @property
    def label(self) -> str | None:
        """What a demonstration model says of itself, so that nobody takes it for more: shown wherever it runs.

        A model that somebody quantized with dfqs is theirs, and so is its description.
        """
        if not any(key.startswith(_DEMONSTRATION) for key in self.header.metadata):
            return None
        text = self.header.metadata.text("general.description")
        return printable(text, 300) if text else "a demonstration model of dfqs"

    def hashes(self, *, file: bool = True, progress: Progress = no_progress) -> "ModelHashes":
        """The model's identity; its bytes are read once, however often it is asked for.

        Args:
            file: hash the file as it stands too. A set of shards has no such hash, and its content hash is that of
                the merged file.
            progress: in bytes of all files.

        Raises:
            FormatError: a file was cut short meanwhile.
            UsageError: a file cannot be read any more.
        """
        whole = file and len(self.shards) == 1
        if self._parts is None or (whole and self._parts[0].file_sha256 is None):
            self._parts = self._hash_files(file=whole, progress=progress)
        parts = self._parts
        tensors = tuple(tensor for part in parts for tensor in part.tensors)
        only = parts[0].file_sha256 if len(parts) == 1 else None
        hashes = import_module(_HASHES)
        found: ModelHashes = hashes.ModelHashes(self.file_bytes, only, hashes.content_sha256(tensors), tensors)
        return found

    def file_hashes(self, *, experts: bool = False, progress: Progress = no_progress) -> "tuple[ModelHashes, ...]":
        """The identity of each file by itself, its `file_sha256` among it; in order, bytes read once.

        Args:
            experts: hash every expert's slice too.
            progress: in bytes of all files.

        Raises:
            As `hashes`.
        """
        if self._parts is None or experts or any(part.file_sha256 is None for part in self._parts):
            self._parts = self._hash_files(file=True, experts=experts, progress=progress)
        return self._parts

    def _hash_files(self, *, file: bool, experts: bool = False, progress: Progress) -> "tuple[ModelHashes, ...]":
        parts: list[ModelHashes] = []
        for path in self.paths:
            done = sum(part.file_bytes for part in parts)
            told = _beyond(done, self.file_bytes, progress)
            parts.append(import_module(_HASHES).hash_model(path, file=file, experts=experts, progress=told))
        return tuple(parts)

    def require_model(self) -> None:
        """Make sure that it is a model.

        Raises:
            UsageError: it is something else; says what, and what to do.
        """
        require_model(self.header)

    def require_loadable(self) -> None:
        """Make sure that llama.cpp finds the model in these files, and no other.

        Raises:
            UsageError: it is no model.
            ShardError: a whole model calls itself a shard.
        """
        self.require_model()
        if is_whole_model(self.header, self.path):
            raise ShardError(
                f"it holds the whole model and calls itself one of several shards, which llama.cpp would look for; "
                f"{STALE_COUNT_FIX}",
                path=self.path,
                name=SPLIT_COUNT,
            )


def open_model(source: Path | str | ModelFiles) -> ModelFiles:
    """Read the headers of a GGUF file, or of every shard of a set given by its first; a handle is returned as it is.

    Raises:
        UsageError: no such file, not readable, or a later shard given.
        FormatError: not a GGUF file, or cut short.
        ShardError: a shard is missing or not named as llama.cpp looks for it.
    """
    return source if isinstance(source, ModelFiles) else ModelFiles(read_model_shards(Path(source)))


def open_files(paths: Iterable[Path]) -> ModelFiles:
    """Read the headers of exactly these files, which may be some shards of a set.

    Raises:
        UsageError, FormatError: as `open_model`.
    """
    budget = HeaderBudget()
    return ModelFiles(tuple(Shard(str(path), parse_header(path, budget=budget)) for path in paths))


def _beyond(done: int, total: int, progress: Progress) -> Progress:
    """Progress within one file, told as of all of them."""
    return lambda within, _=None, note="": progress(done + within, total, note)
