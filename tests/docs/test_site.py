"""The documents as a site: every page there, every link between them leading somewhere, nothing asked of anybody. And
what the README promises of itself."""

import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]


@cache
def script(name: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    script("build-site").build(out)
    return out


@pytest.mark.thorough
def test_every_document_is_a_page_and_every_link_between_them_leads_somewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) == 2 + len(list((ROOT / "docs").rglob("*.md")))
    broken = []
    for page in pages:
        for target in re.findall(r'(?:href|src)="([^"]+)"', page.read_text("utf-8")):
            if "://" in target:
                continue
            name, _, part = target.partition("#")
            there = page if not name else (page.parent / name).resolve()
            if there.suffix == ".md" or (name and not there.exists()):
                # What is no page of the site (SECURITY.md, a golden document) is of the repository.
                if there.suffix == ".md" or there.suffix == ".html":
                    broken.append(f"{page.name} -> {target}")
            elif part and there.suffix == ".html" and f'id="{part}"' not in there.read_text("utf-8"):
                broken.append(f"{page.name} -> {target}")

    assert [link for link in broken if not re.search(r"(SECURITY|CONTRIBUTING|README)\.md", link)] == []


def test_a_page_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.search(r'<script|@import|<link|src="https?:', text), page.name


def test_the_picture_of_the_terminal_shows_commands_of_the_readme_and_fetches_nothing() -> None:
    text = (ROOT / "docs/images/session.svg").read_text("utf-8")
    ElementTree.fromstring(text)
    shown = "".join(re.sub(r"<[^>]+>", "", text).replace("&#160;", " "))

    assert "@font-face" not in text and "http" not in re.sub(r'xmlns="[^"]*"', "", text).replace(
        "https://www.textualize", ""
    )
    commands = [line.command for line in script("readme_lines.py").questions()]
    typed = re.findall(r"\$ (dfqs \w+)", shown)
    assert len(typed) >= 3
    assert all(any(command.startswith(one) for command in commands) for one in typed)


def test_the_readme_says_on_its_first_screen_what_it_is_how_to_get_it_and_what_to_type() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    first = "\n".join(text.splitlines()[:45])
    lines = script("readme_lines.py")

    assert "DFQS (DeepSeek Flash Quantization Standard" in first
    assert {"pip", "pipx", "uv", "make"} <= {line.command.split()[0] for line in lines.section("First minutes")}
    assert any(line.command.startswith("dfqs run ") and line.seen for line in lines.section("First minutes"))
    assert len(lines.questions()) >= 8


@pytest.mark.parametrize(
    "expected, output, seen",
    [
        ("wrote one.gguf: 193 MB from 3 shards", "x\nwrote one.gguf: 7 MB from 12 shards, at once", True),
        ("wrote one.gguf: 193 MB from 3 shards", "wrote two.gguf: 193 MB from 3 shards", False),
        ("Active Params    161.8 M", "Active Params  1,161.8 M  ", True),
        ("the same model, content_sha256 ...", "the same model, content_sha256 ab12", True),
        ("The capital of France is Paris.", "The capital of France is Lyon.", False),
        ("8,192 tokens, default: FITS", "4,096 tokens,\ndefault: FITS", False),
    ],
)
def test_an_output_of_another_kind_is_noticed(expected: str, output: str, seen: bool) -> None:
    assert script("readme_lines.py").is_seen(expected, output) is seen


@pytest.mark.slow
def test_the_container_is_built_and_says_its_version(tmp_path: Path) -> None:
    tool = next((tool for tool in ("podman", "docker") if shutil.which(tool)), None)
    if tool is None or subprocess.run([tool, "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing here builds containers")
    subprocess.run([tool, "build", "-t", "dfqs-test", "-f", "Containerfile", "."], cwd=ROOT, check=True)
    said = subprocess.run([tool, "run", "--rm", "dfqs-test", "-V"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("dfqs ")
