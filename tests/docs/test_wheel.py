"""The built wheel in an environment of its own: what it lacks is found here, and not by whoever installs it."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from dfqs.shards.split import plan_split, split
from gguf_builder import write_small

ROOT = Path(__file__).parents[2]


def succeed(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    succeed(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=ROOT)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the checkout; the dependencies are those that are installed here, as there may be no network."""
    fresh = tmp_path_factory.mktemp("environment")
    succeed(sys.executable, "-m", "venv", "--without-pip", fresh, cwd=fresh)
    where = "import site; print(site.getsitepackages()[0])"
    packages = Path(succeed(fresh / "bin/python", "-c", where, cwd=fresh).strip())
    pip = (sys.executable, "-m", "pip", "--python", fresh / "bin/python")
    succeed(*pip, "install", "--no-index", "--no-deps", "--quiet", wheel, cwd=fresh)
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return fresh


def test_what_would_be_uploaded_is_what_a_package_index_takes(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("twine", reason="the development packages of the lock file are not all here")
    succeed(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (sdist,) = tmp_path.glob("*.tar.gz")

    said = succeed(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=tmp_path)

    assert said.count("PASSED") == 2


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("dfqs/")}
    source = ROOT / "src"
    there = {str(path.relative_to(source)) for path in (source / "dfqs").rglob("*") if path.is_file()}

    assert {name for name in there if "__pycache__" not in name} == packed


def test_the_installed_program_inspects_merges_and_verifies(environment: Path, tmp_path: Path) -> None:
    shards = split(plan_split(write_small(tmp_path / "small.gguf"), tmp_path / "small", max_tensors=2))
    program, model = environment / "bin/dfqs", tmp_path / "model.gguf"

    where = succeed(environment / "bin/python", "-c", "import dfqs; print(dfqs.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)
    assert json.loads(succeed(program, "inspect", shards[0], "--json", cwd=tmp_path))
    succeed(program, "merge", shards[0], "-o", model, cwd=tmp_path)
    succeed(program, "verify", model, "--against", shards[0], cwd=tmp_path)
