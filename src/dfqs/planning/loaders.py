"""Which other programs load a file, by what they are known to ask of its header. Pure; nobody is asked.

The table is `loaders.toml`. Only what is known counts: a key that a program refuses a file without and that is not
there is a reason to say FAILED. Where nothing is missing, whether it loads is still not known: nobody asked it.
"""

from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Literal

from dfqs.errors import printable
from dfqs.gguf.layout import TensorInfo
from dfqs.gguf.reader import Header
from dfqs.records import Record, Text

_NAMED = 3
"""So many missing names are told one by one."""


class LoaderVerdict(Record):
    """Whether a program loads the file, and how that is known."""

    loader: Text
    verdict: Literal["PASSED", "FAILED", "UNKNOWN"]
    asked: bool
    """The program itself was asked; otherwise it is by keys and tensor names that it is known to need."""
    evidence: Text
    source: Text | None
    """Where what it needs was read."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a program needs of a file of one architecture."""

    keys: tuple[str, ...]
    tensors: tuple[str, ...]
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loader:
    """One program of the table."""

    name: str
    source: str
    architectures: tuple[str, ...] | None
    """All that it loads; None: not known."""
    lacks: tuple[str, ...]
    """Architectures that it is known not to load."""
    needs: dict[str, Needs]
    """By architecture."""


@cache
def known_loaders() -> tuple[Loader, ...]:
    """The table."""
    # A document that a table has no part in names the verdict's form alone.
    text = import_module("importlib.resources").files("dfqs.planning").joinpath("loaders.toml").read_text("utf-8")
    return tuple(_loader(row) for row in import_module("tomllib").loads(text)["loader"])


def _loader(row: dict[str, Any]) -> Loader:
    return Loader(
        name=row["name"],
        source=row["source"],
        architectures=tuple(row["architectures"]) if "architectures" in row else None,
        lacks=tuple(row.get("lacks", ())),
        needs={
            needs["architecture"]: Needs(
                tuple(needs.get("keys", "").split()), tuple(needs.get("tensors", "").split()), needs.get("values", {})
            )
            for needs in row.get("needs", ())
        },
    )


def judge_loaders(header: Header, tensors: tuple[TensorInfo, ...]) -> tuple[LoaderVerdict, ...]:
    """What is known of every program of the table about this model.

    Args:
        header: of the file, or of the first shard.
        tensors: of all files.
    """
    names = frozenset(tensor.name for tensor in tensors)
    return tuple(_judge(loader, header, names) for loader in known_loaders())


def _judge(loader: Loader, header: Header, tensors: frozenset[str]) -> LoaderVerdict:
    architecture = header.metadata.text("general.architecture") or ""
    shown = printable(architecture, 40)
    verdict: Literal["FAILED", "UNKNOWN"] = "UNKNOWN"
    if architecture in loader.lacks or (loader.architectures is not None and architecture not in loader.architectures):
        verdict, evidence = "FAILED", f"it does not know the architecture {shown}"
    elif (needs := loader.needs.get(architecture)) is None:
        evidence = f"what it needs of {shown} is not known here"
    elif missing := _missing(needs, header, architecture, tensors):
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        verdict, evidence = "FAILED", f"it refuses a file without {', '.join(missing[:_NAMED])}{more}"
    elif wrong := _wrong_values(needs, header, architecture):
        verdict, evidence = "FAILED", f"it refuses {', '.join(wrong[:_NAMED])}"
    else:
        evidence = "all keys and tensors that it is known to need are there; it was not asked"
    return LoaderVerdict(loader=loader.name, verdict=verdict, asked=False, evidence=evidence, source=loader.source)


def _missing(needs: Needs, header: Header, architecture: str, tensors: frozenset[str]) -> list[str]:
    keys = (f"{architecture}.{key}" for key in needs.keys)
    found = [key for key in keys if key not in header.metadata]
    return found + [name for name in needs.tensors if name not in tensors]


def _wrong_values(needs: Needs, header: Header, architecture: str) -> list[str]:
    """Whole numbers that a program compares with its own."""
    wrong = []
    for key, expected in needs.values.items():
        value = header.metadata.integer(f"{architecture}.{key}")
        if value != expected:
            wrong.append(f"{architecture}.{key} = {value} (it takes {expected})")
    return wrong
