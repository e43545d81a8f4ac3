"""What the documents say of the code is what the code is."""

import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@cache
def generated_documents() -> dict[Path, str]:
    spec = importlib.util.spec_from_file_location("generated_docs", ROOT / "scripts" / "generated_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    documents: dict[Path, str] = module.generated_documents()
    return documents


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["cli.md", "architecture.md"])
def test_generated_document_is_current_else_run_scripts_write_docs(name: str) -> None:
    path = ROOT / "docs" / name

    assert path.read_text(encoding="utf-8") == generated_documents()[path]


def test_every_link_between_documents_leads_somewhere() -> None:
    broken = []
    for path in [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)} -> {target}")

    assert not broken


def test_every_dependency_is_justified_and_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    names = [
        re.split(r"[=<>\[]", entry)[0]
        for entry in [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    ]

    assert not [name for name in names if not re.search(rf"\b{re.escape(name)}\b", text)]
    assert not [name for name in names if not re.search(rf"^{re.escape(name.replace('_', '-'))}==", lock, re.MULTILINE)]


def test_commands_that_the_readme_promises_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    for target in set(re.findall(r"\bmake ([a-z-]+)\b", readme)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_benchmark_is_described() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")

    assert not [path.name for path in (ROOT / "benchmarks").glob("*.py") if f"## {path.name}:" not in text]


def test_the_readme_has_no_link_that_leads_nowhere_on_a_package_index() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", text)
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)

    assert [link for link in links if not link.startswith("https://")] == []
    # An index that cannot show a picture has its words.
    assert [path for words, path in pictures if len(words) < 20 or not (ROOT / path).is_file()] == []


def test_every_script_and_folder_that_contributing_sends_people_to_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"\b((?:tests|scripts|docs|\.ci)/[\w./*-]*[\w*])", text)

    assert len(named) > 20
    assert [name for name in named if not list(ROOT.glob(name))] == []
