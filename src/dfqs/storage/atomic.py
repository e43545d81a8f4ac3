"""Writes that are whole or not there at all.

A file written here appears under its name only when its bytes are durable: temporary file in the same directory,
fsync, rename, fsync of the directory. After any interruption either the old file, the new file, or nothing is there.
"""

import contextlib
import errno
import glob
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from dfqs.errors import IntegrityError, SpaceError, UsageError
from dfqs.storage.files import open_regular
from dfqs.storage.libc import rename_without_replacing
from dfqs.storage.linux import BINARY, CLOEXEC, DIRECTORY
from dfqs.storage.locks import NoLocks, lock, try_lock

_LONGEST_STEM_BYTES = 200
"""File systems take names of 255 bytes."""
OnWhole = Callable[[int], object]
"""Told the handle of a file whose bytes are durable, before it gets its name."""


def tell_nobody(handle: int) -> None:
    """Nobody is to be told."""


@contextlib.contextmanager
def atomic_writer(path: Path, *, overwrite: bool = False, on_whole: OnWhole = tell_nobody) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and leaves nothing when it does not.

    Raises:
        UsageError: `path` exists and `overwrite` is false (also when it appeared meanwhile), or its directory is
            missing or not writable.
        SpaceError: the disk is full.
    """
    path = Path(path)
    check_output_path(path, overwrite=overwrite)
    remove_abandoned_partials(path)
    with storage_errors(path):
        temporary, handle = create_locked_partial(path)
    try:
        with storage_errors(path), os.fdopen(handle, "w+b") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
            _require_own(temporary, file.fileno())
            on_whole(file.fileno())
            publish_file(temporary, path, overwrite=overwrite)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create_locked_partial(path: Path) -> tuple[Path, int]:
    """A temporary file for `path` that others can tell from an abandoned one, and its handle, which holds the lock."""
    while True:
        temporary = partial_path(path, secrets.token_hex(4))
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | CLOEXEC | BINARY, 0o666)
        try:
            # Where nothing can be locked, nobody takes a partial file for abandoned either.
            with contextlib.suppress(NoLocks):
                lock(handle)
            if os.fstat(handle).st_nlink:
                return temporary, handle
        except BaseException:
            temporary.unlink(missing_ok=True)
            os.close(handle)
            raise
        # Another writer came between making and locking, took it for abandoned and removed it.
        os.close(handle)


def remove_abandoned_partials(path: Path) -> None:
    """Delete what a killed writer of `path` left. A writer that still lives holds a lock on its partial file.

    What is no regular file (a pipe, a link) was not left by a writer, and stays.
    """
    for leftover in partials_of(path):
        with contextlib.suppress(OSError):
            handle = open_regular(leftover)
            try:
                if try_lock(handle):
                    leftover.unlink()
            finally:
                os.close(handle)


def partials_of(path: Path) -> Iterator[Path]:
    """Temporary files of writers of `path`, living or killed."""
    stem = _partial_stem(path.name)
    # A tag has no dot in it: those of `m` are not those of `m.gguf`.
    return (
        found
        for found in path.parent.glob(f".{glob.escape(stem)}.*.partial")
        if "." not in found.name[len(stem) + 2 : -len(".partial")]
    )


def partial_path(path: Path, tag: str) -> Path:
    """The name beside `path` of a temporary file for it.

    Args:
        tag: at most 16 characters, none of them a dot; tells those of one path apart.
    """
    return path.with_name(f".{_partial_stem(path.name)}.{tag}.partial")


def _partial_stem(name: str) -> str:
    """A name; of one so long that what is put around it would not fit, the beginning, and a hash of all of it."""
    if len(os.fsencode(name)) <= _LONGEST_STEM_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    short = name
    while len(os.fsencode(short)) + len(digest) + 1 > _LONGEST_STEM_BYTES:
        short = short[:-1]
    return f"{short}-{digest}"


def _require_own(temporary: Path, handle: int) -> None:
    """Raises IntegrityError when the file that was written has lost its temporary name to another."""
    try:
        named = temporary.lstat()
    except FileNotFoundError:
        named = None
    written = os.fstat(handle)
    if named is None or (named.st_dev, named.st_ino) != (written.st_dev, written.st_ino):
        raise IntegrityError(f"{temporary} was removed or replaced while it was written; run this again")


def publish_file(temporary: Path, path: Path, *, overwrite: bool = False, durable: bool = True) -> None:
    """Rename a durable temporary file to its final name, and make the name durable.

    Args:
        durable: when false, the caller makes the name durable later (`fsync_directory`).

    Raises:
        UsageError: `path` exists and `overwrite` is false. The check and the rename are one step.
    """
    if overwrite:
        temporary.replace(path)
    else:
        _rename_without_replacing(temporary, path)
    if durable:
        fsync_directory(path.parent)


def write_bytes_atomic(path: Path, data: bytes, *, overwrite: bool = False, on_whole: OnWhole = tell_nobody) -> None:
    """Write `data` whole or not at all.

    Args:
        on_whole: as `atomic_writer` has it.
    """
    with atomic_writer(path, overwrite=overwrite, on_whole=on_whole) as file:
        file.write(data)


def check_output_path(path: Path, *, overwrite: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output before work is spent on it.

    Args:
        inputs: what the work reads; none of it is ever replaced, under whatever name it is given.

    Raises:
        UsageError: it is one of `inputs`, it exists (and `overwrite` is false), is a directory, a pipe or a device, or
            its directory is missing or closed to us.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name the file to write")
    source = find_same_file(path, inputs)
    if source is not None:
        raise UsageError(f"{path} is both input and output ({source}); choose another name for the output")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is a pipe, a socket or a device; name a file to write")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise UsageError(f"{path} exists already and is not replaced; choose another name or remove it first")
    if not path.parent.is_dir():
        raise UsageError(f"no such directory: {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"no permission to write in {path.parent}")


def find_same_file(path: Path, others: Iterable[Path]) -> Path | None:
    """The first of `others` that is the file at `path`, through links of either kind; None where there is none."""
    for other in others:
        with contextlib.suppress(OSError):  # One of the two is not there.
            if path.samefile(other):
                return other
    return None


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing `path` into sentences.

    Raises:
        SpaceError: no space or quota left.
        UsageError: no permission, or a read-only file system.
        OSError: others, with the path of what was written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(f"the disk is full: {path} could not be written; free some space and try again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(f"no permission to write {path} ({error.strerror})") from error
        error.filename = error.filename or str(path)
        raise


def fsync_directory(directory: Path) -> None:
    """Make names in `directory` durable."""
    if DIRECTORY is None:
        return
    handle = os.open(directory, os.O_RDONLY | DIRECTORY | CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename_without_replacing(source: Path, destination: Path) -> None:
    """In one step with the check, or link and unlink where there is no such step."""
    try:
        try:
            rename_without_replacing(source, destination)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            os.link(source, destination)
            source.unlink()
    except FileExistsError:
        raise UsageError(f"{destination} appeared while it was being written; it is left as it is") from None
