"""GGUF files on this machine: where they are, which are the same model, and what copies cost. Changes nothing.

Cheap first: directories are walked, headers read, a few samples of each tensor compared. Only models that agree in all
of that are read whole, and only the content hash says that they are the same. Links cost nothing and are told apart
from copies by their inodes.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import DfqsError
from dfqs.gguf import FileSource, parse_header
from dfqs.gguf.layout import MAGIC, squeeze_shape
from dfqs.gguf.shard_names import parse_shard_name
from dfqs.integrity import Severity, verify_structure
from dfqs.model.files import ModelFiles, open_files
from dfqs.progress import Progress, no_progress
from dfqs.storage.cache import home_directory
from dfqs.storage.documents import parse_json, read_bounded

SAMPLE_BYTES = 256
SAMPLED_TENSORS = 64
_BLOB_PREFIX = "sha256-"
"""Ollama's blobs have no suffix."""
_OLLAMA_MANIFEST_LIMIT_BYTES = 1 << 20
_PROVENANCE = re.compile(
    # Who made it, of what, under which name, and how its bytes are laid out: of no effect when it is used.
    r"general\.(?!architecture$|type$|file_type$|quantization_version$|sampling\.)|split\.|dfqs\.|quantize\.imatrix\."
)
_PREVENTS_LOADING = frozenset(
    {
        *("key-type", "key-value", "key-size", "truncated", "overlap", "gap", "misaligned", "concatenated"),
        *("shard", "shard-keys"),
    }
)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file, however many names it has."""

    path: Path
    """The name it was found under first, one that ends in .gguf where there is one."""
    names: tuple[Path, ...]
    """All names: hard links, and symbolic links that lead to it."""
    file_bytes: int
    disk_bytes: int
    """What it takes on the disk; less than `file_bytes` where it has holes."""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model in one place: a file, or a set of shards."""

    name: str
    files: tuple[FoundFile, ...]
    complete: bool
    """Every shard of the set is there."""
    tensors: int
    fingerprint: str | None
    """Of names, types, shapes and samples of the bytes; None when the headers cannot be read."""
    problem: str | None
    """Why not."""

    @property
    def file_bytes(self) -> int:
        return sum(file.file_bytes for file in self.files)

    @property
    def disk_bytes(self) -> int:
        return sum(file.disk_bytes for file in self.files)


def taken_bytes(models: Iterable[FoundModel]) -> int:
    """Disk space of some models; a file that several share counts once."""
    return sum({file.path: file.disk_bytes for model in models for file in model.files}.values())


@dataclass(frozen=True, slots=True)
class SameModel:
    """One model in several places: the same tensors, and the same keys but for names and provenance."""

    models: tuple[FoundModel, ...]
    content_sha256: str | None
    """Equal for all of them; None when only samples were compared."""
    defects: tuple[str | None, ...]
    """For each: why llama.cpp does not load it; None where nothing speaks against it."""

    @property
    def freeable_bytes(self) -> int:
        """What keeping one of the copies would free: one that loads, and of those the largest on disk, so as not to
        promise too much. Nothing where none loads."""
        pairs = zip(self.models, self.defects, strict=True)
        kept = [model.disk_bytes for model, defect in pairs if defect is None]
        return taken_bytes(self.models) - max(kept) if kept else 0


@dataclass(frozen=True, slots=True)
class SameTensors:
    """Models of the same tensors that differ in keys which matter (a chat template, a tokenizer): no copies."""

    models: tuple[FoundModel, ...]
    content_sha256: str | None
    keys: tuple[str, ...]
    """Those that are not the same in all of them."""


@dataclass(frozen=True, slots=True)
class FindResult:
    """What was found."""

    searched: tuple[Path, ...]
    models: tuple[FoundModel, ...]
    same: tuple[SameModel, ...]
    same_tensors: tuple[SameTensors, ...]
    unreadable: tuple[Path, ...]
    """Directories that may not be looked into."""

    @property
    def freeable_bytes(self) -> int:
        return sum(group.freeable_bytes for group in self.same)


def usual_directories() -> tuple[Path, ...]:
    """Where the systems that people use keep models, those that exist."""
    home = home_directory("", "name a folder to look in")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub_home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    candidates = [
        Path(os.environ.get("HF_HUB_CACHE") or hub_home / "hub"),
        Path(os.environ.get("OLLAMA_MODELS") or home / ".ollama" / "models"),
        Path("/usr/share/ollama/.ollama/models"),
        home / ".lmstudio" / "models",
        cache / "lm-studio" / "models",
        Path(os.environ.get("LLAMA_CACHE") or cache / "llama.cpp"),
        home / ".local" / "share" / "nomic.ai" / "GPT4All",
        home / "jan" / "models",
        home / "text-generation-webui" / "models",
    ]
    return tuple(path for path in candidates if path.is_dir())


def find_models(
    directories: Sequence[Path], *, hash_candidates: bool = True, progress: Progress = no_progress
) -> FindResult:
    """Look for models, and for the same model in several places.

    Args:
        hash_candidates: read models whose headers and samples agree whole, to be sure; False takes samples' word.
        progress: in bytes hashed.
    """
    unreadable: list[Path] = []
    files = _distinct_files(_walk(directories, unreadable))
    ollama_names = _ollama_names({file.path.parent for file in files if file.path.name.startswith(_BLOB_PREFIX)})
    models = tuple(_describe(group, ollama_names) for group in _sets(files))
    groups: dict[str, list[FoundModel]] = {}
    for model in models:
        # Vocabulary files have no tensors, and then nothing that could tell them apart.
        if model.fingerprint is not None and model.complete and model.tensors:
            groups.setdefault(model.fingerprint, []).append(model)
    candidates = [group for group in groups.values() if len(group) > 1]
    same: list[SameModel] = []
    same_tensors: list[SameTensors] = []
    total = sum(model.file_bytes for group in candidates for model in group)
    done = 0
    for group in candidates:
        by_content: dict[str | None, list[FoundModel]] = {} if hash_candidates else {None: group}
        for model in group if hash_candidates else ():
            content = _content_of(model)
            done += model.file_bytes
            progress(done, total, model.name)
            if content is not None:
                by_content.setdefault(content, []).append(model)
        for content, members in by_content.items():
            if len(members) > 1:
                _tell_apart(members, content, same, same_tensors)
    return FindResult(tuple(directories), models, tuple(same), tuple(same_tensors), tuple(unreadable))


def _tell_apart(
    models: Sequence[FoundModel], content: str | None, same: list[SameModel], same_tensors: list[SameTensors]
) -> None:
    """Sort models of the same tensors by their keys."""
    by_keys: dict[tuple[tuple[str, str], ...], list[FoundModel]] = {}
    for model in models:
        with contextlib.suppress(DfqsError):
            by_keys.setdefault(tuple(sorted(_key_hashes(model).items())), []).append(model)
    for members in by_keys.values():
        if len(members) > 1:
            same.append(SameModel(tuple(members), content, tuple(_defect(model) for model in members)))
    if len(by_keys) > 1:
        items = [frozenset(keys) for keys in by_keys]
        common = items[0].intersection(*items[1:])
        differing = sorted({name for keys in items for name, _ in keys - common})
        one_of_each = tuple(members[0] for members in by_keys.values())
        same_tensors.append(SameTensors(one_of_each, content, tuple(differing)))


def _key_hashes(model: FoundModel) -> dict[str, str]:
    """Hash of the type and value of each key that makes a difference when the model is used."""
    header = parse_header(model.files[0].path)
    hashes = {}
    for entry in header.entries:
        if not _PROVENANCE.match(entry.name):
            value = f"{entry.type_name} {entry.count} ".encode() + header.metadata.value_bytes(entry.name)
            hashes[entry.name] = hashlib.sha256(value).hexdigest()
    return hashes


def _defect(model: FoundModel) -> str | None:
    """Why llama.cpp does not load a model; None where nothing speaks against it."""
    try:
        findings = verify_structure(model.files[0].path).findings
    except DfqsError as error:
        return str(error)
    for finding in findings:
        if finding.severity is Severity.ERROR and finding.code in _PREVENTS_LOADING:
            return f"{finding.name}: {finding.message}" if finding.name else finding.message
    return None


def _walk(directories: Iterable[Path], unreadable: list[Path]) -> Iterator[Path]:
    """Names that may be GGUF files. Symbolic links to files are followed, to directories not, so there are no loops."""
    for directory in directories:
        for base, folders, names in os.walk(directory, onerror=lambda error: unreadable.append(Path(error.filename))):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith(".gguf") or name.startswith(_BLOB_PREFIX):
                    yield Path(base) / name


def _distinct_files(paths: Iterable[Path]) -> list[FoundFile]:
    """One entry for each inode that begins as GGUF, with all its names."""
    names: dict[tuple[int, int], list[Path]] = {}
    states: dict[tuple[int, int], os.stat_result] = {}
    for path in paths:
        try:
            state = path.stat()
            if not path.is_file() or not _is_gguf(path):
                continue
        except OSError:
            # A link to nowhere, a file that may not be read or went away meanwhile.
            continue
        key = (state.st_dev, state.st_ino)
        states[key] = state
        if path not in names.setdefault(key, []):
            names[key].append(path)
    found = []
    for key, its in names.items():
        # A name ending in .gguf says more than the blob it leads to, and keeps a set of shards together.
        named = sorted(its, key=lambda path: not path.name.lower().endswith(".gguf"))
        found.append(FoundFile(named[0], tuple(its), states[key].st_size, states[key].st_blocks * 512))
    return found


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _sets(files: Sequence[FoundFile]) -> Iterator[tuple[FoundFile, ...]]:
    """Shards of one set together, other files alone."""
    # By the names that are there: one name may claim 9,999,999,999 shards. A shard can be in several sets: revisions in
    # the Hub's cache share the blobs that did not change.
    sets: dict[tuple[Path, str, int], dict[int, FoundFile]] = {}
    for file in files:
        shards = [(path.parent, name) for path in file.names if (name := parse_shard_name(path.name)) is not None]
        if not shards:
            yield (file,)
        for folder, name in shards:
            sets.setdefault((folder, name.prefix, name.count), {})[name.number] = file
    seen: set[tuple[Path, ...]] = set()
    for members in sets.values():
        found = tuple(members[number] for number in sorted(members))
        # The same files under other names are no second set.
        if (paths := tuple(file.path for file in found)) not in seen:
            seen.add(paths)
            yield found


def _describe(files: tuple[FoundFile, ...], ollama_names: Mapping[Path, str]) -> FoundModel:
    first = files[0]
    shard = parse_shard_name(first.path.name)
    complete = shard is None or len(files) == shard.count
    name = f"{shard.prefix} ({len(files)} of {shard.count} shards)" if shard else ollama_names.get(first.path)
    name = name or first.path.name
    try:
        model = open_files(file.path for file in files)
        for part in model.shards:
            end = max((part.header.span(tensor).end for tensor in part.tensors), default=0)
            if (missing := end - part.header.file_size) > 0:
                return FoundModel(name, files, complete, 0, None, f"{part.path.name} ends {missing:,} bytes too soon")
        fingerprint = _fingerprint(model)
    except DfqsError as error:
        return FoundModel(name, files, complete, 0, None, str(error))
    return FoundModel(name, files, complete, len(model.tensors), fingerprint, None)


def _ollama_names(folders: Iterable[Path]) -> dict[Path, str]:
    """What Ollama calls the blobs of these folders (`llama3:8b`), from the manifests beside them. Its manifests are
    `manifests/HOST/NAMESPACE/NAME/TAG`, JSON with a digest for each layer."""
    names: dict[Path, str] = {}
    for folder in folders:
        for base, _, tags in os.walk(folder.parent / "manifests"):
            for tag in sorted(tags):
                with contextlib.suppress(OSError, DfqsError, TypeError, AttributeError):
                    path = Path(base, tag)
                    manifest = parse_json(read_bounded(path, _OLLAMA_MANIFEST_LIMIT_BYTES))
                    for layer in manifest.get("layers") or ():
                        blob = folder / layer.get("digest", "").replace(":", "-", 1)
                        names.setdefault(blob, f"{path.parent.name}:{tag}")
    return names


def _fingerprint(model: ModelFiles) -> str:
    """Hash of what tensors there are and of samples of their bytes: the same for a file and for its shards."""
    lines = []
    places = sorted(
        ((tensor.name, shard, tensor) for shard in model.shards for tensor in shard.tensors),
        key=lambda place: place[0],
    )
    step = max(len(places) // SAMPLED_TENSORS, 1)
    for index, (name, shard, tensor) in enumerate(places):
        sample = b""
        if index % step == 0:
            with FileSource(shard.path) as source:
                middle = shard.header.span(tensor).offset + max(tensor.length - SAMPLE_BYTES, 0) // 2
                sample = source.read_at(middle, min(SAMPLE_BYTES, tensor.length))
        lines.append(f"{name!r} {tensor.type.name} {list(squeeze_shape(tensor.shape))} {sample.hex()}\n")
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _content_of(model: FoundModel) -> str | None:
    """The content hash of a file or of a set of shards; None when it cannot be read."""
    try:
        return open_files(file.path for file in model.files).hashes(file=False).content_sha256
    except DfqsError:
        return None
