"""Names of a package that are loaded the first time they are asked for (PEP 562)."""

import sys

# `typing` and `importlib` cost more to import than the rest of what `import dfqs` does.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def names_on_demand(package: str, places: "Mapping[str, str]") -> "Callable[[str], object]":
    """A `__getattr__` for a package.

    Args:
        package: its `__name__`.
        places: public name -> the module that has it; `module:attribute` where it is called otherwise there.
    """

    def load(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = places[name].partition(":")
        __import__(module)
        value = getattr(sys.modules[module], attribute or name)
        setattr(sys.modules[package], name, value)
        return value

    return load
