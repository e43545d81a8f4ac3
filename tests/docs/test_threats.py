"""docs/threats.md says of the code and of its tests what is true of them."""

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(test_\w+\.py)::(\w+)`")
ROW = re.compile(r"^\| [^|]+ \| ([\d,.]+)( MiB| KiB| s)? \| `([\w.]+)\.(\w+)` \| `test_", re.M)
UNITS = {" MiB": 1 << 20, " KiB": 1 << 10, " s": 1, "": 1}


@pytest.mark.thorough
def test_every_named_test_exists() -> None:
    named = set(NAMED.findall(PAGE))

    assert len(named) > 50
    for file, name in sorted(named):
        (path,) = (ROOT / "tests").rglob(file)
        text = path.read_text(encoding="utf-8")
        assert re.search(rf"^ *(async )?def {name}\(", text, re.M), f"{file}::{name}"


def test_every_promise_and_limit_names_its_test() -> None:
    rows = [
        line
        for line in PAGE.splitlines()
        if line.startswith("|") and not line.startswith(("|---", "| promise", "| input"))
    ]

    assert [row for row in rows if not NAMED.search(row)] == []


def value_of(where: str, name: str) -> float:
    """A constant by its path below `dfqs`: a module's, or a field of one."""
    parts = [*where.split("."), name]
    for cut in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(["dfqs", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        return float(reduce(getattr, parts[cut:], module))
    raise AssertionError(f"no module of {where}")


@pytest.mark.parametrize(("number", "unit", "where", "name"), ROW.findall(PAGE))
def test_the_limits_are_those_of_the_code(number: str, unit: str, where: str, name: str) -> None:
    assert value_of(where, name) == float(number.replace(",", "")) * UNITS[unit]


def test_no_limit_escapes_the_comparison() -> None:
    table = PAGE.partition("## Limits")[2]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]

    assert len(ROW.findall(table)) == len(rows) > 25


def test_the_policy_refers_to_the_page() -> None:
    assert "docs/threats.md" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
