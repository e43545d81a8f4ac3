"""The demonstration in a process of its own: the whole flow on the real model; as users start it, with `slow`."""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dfqs.cli.main import run
from dfqs.demo import MODEL_NAME, STEPS
from dfqs.gguf import read_header
from dfqs.integrity import hash_model

# A minute on a quiet machine. It measures speed with llama.cpp's default waiting, which beside other work is many times
# slower; this limit is there to end a hang.
LIMIT_S = 1800
ROOT = Path(__file__).parents[2]
SHARDS = [f"{Path(MODEL_NAME).stem}-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
pytestmark = pytest.mark.timeout(LIMIT_S)

DEMO = [sys.executable, "-m", "dfqs.cli.main", "demo"]
SMALL_DEMO = [sys.executable, str(Path(__file__).parents[1] / "small_demo.py")]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SMALL_DEMO, id="small sample"),
        pytest.param(DEMO, id="as users start it", marks=pytest.mark.slow),
    ],
)
def demonstration(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, embedded_model: Path
) -> tuple[Path, str, str]:
    out = tmp_path_factory.mktemp("demo") / "made"
    command = [*request.param, "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert result.returncode == 0, result.stderr
    return out, result.stdout, result.stderr


def test_every_step_is_told_and_the_paths_are_printed(demonstration: tuple[Path, str, str]) -> None:
    out, printed, told = demonstration

    for number in range(1, STEPS + 1):
        assert f"[{number}/{STEPS}]" in told
    assert "Active Params    161.8 M" in told
    assert str(out / MODEL_NAME) in printed
    assert f"report: {(out / 'report.html').as_uri()}" in printed


def test_merged_model_is_the_built_one_and_its_shards_are_beside_it_and_nothing_else(
    demonstration: tuple[Path, str, str], embedded_model: Path
) -> None:
    out, _, _ = demonstration

    assert sorted(path.name for path in out.iterdir()) == sorted(
        [MODEL_NAME, *SHARDS, "demo.json", "demo.md", "report.html", "report.json", "report.md"]
    )
    assert hash_model(out / MODEL_NAME).content_sha256 == hash_model(embedded_model).content_sha256
    assert "split.count" in read_header(out / MODEL_NAME).metadata


def test_record_and_report_name_the_model_for_what_it_is(demonstration: tuple[Path, str, str]) -> None:
    out, _, _ = demonstration
    record = json.loads((out / "demo.json").read_text())
    report = json.loads((out / "report.json").read_text())

    assert record["schema"] == "dfqs.demo/2"
    assert record["answer"].strip()
    assert record["decode_tokens_per_s"] > 0
    assert len(record["steps"]) == STEPS
    assert "Demonstration model" in record["model"]["description"]
    assert "| Total Params | 179.5 M |" in (out / "demo.md").read_text()
    assert report["metrics"]["cpu_tokens_per_sec"] > 0
    assert report["metrics"]["failure_boundary_tokens"] is None
    assert "not scores of the DFQS reference model" in (out / "report.md").read_text()


def test_ctrl_c_in_the_middle_leaves_no_shards_and_no_half_model(tmp_path: Path, embedded_model: Path) -> None:
    out = tmp_path / "made"
    process = subprocess.Popen([*DEMO, "--out", str(out)], stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[4/"):
            break
    process.send_signal(signal.SIGINT)
    message = process.stderr.read()

    assert process.wait(timeout=60) == 130
    process.stderr.close()
    assert "interrupted" in message
    assert not out.exists()


def test_output_directory_without_permission_is_one_sentence(
    tmp_path: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() == 0:
        target = Path("/proc/nothing")  # nobody, not even root, makes directories there
    else:
        tmp_path.chmod(0o500)
        target = tmp_path / "closed" / "made"

    assert run(["demo", "--out", str(target)]) in (2, 3)

    message = capsys.readouterr().err
    assert str(target) in message
    assert "Traceback" not in message
    assert "internal error" not in message


def test_every_question_of_the_readme_is_answered_as_it_says(
    demonstration: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the folder that the demonstration leaves, as the README has it pasted."""
    out, _, _ = demonstration
    spec = importlib.util.spec_from_file_location("readme_lines", ROOT / "scripts" / "readme_lines.py")
    assert spec is not None and spec.loader is not None
    sys.modules["readme_lines"] = readme_lines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme_lines)
    monkeypatch.chdir(out)

    lines = readme_lines.questions()
    for line in lines:
        program, *words = shlex.split(line.command)
        code = run(words)
        said = "".join(capfd.readouterr())
        assert program == "dfqs" and code in (0, 1, 4), (line.command, said)
        assert readme_lines.is_seen(line.seen[0], said), (line.command, said)

    assert len(lines) >= 8
    (out / "one.gguf").unlink()
