"""jsonschema's checker of IRIs, whose package compiles forty grammars as it is imported: 2 s of every process that
collects tests, and hardly a test has an IRI checked."""

import importlib
import importlib.util
import sys
from types import ModuleType

PACKAGE = "rfc3987_syntax"


def load_grammar_late() -> None:
    """Put in the package's place what loads it when the first IRI is checked; where it is not installed, nothing."""
    if PACKAGE in sys.modules or importlib.util.find_spec(PACKAGE) is None:
        return
    late = ModuleType(PACKAGE)

    def is_valid_syntax(term: str, value: str) -> bool:
        if sys.modules.get(PACKAGE) is late:
            del sys.modules[PACKAGE]
        valid: bool = importlib.import_module(PACKAGE).is_valid_syntax(term, value)
        return valid

    vars(late)["is_valid_syntax"] = is_valid_syntax
    sys.modules[PACKAGE] = late
