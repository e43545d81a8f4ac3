"""`dfqs route` as a person uses it: what it prints, writes, refuses, and exits with."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.main import run
from dfqs.routing.trace import Trace, TraceChunk
from routing_traces import make_chunk, make_header, make_trace, write


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def traces(tmp_path: Path) -> tuple[Path, Path]:
    header = make_header(4, 8, 2, scores=("probabilities",), hash_layers=(0,))
    a = make_trace(header, 300)
    other = make_chunk(header, 300, seed=9)
    changed = TraceChunk(0, 0, a.chunks[0].tokens, other.ids, other.probabilities)
    return write(tmp_path / "a.route", a), write(tmp_path / "b.route", Trace(header, (changed,)))


def test_route_trace_writes_a_file_that_diff_and_stats_read(
    tiny_deepseek4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "prompt.txt", tmp_path / "t.route"
    text.write_text("The mill stood where the river bends.", encoding="utf-8")

    found = answer(["route", "trace", str(tiny_deepseek4), "--prompts", str(text), "-o", str(out)], capsys)

    assert found["header"]["model"]["architecture"] == "deepseek4"
    assert found["header"]["conditions"]["flash_attention"] == "off"
    assert found["header"]["source"] == "prompt.txt"
    same = answer(["route", "diff", str(out), str(out)], capsys)
    assert same["overall"]["jaccard"] == same["overall"]["top1"] == 1.0
    assert same["overall"]["kl_nats"] is None, "no scores were stored, so none are made up"
    stats = answer(["route", "stats", str(out)], capsys)
    assert stats["trace_sha256"] == found["trace_sha256"]
    assert stats["tokens"] == found["tokens"]
    assert run(["route", "trace", str(tiny_deepseek4), "-o", str(out)]) == 2, "an existing trace is not replaced"


def test_route_check_exits_with_1_exactly_when_the_clause_does_not_hold(
    tiny_deepseek4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "check.json"

    code = run(["route", "check", str(tiny_deepseek4), "--no-matrix", "--json", "-o", str(out)])

    found = json.loads(capsys.readouterr().out)
    requests = found["load"]["requests"]
    assert found["load"]["version"] == 1
    assert found["load"]["settings"]["n_ubatch"] == 512
    assert found["load"]["slots"] == len(requests) == 4
    assert found["holds"] == all(row["routing_identical"] and row["same_answer"] for row in requests)
    assert code == (0 if found["holds"] else 1)
    assert json.loads(out.read_text())["load"] == found["load"]


def test_dense_models_are_refused_by_every_verb_that_runs_one(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["trace", str(smollm2_gguf), "-o", str(tmp_path / "t")], ["check", str(smollm2_gguf)]):
        assert run(["route", *arguments]) == 2
        assert "is a dense model" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(tiny_deepseek4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["route", "trace", str(tiny_deepseek4), "-o", str(tmp_path / "t"), "--dry-run"]) == 0

    assert "4 of 16 experts" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_diff_shows_chance_and_says_what_differs(
    traces: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["route", "diff", *map(str, traces)]) == 0

    printed = capsys.readouterr().out
    assert "chance" in printed
    assert "0 (hash)" in printed
    assert "all but hash" in printed
    other = write(tmp_path / "c.route", make_trace(make_header(4, 8, 2), 300, seed=3))
    assert run(["route", "diff", str(traces[0]), str(other)]) == 2
    assert "differ" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_stranger_s_words_are_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`[/red]` is markup to the table, `$x$` mathematics to the picture: each was an internal error."""
    header = make_header(model={"name": "[/red] $a b$", "expert_types": ("$_",)})
    trace = write(tmp_path / "t.route", make_trace(header, 300))

    assert run(["route", "diff", str(trace), str(trace), "--plots", str(tmp_path / "pictures")]) == 0
    assert run(["route", "stats", str(trace), "--plots", str(tmp_path / "pictures")]) == 0

    assert "[/red] $a b$" in capsys.readouterr().out
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_a_damaged_trace_is_an_operational_failure_with_its_place(
    traces: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(traces[0].read_bytes())
    data[-200] ^= 1
    traces[0].write_bytes(data)

    assert run(["route", "stats", str(traces[0])]) == 3
    assert "their hash differs" in capsys.readouterr().err


@pytest.mark.thorough
def test_pictures_are_pictures_and_are_never_replaced(
    traces: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"

    assert run(["route", "diff", *map(str, traces), "--plots", str(pictures)]) == 0
    assert run(["route", "stats", str(traces[0]), "--plots", str(pictures), "--svg"]) == 0

    assert {path.name for path in pictures.iterdir()} == {
        "agreement-by-layer.png", "agreement-by-context.png", "expert-load.svg",
    }  # fmt: skip
    for path in pictures.iterdir():
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") if path.suffix == ".png" else b"<svg" in data
        assert len(data) > 5000
    capsys.readouterr()
    assert run(["route", "stats", str(traces[0]), "--plots", str(pictures), "--svg"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_no_plotting_library_is_loaded_until_a_picture_is_asked_for(traces: tuple[Path, Path]) -> None:
    code = (
        "import sys; from dfqs.cli.main import run; "
        f"assert run(['route', 'stats', {str(traces[0])!r}]) == 0; "
        "sys.exit(int(any(name.partition('.')[0] in ('matplotlib', 'scipy', 'xllamacpp') for name in sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_prompts_that_are_none_are_refused_by_name(
    tiny_deepseek4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {"empty.txt": b"  \n", "latin.txt": b"caf\xe9", "list.jsonl": b'["text"]\n', "none.jsonl": b"\n"}
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        arguments = ["route", "trace", str(tiny_deepseek4), "--prompts", str(path), "-o", str(tmp_path / "t")]
        assert run(arguments) in (2, 3), name
        assert "dfqs: " in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_margins_name_what_was_fitted_where_and_leave_hash_routed_layers_out(
    tiny_deepseek4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = str(tmp_path / "pictures")

    found = answer(["route", "margins", str(tiny_deepseek4), "--tokens", "24", "--plots", pictures], capsys)

    assert [row["layer"] for row in found["margins"]] == [2, 3, 4, 5]
    assert sum(found["histogram"]) == 4 * 24
    assert {(row["fitted_on"], row["tested_on"], row["decisions"]) for row in found["forecasts"]} == {
        ("first", "second", 4 * 24)
    }
    assert "K q8_0" in found["refused"], "deepseek4 wants one type for K and V; a refusal is a result"
    assert (tmp_path / "pictures" / "margins.png").read_bytes().startswith(b"\x89PNG")


def test_pressure_moves_the_context_and_not_the_text(
    tiny_deepseek4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = str(tmp_path / "pictures")

    found = answer(["route", "pressure", str(tiny_deepseek4), "--lengths", "8,64", "--plots", pictures], capsys)

    assert [point["context_tokens"] for point in found["points"]] == [8, 64]
    assert {point["decisions"] for point in found["points"]} == {4 * found["probe_tokens"]}
    assert found["points"][0]["drift_same_set_share"] == 1.0
    assert found["points"][1]["drift_same_set_share"] < 1.0, "another context routes some tokens differently"
    assert (tmp_path / "pictures" / "pressure.png").read_bytes().startswith(b"\x89PNG")
    for lengths in ("64,8", "a,b", "5000"):
        assert run(["route", "pressure", str(tiny_deepseek4), "--lengths", lengths]) == 2, lengths
