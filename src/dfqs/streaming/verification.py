"""Bytes that streaming reads, held against a manifest before anything is computed with them.

A manifest made with `dfqs manifest MODEL --experts` has the SHA-256 of every tensor and, computed from the same bytes
in the same pass, that of every expert's slice. What is hashed here is memory, as the computation will read it: the
pages that were brought, and at both ends of a slice the bytes in pages that it shares with its neighbours.
"""

import ctypes
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dfqs.errors import IntegrityError, UsageError, printable
from dfqs.gguf.layout import TensorInfo
from dfqs.gguf.reader import read_header
from dfqs.integrity.manifest import Manifest, manifest_path, read_manifest
from dfqs.model.files import ModelFiles
from dfqs.streaming.layout import PAGE_BYTES, PageRange, StreamLayout
from dfqs.streaming.pages import MappedFiles

SAMPLED = 16
"""Of so many slices and tensors that are read, one is hashed, by chance: at 1 GB/s of disk, 5 % of a core."""

_HASHED_AT_ONCE_BYTES = 16 << 20

CheckMode = Literal["sampled", "all", "off"]
"""How much of what is read is held against a manifest."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a model's bytes have to be; a plain value that crosses to a worker."""

    manifest: str
    """Its path, for messages."""
    tensors: Mapping[str, str]
    """Name -> SHA-256 of all of it."""
    experts: Mapping[str, tuple[str, ...]]
    """Name -> SHA-256 of each expert's slice."""
    one_of: int
    """So many: 1 is all."""


@dataclass(frozen=True, slots=True)
class _Slice:
    tensor: str
    expert: int
    offset: int
    length: int
    sha256: str


def read_recorded(model: ModelFiles, mode: CheckMode | None, manifest: Path | None = None) -> Recorded | None:
    """What a model's manifest says, for `mode`; None where nothing is to be checked.

    Args:
        mode: None: sampled where a manifest with hashes of experts lies beside the model, and else not at all.
        manifest: where it is; beside the model (`MODEL.manifest.json`) where nothing is said.

    Raises:
        UsageError: there is no manifest, or one without hashes of experts, or one of another model.
        FormatError: it is no manifest.
    """
    if mode == "off":
        return None
    path = manifest or manifest_path(model.path)
    if mode is None and manifest is None and not path.is_file():
        return None
    how = f"`dfqs manifest {model.path.name} --experts` makes one"
    if not path.is_file():
        raise UsageError(f"there is no {path} to check what is read against; {how}, or give --manifest")
    found = read_manifest(path)
    experts = {record.name: tuple(record.expert_sha256 or ()) for record in found.tensors if record.expert_sha256}
    if not experts:
        if mode is None and manifest is None:
            return None
        raise UsageError(f"{path} has no hashes of single experts, which is what streaming reads; {how}")
    _require_same_model(model.tensors, found, path)
    rate = 1 if mode == "all" else SAMPLED
    return Recorded(str(path), {record.name: record.sha256 for record in found.tensors}, experts, rate)


def _require_same_model(tensors: Sequence[TensorInfo], manifest: Manifest, path: Path) -> None:
    records = {record.name: record for record in manifest.tensors}
    for tensor in tensors:
        record = records.get(tensor.name)
        if record is None or (record.type, record.bytes) != (tensor.type.name, tensor.length):
            raise UsageError(
                f"{path} is not the manifest of this model: it has no tensor {printable(tensor.name)!r} of "
                f"{tensor.length:,} bytes {tensor.type.name}; give its own (--manifest), or --check off"
            )
        hashes = record.expert_sha256
        if hashes is not None and (len(tensor.shape) != 3 or len(hashes) != tensor.shape[2]):
            raise UsageError(
                f"{path} has {len(hashes):,} hashes of experts for {printable(tensor.name)!r}; make it again"
            )


class SliceCheck:
    """Checks memory in a worker against what is recorded."""

    def __init__(
        self,
        recorded: Recorded,
        layout: StreamLayout,
        files: MappedFiles,
        paths: Sequence[Path],
    ) -> None:
        self.checked = 0
        """Slices and tensors so far."""
        self._recorded = recorded
        self._files = files
        self._paths = paths
        self._random = random.Random()
        self._slices: dict[tuple[int, int], _Slice] = {}
        self._others: list[tuple[int, _Slice]] = []
        streamed = {tensor.name for tensor in layout.tensors}
        for file, header in enumerate(read_header(path) for path in paths):
            for tensor in header.tensors:
                offset = header.span(tensor).offset
                hashes = recorded.experts.get(tensor.name)
                if tensor.name not in streamed or hashes is None:
                    whole = _Slice(tensor.name, -1, offset, tensor.length, recorded.tensors[tensor.name])
                    if tensor.name not in streamed:
                        self._others.append((file, whole))
                    continue
                length = tensor.length // len(hashes)
                for expert, sha256 in enumerate(hashes):
                    start = offset + expert * length
                    page = -(-start // PAGE_BYTES) * PAGE_BYTES
                    self._slices[file, page] = _Slice(tensor.name, expert, start, length, sha256)

    def check_slice(self, pages: PageRange, address: int) -> IntegrityError | None:
        """Hash a slice that was just read, if it is its turn; several threads may.

        Args:
            pages: of the slice, all that it has for itself.
            address: where they are in memory now.
        """
        found = self._slices.get((pages.file, pages.offset))
        if found is None or self._random.randrange(self._recorded.one_of):
            return None
        head, tail = pages.offset - found.offset, found.offset + found.length - pages.offset - pages.length
        base = self._files.bases[pages.file]
        digest = hashlib.sha256(_memory(base + found.offset, head))
        digest.update(_memory(address, pages.length))
        digest.update(_memory(base + pages.offset + pages.length, tail))
        return self._judge(pages.file, found, digest.hexdigest())

    def check_resident(self) -> None:
        """Hash tensors that stay, as many of them as slices: once, when all of them are there.

        Raises:
            IntegrityError: one is not as recorded.
        """
        for file, found in self._others:
            if self._random.randrange(self._recorded.one_of):
                continue
            if (error := self._judge(file, found, self._hash_whole(file, found))) is not None:
                raise error

    def _hash_whole(self, file: int, found: _Slice) -> str:
        """Of a tensor, with the kernel told of each piece before: of a table that is left to the page cache it would
        read page by page."""
        digest = hashlib.sha256()
        pages = found.offset // PAGE_BYTES * PAGE_BYTES
        for piece in PageRange(file, pages, found.offset + found.length - pages).pieces(_HASHED_AT_ONCE_BYTES):
            self._files.want_soon(piece)
            start = max(piece.offset, found.offset)
            digest.update(_memory(self._files.bases[file] + start, piece.offset + piece.length - start))
        return digest.hexdigest()

    def _judge(self, file: int, found: _Slice, sha256: str) -> IntegrityError | None:
        self.checked += 1
        if sha256 == found.sha256:
            return None
        what = f"expert {found.expert} of " if found.expert >= 0 else ""
        return IntegrityError(
            f"{self._paths[file]} at byte {found.offset:,}: the {found.length:,} bytes of {what}"
            f"{printable(found.tensor)} are not those recorded in {self._recorded.manifest}; nothing was computed with "
            "them. Fetch or merge the model again, or find the damage with `dfqs verify --manifest`"
        )


def _memory(address: int, length: int) -> memoryview:
    """Bytes of this process, not copied."""
    return memoryview((ctypes.c_char * length).from_address(address)).cast("B") if length else memoryview(b"")
