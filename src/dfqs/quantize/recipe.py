"""A recipe is a class in a TOML file: a base class, other types by role, exceptions by layer or tensor name.

    name = "IQ1_S-XL with better ends"
    base = "IQ1_S-XL"

    [types]
    "attention" = "Q6_K"

    [[exception]]
    role = "routed experts"
    layers = "0-2,40-42"
    type = "IQ2_XXS"

    [[exception]]
    tensors = "blk.*.ffn_down_exps.weight"
    type = "IQ1_M"

The first exception that fits a tensor decides. A role without a type stays as it is in the input.
"""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfqs.errors import UsageError, printable
from dfqs.gguf.types import GGMLType
from dfqs.model.classes import CLASSES, DeploymentClass, LayerException
from dfqs.model.spec import Role
from dfqs.quantize.mixtures import MIXTURES, find_mixture
from dfqs.storage.files import open_regular

MAX_RECIPE_BYTES = 1 << 20
MAX_LAYERS = 10_000
MAX_NAME_CHARACTERS = 64
MAX_PATTERN_CHARACTERS = 256
MAX_EXCEPTIONS = 512
"""Each is held against each tensor."""


def find_class(name: str) -> DeploymentClass:
    """A class by its name, or by the path of a recipe that ends in `.toml`.

    Raises:
        UsageError: no such class, or the recipe is not one.
    """
    if name.endswith(".toml"):
        return read_recipe(Path(name))
    found = _built_in(name)
    if found is None:
        raise UsageError(
            f"'{printable(name)}' is no class; choose from {', '.join((*CLASSES, *MIXTURES))}, or name a recipe that "
            "ends in .toml"
        )
    return found


def _built_in(name: str) -> DeploymentClass | None:
    """The built-in class of that name, in capitals or not."""
    return next((entry for key, entry in CLASSES.items() if key.lower() == name.lower()), None)


def read_recipe(path: Path) -> DeploymentClass:
    """A class from a TOML file.

    Raises:
        UsageError: the file is missing, or says something that a recipe cannot say.
    """
    try:
        with open(open_regular(path, follow=True), "rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_RECIPE_BYTES:
        raise UsageError(f"{path} is larger than any recipe (1 MiB)")
    try:
        return parse_recipe(tomllib.loads(data.decode()))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        # Besides TOMLDecodeError: text that is not UTF-8, a number of thousands of digits, arrays without end.
        raise UsageError(f"{path} is not TOML: {error}") from None


def parse_recipe(table: dict[str, Any]) -> DeploymentClass:
    """A class from a decoded TOML table.

    Raises:
        UsageError: a key, role, type or layer that there is none of.
    """
    _refuse_unknown(table, {"name", "base", "types", "exception"}, "the recipe")
    name = _name(table)
    if _built_in(name) is not None or find_mixture(name) is not None:
        raise UsageError(f"'{name}' is a built-in class; a recipe needs a name of its own")
    types: dict[Role, GGMLType] = {}
    exceptions: tuple[LayerException, ...] = ()
    if "base" in table:
        named = _string(table, "base", "the recipe")
        base = _built_in(named)
        if base is None:
            raise UsageError(f"the base '{printable(named)}' is none of the built-in classes {', '.join(CLASSES)}")
        types, exceptions = dict(base.types), base.exceptions
    given = table.get("types", {})
    if not isinstance(given, dict):
        raise UsageError("'types' must be a table of role = type")
    for role, type_ in given.items():
        types[_role(role)] = _type(type_)
    entries = table.get("exception", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError("'exception' must be tables ([[exception]])")
    _refuse_many(entries)
    if not types and not entries:
        raise UsageError("it gives no tensor a type; state a base or types")
    return DeploymentClass(name, types, (*(_exception(entry) for entry in entries), *exceptions))


def recipe_record(class_: DeploymentClass) -> dict[str, Any]:
    """The class as plain data, for metadata, plans and hashes."""
    return {
        "name": class_.name,
        "types": {role.value: type_.name for role, type_ in class_.types.items()},
        "exceptions": [
            {
                "role": entry.role.value if entry.role else None,
                "tensors": entry.tensors,
                "layers": sorted(entry.layers) if entry.layers is not None else None,
                "type": entry.type.name,
            }
            for entry in class_.exceptions
        ],
    }


def class_from_record(record: object) -> DeploymentClass:
    """The class that `recipe_record` made plain data of; from a file's metadata, so anything may stand there.

    Raises:
        UsageError: it is not such a record.
    """
    if not isinstance(record, dict) or not isinstance(record.get("types"), dict):
        raise UsageError("the recipe is not a table of types")
    entries = record.get("exceptions", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError("its exceptions are not a list of tables")
    _refuse_many(entries)
    exceptions = []
    for entry in entries:
        layers = entry.get("layers")
        if layers is not None and not (isinstance(layers, list) and all(isinstance(n, int) for n in layers)):
            raise UsageError("the layers of an exception are not a list of numbers")
        tensors = _pattern(entry) if entry.get("tensors") is not None else None
        role = _role(_string(entry, "role", "an exception")) if entry.get("role") is not None else None
        exceptions.append(
            LayerException(_type(entry.get("type")), role, tensors, None if layers is None else frozenset(layers))
        )
    types = {_role(str(role)): _type(type_) for role, type_ in record["types"].items()}
    return DeploymentClass(_name(record), types, tuple(exceptions))


def parse_layers(text: str) -> frozenset[int]:
    """`"0-2,42"` -> {0, 1, 2, 42}.

    Raises:
        UsageError: not a list of layers.
    """
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if match is None:
            raise UsageError(f"'{printable(text)}' is no list of layers; write it like 0-2,42")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < MAX_LAYERS:
            raise UsageError(f"'{printable(part.strip())}' is no range of layers")
        layers.update(range(first, last + 1))
    return frozenset(layers)


def _exception(entry: dict[str, Any]) -> LayerException:
    _refuse_unknown(entry, {"role", "tensors", "layers", "type"}, "an exception")
    if "role" not in entry and "tensors" not in entry:
        raise UsageError("an exception must name a role or tensors")
    return LayerException(
        role=_role(_string(entry, "role", "an exception")) if "role" in entry else None,
        tensors=_pattern(entry) if "tensors" in entry else None,
        layers=parse_layers(_string(entry, "layers", "an exception")) if "layers" in entry else None,
        type=_type(entry.get("type")),
    )


def _refuse_unknown(table: dict[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise UsageError(f"'{printable(key)}' means nothing in {where}; known are {', '.join(sorted(known))}")


def _string(table: dict[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str):
        raise UsageError(f"{where} needs '{key}' as text")
    return value


def _refuse_many(entries: Sequence[object]) -> None:
    if len(entries) > MAX_EXCEPTIONS:
        raise UsageError(f"{len(entries):,} exceptions; no recipe needs more than {MAX_EXCEPTIONS}")


def _pattern(entry: dict[str, Any]) -> str:
    pattern = _string(entry, "tensors", "an exception")
    if not pattern.isprintable() or len(pattern) > MAX_PATTERN_CHARACTERS:
        raise UsageError(f"the tensors of an exception must be 1 to {MAX_PATTERN_CHARACTERS} printable characters")
    return pattern


def _name(table: dict[str, Any]) -> str:
    name = _string(table, "name", "the recipe")
    if not name or not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
        raise UsageError(f"'name' must be 1 to {MAX_NAME_CHARACTERS} printable characters")
    return name


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise UsageError(
            f"'{printable(name)}' is no role; known are {', '.join(role.value for role in Role)}"
        ) from None


def _type(name: object) -> GGMLType:
    if isinstance(name, str) and name.upper() in GGMLType.__members__:
        return GGMLType[name.upper()]
    raise UsageError(f"'{printable(str(name))}' is no tensor type; for example Q8_0, Q4_K, IQ1_S")
