"""`import dfqs`: which names it offers, that they exist, and that asking for one is what loads it."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import dfqs

NAMES = [
    "ChatSession",
    "DfqsError",
    "Hub",
    "LikelihoodSession",
    "PlanRequest",
    "Prompt",
    "Report",
    "Sampling",
    "Worker",
    "abort_merge",
    "capture_trace",
    "diff_traces",
    "evaluate_model",
    "has_errors",
    "hash_model",
    "measure_memory_curve",
    "merge",
    "merge_inplace",
    "open_model",
    "plan_inplace",
    "plan_merge",
    "plan_model",
    "plan_pull",
    "plan_repair",
    "plan_split",
    "pull_model",
    "quantize_model",
    "repair",
    "resume_merge",
    "split",
    "verify_against",
    "verify_structure",
]
MOST_MS = 30.0


def test_the_offered_names_are_these_because_a_program_relies_on_them() -> None:
    assert sorted(dfqs.__all__) == NAMES
    assert set(NAMES) <= set(dir(dfqs))


@pytest.mark.parametrize("name", NAMES)
def test_an_offered_name_is_there_and_says_what_it_is_for(name: str) -> None:
    assert (getattr(dfqs, name).__doc__ or "").strip()


def test_a_name_that_is_not_offered_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'dfqs' has no attribute 'mergers'"):
        _ = dfqs.mergers  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names_at_the_same_places() -> None:
    tree = ast.parse(Path(dfqs.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.asname: node.module if alias.asname == alias.name else f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert seen == dfqs._PLACES


def packages() -> list[ModuleType]:
    found = [dfqs]
    for info in pkgutil.walk_packages(dfqs.__path__, "dfqs."):
        if info.ispkg:
            found.append(importlib.import_module(info.name))
    return found


@pytest.mark.parametrize("package", packages(), ids=lambda package: package.__name__)
def test_no_function_stands_in_the_place_of_a_module_so_that_import_a_b_means_the_module(package: ModuleType) -> None:
    modules = {info.name for info in pkgutil.iter_modules(package.__path__)} - {"__main__"}
    if find_spec("inspect_ai") is None and package.__name__ == "dfqs.evaluate.harnesses":
        # Only that program imports it.
        modules -= {"inspect_ai"}
    for name in modules:
        importlib.import_module(f"{package.__name__}.{name}")
    offered = set(getattr(package, "__all__", ()))

    assert not offered & modules
    assert {name for name in modules if not isinstance(getattr(package, name), ModuleType)} == set()


def test_importing_dfqs_loads_nothing_else_of_it_and_costs_little() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import sys, dfqs; print(*sys.modules)"]
    costs_ms = []
    for _ in range(5):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        (cost_us,) = re.findall(r"\| +(\d+) \| dfqs$", done.stderr, re.MULTILINE)
        costs_ms.append(int(cost_us) / 1000)
    loaded = done.stdout.split()

    # The best of a few: what else this machine does is no cost of ours.
    assert min(costs_ms) < MOST_MS
    assert {name for name in loaded if name.startswith("dfqs")} == {"dfqs", "dfqs.on_demand"}
    assert not {"numpy", "pydantic", "typer", "rich", "httpx"} & set(loaded)
