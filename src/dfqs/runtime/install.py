"""Fetches a prebuilt llama.cpp from a public registry: one archive, pinned by hash, of which known files are kept.

Nothing of the archive is run or installed by its own means. It is checked before it is opened, and only the files that
`dfqs.runtime.builds` names are taken out, each held against its own hash.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import BinaryIO

import httpx

from dfqs.errors import FormatError, IntegrityError, NetworkError, UsageError
from dfqs.progress import Progress, no_progress
from dfqs.runtime.builds import REGISTRY, Package
from dfqs.runtime.choice import library_of, runtimes_directory
from dfqs.runtime.choosing import choose_package
from dfqs.storage.atomic import fsync_directory, storage_errors
from dfqs.storage.cache import cache_lock

_PARTIAL = ".partial-"
_PIECE_BYTES = 1 << 18
_TIMEOUT_S = 30.0


def why_not_here(package: Package) -> str | None:
    """Why a package cannot run on this machine; None where it can."""
    system, machine = platform.system(), platform.machine()
    if (system, machine) != (package.system, package.machine):
        return f"it is for {package.system} on {package.machine}, and this is {system} on {machine}"
    name, version = platform.libc_ver()
    wanted = ".".join(map(str, package.glibc))
    if name != "glibc":
        return f"it needs glibc {wanted}, and this system has another C library"
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < package.glibc:
        return f"it needs glibc {wanted}, and this system has {version}"
    return None


def install_package(
    package: Package, archive: Path | None = None, registry: str = REGISTRY, progress: Progress = no_progress
) -> Path:
    """Install a package for this user; what is installed already is checked and kept.

    Args:
        archive: the archive, fetched by other means; None: it is fetched from `registry`.
        progress: in bytes of the archive.

    Returns:
        The library's path.

    Raises:
        UsageError: it cannot run here, or the cache cannot be written.
        NetworkError: the registry cannot be reached, or answers with something else.
        IntegrityError: the archive is not the one that was pinned.
        SpaceError: the disk is full.
    """
    reason = why_not_here(package)
    if reason is not None:
        raise UsageError(
            f"{package.name} cannot run here: {reason}; build llama.cpp yourself and name it with --library"
        )
    directory = runtimes_directory()
    with cache_lock("runtimes"), storage_errors(directory):
        directory.mkdir(exist_ok=True)
        for leftover in directory.glob(f"{_PARTIAL}*"):
            # We hold the lock, so whoever made it is dead.
            shutil.rmtree(leftover, ignore_errors=True)
        with contextlib.suppress(IntegrityError):
            choose_package(package)
            return library_of(package)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=directory))
        try:
            _fill(partial, package, archive, registry, progress)
            final = library_of(package).parent
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            fsync_directory(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return library_of(package)


def _fill(partial: Path, package: Package, archive: Path | None, registry: str, progress: Progress) -> None:
    if archive is None:
        archive = partial / "archive.tgz"
        with open(archive, "xb") as file:
            _fetch(f"{registry.rstrip('/')}/{package.archive}", package.archive_bytes, file, progress)
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha512").hexdigest()
        if digest != package.archive_sha512:
            raise IntegrityError(
                f"{archive.name} is not {package.name}: its SHA-512 is {digest[:16]}..., not the pinned one"
            )
        file.seek(0)
        _take_out(file, partial, package)
    (partial / "archive.tgz").unlink(missing_ok=True)
    fsync_directory(partial)


def _fetch(url: str, size: int, file: BinaryIO, progress: Progress) -> None:
    done = 0
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT_S) as response:
            if response.status_code != httpx.codes.OK:
                raise NetworkError(
                    f"{url} answered {response.status_code}; try again, or fetch it and name it with --archive"
                )
            for piece in response.iter_bytes(_PIECE_BYTES):
                done += len(piece)
                if done > size:
                    break
                file.write(piece)
                progress(done, size)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NetworkError(
            f"{url} cannot be fetched: {error}; or fetch it elsewhere and name it with --archive"
        ) from None
    if done != size:
        raise NetworkError(f"{url} is not of {size:,} bytes as the pinned archive is; try again")


def _take_out(archive: BinaryIO, folder: Path, package: Package) -> None:
    """Only regular files whose whole names are known; nothing is taken from the archive but their bytes."""
    wanted = {f"{package.folder}/{name}": (name, digest) for name, digest in package.files}
    licences = dict(package.licences)
    try:
        with tarfile.open(fileobj=archive, mode="r|gz") as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                if source is None:
                    continue
                data = source.read() if member.name in wanted or member.name in licences else b""
                if member.name in wanted:
                    name, digest = wanted.pop(member.name)
                    if hashlib.sha256(data).hexdigest() != digest:
                        raise IntegrityError(f"{name} in the archive is not the pinned one")
                    _write(folder / name, data)
                elif member.name in licences:
                    _write(folder / licences[member.name], data)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise FormatError(f"the archive of {package.name} cannot be read: {error}") from None
    if wanted:
        raise IntegrityError(f"the archive of {package.name} lacks {', '.join(name for name, _ in wanted.values())}")


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
