"""`dfqs inspect` on the true V4-Flash geometry, on small files, and on bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dfqs.cli.main import run
from gguf_builder import write_small
from v4_flash_stub import write_v4_flash_stub


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v4_flash_stub(tmp_path_factory.mktemp("stub") / "DeepSeek-V4-Flash-IQ1_S-XL.gguf")


def test_v4_flash_geometry_is_described_as_the_model_card_states_it(
    stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(stub), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert round(found["parameters"] / 1e9, 1) == 284.3
    assert round(found["parameters_active"] / 1e9, 1) == 13.8
    assert (found["experts"], found["experts_used"], found["experts_shared"], found["layers"]) == (256, 6, 1, 43)
    assert found["class"] == "IQ1_S-XL"
    assert found["tier"] == "IQ1"
    assert found["vocabulary"] == 129_280
    bits = {role: size["bits_per_weight"] for role, size in found["roles"].items()}
    assert bits["routed experts"] == 1.5625
    assert bits["attention"] == bits["embeddings"] == bits["output"] == bits["shared experts"] == 8.5
    assert bits["norms"] == bits["router"] == bits["hyper-connections"] == 32
    assert bits["routing tables"] is None


def test_62_gb_file_is_inspected_in_little_memory_and_without_heavy_imports(stub: Path) -> None:
    code = (
        "import sys; from dfqs.cli.main import run; run(sys.argv[1:]);"
        "assert not {'numpy', 'matplotlib', 'scipy', 'huggingface_hub'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code + MEASURE_PEAK, "inspect", str(stub), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert int(result.stderr.split()[-1]) < 150_000, "kilobytes of peak memory"
    assert stub.stat().st_blocks * 512 < 6_000_000


# VmHWM and not ru_maxrss: the latter survives exec and would tell of pytest's own memory.
MEASURE_PEAK = """
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
"""


def test_snapshot_table_has_the_rows_of_the_specification(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(stub)]) == 0

    text = capsys.readouterr().out
    for row in ("Model", "Architecture", "Active Params", "Total Params", "Size", "Format", "Runtime", "DFQS Class"):
        assert row in text
    assert "62.1 GB" in text
    assert "Reference Ultra-Low-Bit" in text


@pytest.mark.parametrize(
    "content, message, code",
    [
        (None, "no such file", 2),
        (b"", "the file is empty", 3),
        (b"Just some text.", "not a GGUF file", 3),
        (bytes(4096), "never written", 3),
    ],
    ids=["missing", "empty", "text", "zeroes"],
)
def test_bad_input_is_one_sentence_with_the_right_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str, code: int
) -> None:
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)

    assert run(["inspect", str(path)]) == code

    captured = capsys.readouterr()
    assert message in captured.err
    assert str(path) in captured.err
    assert captured.out == ""


def test_truncated_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_small(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-200])

    assert run(["inspect", str(path)]) == 3
    assert "truncated" in capsys.readouterr().err
