"""What `dfqs runtime use` writes down of a library: its files, and what they held."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.records import Document, Record, Sha256, Text, read_json, write_json
from dfqs.runtime.builds import Package
from dfqs.runtime.choice import check_files, choice_path, library_of, own_name
from dfqs.storage.cache import cache_lock
from dfqs.storage.hashing import hash_file


class LibraryFile(Record):
    """A file of a library, and what it held when it was chosen."""

    path: Text
    sha256: Sha256


class RuntimeChoice(Document):
    """What `dfqs runtime use` wrote down."""

    schema_: Literal["dfqs.runtime-choice/1"] = Field(default="dfqs.runtime-choice/1", alias="schema")
    name: Text
    release: Text
    library: Text
    files: tuple[LibraryFile, ...] = Field(min_length=1)


def read_written_choice(path: Path) -> RuntimeChoice:
    """Raises FormatError where the file is damaged."""
    return read_json(path, RuntimeChoice)


def write_choice(choice: RuntimeChoice | None) -> None:
    """Write down what is used from now on; None: the wheel.

    Raises:
        UsageError: the cache's directory cannot be written.
    """
    with cache_lock("runtimes"):
        if choice is None:
            choice_path().unlink(missing_ok=True)
            return
        choice_path().parent.mkdir(exist_ok=True)
        write_json(choice_path(), choice, overwrite=True)


def choose_package(package: Package) -> RuntimeChoice:
    """The record of an installed package.

    Raises:
        IntegrityError: a file of it is missing, or is not what was pinned.
    """
    folder = library_of(package).parent
    files = tuple(LibraryFile(path=str(folder / name), sha256=digest) for name, digest in package.files)
    library = str(library_of(package))
    choice = RuntimeChoice(name=package.name, release=package.build.release, library=library, files=files)
    check_files(choice)
    return choice


def choose_own(library: Path, release: str) -> RuntimeChoice:
    """The record of a build of one's own: the library, and what lies beside it of ggml."""
    beside = [path.resolve() for path in library.parent.glob("libggml*.so*")]
    files = tuple(LibraryFile(path=str(path), sha256=hash_file(path)) for path in sorted({library, *beside}))
    return RuntimeChoice(name=own_name(library), release=release, library=str(library), files=files)
