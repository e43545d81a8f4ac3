"""Which llama.cpp this user runs: the wheel, a package that was installed, or a build of one's own.

`DFQS_LLAMA_LIBRARY` (a path, the name of an installed package, or `wheel`) goes before what `dfqs runtime use` wrote
down; without either it is the wheel. What was written down holds the hash of every file: a library that has changed
since is refused, not loaded.
"""

import functools
import importlib
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from dfqs.errors import IntegrityError, RuntimeFailure, UsageError
from dfqs.runtime.builds import PACKAGES, WHEEL, Package
from dfqs.storage.cache import NoHome, cache_directory
from dfqs.storage.hashing import hash_file

if TYPE_CHECKING:
    from dfqs.runtime.choosing import RuntimeChoice

PACKAGE = "xllamacpp"
PINNED_VERSION = "2026.10.11549"
LIBRARY_VARIABLE = "DFQS_LLAMA_LIBRARY"
WHEEL_NAME = "wheel"
_SHOWN_DIGITS = 12
_UNKNOWN_RELEASE = "llama.cpp"


@dataclass(frozen=True, slots=True)
class ChosenLibrary:
    """The library that a worker will load."""

    name: str
    """As records state it."""
    release: str
    """Of llama.cpp; without a number where only loading could tell."""
    why: Literal["default", "environment", "chosen"]


def installed_version() -> str:
    """Version of the installed wheel.

    Raises:
        RuntimeFailure: it is not installed.
    """
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeFailure(f"{PACKAGE} is not installed; run: pip install {PACKAGE}=={PINNED_VERSION}") from None


def find_wheel() -> Path:
    """Path of the wheel's shared object, found without importing it.

    Raises:
        RuntimeFailure: the wheel is missing or of another version, or has no shared object.
    """
    version = installed_version()
    if version != PINNED_VERSION:
        raise RuntimeFailure(
            f"{PACKAGE} {version} is installed, but dfqs knows the binary layout of {PINNED_VERSION} only; "
            f"run: pip install {PACKAGE}=={PINNED_VERSION}"
        )
    for file in importlib.metadata.files(PACKAGE) or ():
        if file.match(f"{PACKAGE}/{PACKAGE}*.so"):
            return Path(str(file.locate())).resolve()
    raise RuntimeFailure(f"{PACKAGE} {version} has no shared library in it; reinstall it")


def find_library() -> Path:
    """Path of the library that a worker loads; its files are those that were chosen.

    Raises:
        RuntimeFailure: the wheel is missing or of another version.
        UsageError: `DFQS_LLAMA_LIBRARY` names neither a file nor an installed package.
        IntegrityError: what was chosen is gone or has changed.
    """
    match _named():
        case Package() as package:
            return library_of(package)
        case Path() as path:
            return path
        case None:
            return find_wheel()
        case choice:
            check_files(choice)
            return Path(choice.library)


def chosen_library() -> ChosenLibrary:
    """What the library that `find_library` leads to is called.

    Raises:
        UsageError: as `find_library`.
        RuntimeFailure: the wheel is not installed.
    """
    match _named():
        case Package() as package:
            return ChosenLibrary(package.name, package.build.release, "environment")
        case Path() as path:
            return ChosenLibrary(own_name(path), _UNKNOWN_RELEASE, "environment")
        case None:
            why: Literal["environment", "default"] = "environment" if os.environ.get(LIBRARY_VARIABLE) else "default"
            return ChosenLibrary(f"{PACKAGE} {installed_version()}", WHEEL.release, why)
        case choice:
            return ChosenLibrary(choice.name, choice.release, "chosen")


def _named() -> "Package | Path | RuntimeChoice | None":
    """What the environment names, else what was written down; None: the wheel."""
    named = os.environ.get(LIBRARY_VARIABLE)
    if not named:
        return read_choice()
    if named == WHEEL_NAME:
        return None
    return find_package(named) or find_own_library(Path(named), LIBRARY_VARIABLE)


def runtime_name() -> str:
    """The runtime as a record names it: package and version, or which build stands in for it.

    Raises:
        As `chosen_library`.
    """
    return chosen_library().name


def runtime_and_release() -> str:
    """The release of llama.cpp, with the package or build that carries it.

    Raises:
        As `chosen_library`.
    """
    chosen = chosen_library()
    return f"{chosen.release} ({chosen.name})"


def find_own_library(path: Path, said_by: str) -> Path:
    """The shared object at `path`, which may be the folder of a build.

    Raises:
        UsageError: there is none, or several.
    """
    if path.is_dir():
        found = sorted(path.glob("libllama.so*")) or sorted(path.glob("libllama.v*.so"))
        if not found:
            raise UsageError(f"{said_by} names a folder without libllama.so: {path}")
        return found[0].resolve()
    if not path.is_file():
        raise UsageError(f"{said_by} names no file: {path}")
    return path.resolve()


def read_choice() -> "RuntimeChoice | None":
    """What was written down; None: the wheel.

    Raises:
        FormatError: the file is damaged.
    """
    try:
        path = choice_path()
    except NoHome:
        return None
    if not path.is_file():
        return None
    # Records are checked by a library that a worker without a choice need not load.
    return cast("RuntimeChoice", importlib.import_module("dfqs.runtime.choosing").read_written_choice(path))


def check_files(choice: "RuntimeChoice") -> None:
    """
    Raises:
        IntegrityError: a file is gone or has changed.
    """
    for file in choice.files:
        path = Path(file.path)
        if not path.is_file() or hash_file(path) != file.sha256:
            raise IntegrityError(
                f"{path} of the chosen runtime {choice.name} is {'changed' if path.is_file() else 'gone'}; "
                "run 'dfqs runtime install' or 'dfqs runtime use' again, or 'dfqs runtime use wheel'"
            )


def runtimes_directory() -> Path:
    """Where packages are installed, a folder each."""
    return cache_directory() / "runtimes"


def library_of(package: Package) -> Path:
    """Where the package's library is when it is installed."""
    return runtimes_directory() / package.name / package.library


def find_package(name: str) -> Package | None:
    """A package of that name that is installed."""
    return next((package for package in PACKAGES if package.name == name and library_of(package).is_file()), None)


def choice_path() -> Path:
    """Where the choice is written down."""
    return runtimes_directory() / "chosen.json"


def own_name(path: Path) -> str:
    """What records call a build of one's own."""
    stat = path.stat()
    return f"own build, sha256 {_digest_of(path, stat.st_size, stat.st_mtime_ns)[:_SHOWN_DIGITS]}"


@functools.lru_cache(maxsize=8)
def _digest_of(path: Path, _size: int, _modified_ns: int) -> str:
    return hash_file(path)
