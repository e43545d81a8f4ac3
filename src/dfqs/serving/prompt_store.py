"""What a model computed of prompts, kept on disk: a file for each slot of a server.

A file is what llama-server writes of a slot (its tokens, then the caches' bytes), and behind it a line of ours: how
long that is, its SHA-256, whose it is (model, llama.cpp and settings, as one hash), and a seal of this user on this
machine, so that nothing that came with a folder, and nothing that was cut off, is given to llama.cpp to read.
"""

import contextlib
import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dfqs.errors import DfqsError, IntegrityError, UsageError
from dfqs.storage.atomic import atomic_writer, remove_abandoned_partials
from dfqs.storage.files import open_own
from dfqs.storage.lines import decode_line, encode_line, is_whole
from dfqs.storage.locks import open_locked
from dfqs.storage.seal import Sealer
from dfqs.storage.space import require_space
from dfqs.units import format_bytes

FORM = 1
"""Of the line; another number for another meaning."""
_NAME = re.compile(r"[0-9a-f]{16}-\d{1,2}\.prompt")
_HEAD = struct.Struct("<III")
"""Magic, version, number of integers that follow (llama.cpp, `llama_state_seq_save_file`)."""
_MAGIC = 0x67677371
_PACKED = struct.Struct("<iII")
"""Of llama-server's own form of tokens: a mark, a version, how many tokens follow (`server_tokens::serialize`)."""
_MARK = -1
_TOKENS_LIMIT = 1 << 24
_LINE_LIMIT_BYTES = 1 << 10
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class KeptPrompt:
    """One file that is whole and ours."""

    path: Path
    slot: int
    tokens: int


@dataclass(slots=True)
class PromptStore:
    """A directory of kept prompts. For a `with` block, in which nobody else keeps prompts of the same model there.

    Args:
        directory: made where it is missing; this user's alone.
        owner: hash of model, llama.cpp and settings; what was kept by another is not restored.
        limit_bytes: of all kept prompts in it, whosever; the oldest make room.
    """

    directory: Path
    owner: str
    limit_bytes: int
    _sealer: Sealer = field(default_factory=lambda: Sealer("kept prompt"))
    _lock: int | None = None

    def __enter__(self) -> "PromptStore":
        """
        Raises:
            UsageError: the directory cannot be had, is another's or open to others, or is in use.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.directory.stat()
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise UsageError(
                    f"{self.directory} is another user's, or others may write in it; prompts are not kept there"
                )
            self._lock = open_locked(
                self.directory / f"{self._prefix}.lock", f"{self.directory} is used by another server of this model"
            )
        except OSError as error:
            raise UsageError(f"{self.directory} cannot keep prompts: {error.strerror}") from None
        for left in self.directory.glob(f"{self._prefix}-*.save"):
            # Of one that was killed: the lock is ours.
            left.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def name_for_saving(self, slot: int) -> str:
        """Of the file that llama-server is to write of a slot, in the directory."""
        return f"{self._prefix}-{slot}.save"

    def keep(self, slot: int, tokens: int | None) -> int:
        """Take over what llama-server wrote of a slot.

        Args:
            tokens: of its beginning; llama.cpp forgets the rest when it is read. None: all.

        Returns:
            Tokens that are kept; 0: none, they are too many for the limit.

        Raises:
            IntegrityError: llama-server wrote something else.
            UsageError, SpaceError: the disk refuses.
        """
        source = self.directory / self.name_for_saving(slot)
        target = self.directory / f"{self._prefix}-{slot}.prompt"
        try:
            with open(open_own(source, os.O_RDONLY), "rb") as file:
                head, count = _read_head(file, source, tokens)
                size = len(head) + os.fstat(file.fileno()).st_size - file.tell()
                if not self._make_room(target, size + _LINE_LIMIT_BYTES):
                    return 0
                remove_abandoned_partials(target)
                require_space(self.directory, size + _LINE_LIMIT_BYTES, "give prompts less room, or another disk")
                self._write(target, file, head, count)
            return count
        finally:
            source.unlink(missing_ok=True)

    def _write(self, target: Path, source: BinaryIO, head: bytes, tokens: int) -> None:
        digest, size = hashlib.sha256(head), len(head)
        with atomic_writer(target, overwrite=True) as out:
            out.write(head)
            while piece := source.read(_PIECE_BYTES):
                digest.update(piece)
                out.write(piece)
                size += len(piece)
            record = {
                "form": FORM,
                "owner": self.owner,
                "tokens": tokens,
                "bytes": size,
                "sha256": digest.hexdigest(),
            }
            line, _ = encode_line(record, sealer=self._sealer)
            out.write(b"\n" + line)

    def read(self) -> Iterator[KeptPrompt | str]:
        """Kept prompts of this owner, and a sentence for each file that stands in the place of one and is none."""
        for path in sorted(self.directory.glob(f"{self._prefix}-*.prompt")):
            if not _NAME.fullmatch(path.name):
                continue
            try:
                yield KeptPrompt(path, int(path.stem.rpartition("-")[2]), self._check(path))
            except (DfqsError, OSError, ValueError, KeyError, TypeError) as error:
                why = error.sentence if isinstance(error, DfqsError) else str(error)
                yield f"{path} is left alone, and its prompt is computed again: {why}"

    def kept_bytes(self) -> int:
        """What all kept prompts take, whosever."""
        return sum(size for _, size, _ in self._files())

    @property
    def _prefix(self) -> str:
        return self.owner[:16]

    def _check(self, path: Path) -> int:
        with open(open_own(path, os.O_RDONLY), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _LINE_LIMIT_BYTES))
            # The last line, with the end of the bytes before it.
            line = file.read().removesuffix(b"\n").rpartition(b"\n")[2] + b"\n"
            if not is_whole(line):
                raise IntegrityError("it was cut off, or is no kept prompt")
            record, seal, text = decode_line(line, path, "kept prompt", sealed=True)
            if not self._sealer.is_sealed(text, seal) or record["form"] != FORM:
                raise IntegrityError("this user's dfqs did not write it on this machine")
            if record["owner"] != self.owner:
                raise IntegrityError("it is of another model, or of other settings")
            if record["bytes"] != size - len(line) - 1:
                raise IntegrityError("it is longer or shorter than it was written")
            file.seek(0)
            digest, left = hashlib.sha256(), int(record["bytes"])
            while left and (piece := file.read(min(left, _PIECE_BYTES))):
                digest.update(piece)
                left -= len(piece)
            if digest.hexdigest() != record["sha256"]:
                raise IntegrityError("its bytes are not those that were written")
            return int(record["tokens"])

    def _make_room(self, target: Path, needed_bytes: int) -> bool:
        if needed_bytes > self.limit_bytes:
            return False
        others = sorted((age, size, path) for age, size, path in self._files() if path != target)
        total = sum(size for _, size, _ in others)
        for _, size, path in others:
            if total + needed_bytes <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        return True

    def _files(self) -> list[tuple[float, int, Path]]:
        """Age, size and path of everything that is named like a kept prompt."""
        found = []
        for path in self.directory.glob("*.prompt"):
            with contextlib.suppress(OSError):
                state = path.lstat()
                if _NAME.fullmatch(path.name) and stat.S_ISREG(state.st_mode):
                    found.append((state.st_mtime, state.st_size, path))
        return found


def describe_room(store: PromptStore) -> str:
    """For people."""
    return f"{format_bytes(store.kept_bytes())} of {format_bytes(store.limit_bytes)} in {store.directory}"


def _read_head(file: BinaryIO, path: Path, wanted: int | None) -> tuple[bytes, int]:
    """A head with the first `wanted` tokens in place of the one at the start of `file`, which is then behind that; and
    how many tokens they are.

    llama-server reads a plain list of tokens as well as its own form.
    """
    broken = IntegrityError(f"{path} is not what llama-server writes of a prompt")
    data = file.read(_HEAD.size)
    if len(data) < _HEAD.size:
        raise broken
    magic, version, count = _HEAD.unpack(data)
    if magic != _MAGIC or not 3 < count <= _TOKENS_LIMIT:
        raise broken
    packed = file.read(4 * count)
    if len(packed) < 4 * count:
        raise broken
    mark, _, length = _PACKED.unpack_from(packed)
    media = packed[_PACKED.size + 4 * length : _PACKED.size + 4 * length + 4]
    if mark != _MARK or media != bytes(4):
        raise broken
    kept = length if wanted is None else min(wanted, length)
    tokens = packed[_PACKED.size : _PACKED.size + 4 * kept]
    return _HEAD.pack(magic, version, kept) + tokens, kept
