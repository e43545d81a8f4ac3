"""What `runtime` prints."""

from dataclasses import asdict
from typing import Literal

from pydantic import Field

from dfqs.records import Document, Record, Text
from dfqs.runtime.builds import PACKAGES, Package
from dfqs.runtime.choice import ChosenLibrary, find_package
from dfqs.runtime.features import RuntimeFacts
from dfqs.runtime.install import why_not_here


class RuntimePackage(Record):
    """A prebuilt llama.cpp that `dfqs runtime install` knows."""

    name: str
    release: str
    about: str
    download_bytes: int
    installed: bool
    blocked: Text | None
    """Why it cannot run here; null where it can."""

    @classmethod
    def of(cls, package: Package) -> "RuntimePackage":
        return cls(
            name=package.name,
            release=package.build.release,
            about=package.about,
            download_bytes=package.archive_bytes,
            installed=find_package(package.name) is not None,
            blocked=why_not_here(package),
        )


class RuntimeDocument(Document):
    """The llama.cpp in use, and those that could be."""

    schema_: Literal["dfqs.runtime/1"] = Field(default="dfqs.runtime/1", alias="schema")
    name: Text
    why: Literal["default", "environment", "chosen"]
    """The wheel by default, DFQS_LLAMA_LIBRARY, or what `dfqs runtime use` wrote down."""
    library: Text
    release: str
    llama_version: Text
    ggml_version: Text
    features: tuple[str, ...]
    """Of processors, that this build uses."""
    unused: tuple[str, ...]
    """That this machine has and this build leaves unused."""
    openmp: bool
    server: str
    """The runtime that answers for `dfqs serve`: always the wheel's."""
    packages: tuple[RuntimePackage, ...]

    @classmethod
    def of(cls, chosen: ChosenLibrary, facts: RuntimeFacts, server: str) -> "RuntimeDocument":
        """What was chosen, and what it said of itself."""
        packages = tuple(RuntimePackage.of(package) for package in PACKAGES)
        return cls(name=chosen.name, why=chosen.why, server=server, packages=packages, **asdict(facts))
