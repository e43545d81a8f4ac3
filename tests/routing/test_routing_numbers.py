"""What is no number is never found to agree, and nothing compared is never agreement."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dfqs.cli.main import run
from dfqs.errors import RuntimeFailure, UsageError
from dfqs.gguf import read_header
from dfqs.routing.capture import capture_trace
from dfqs.routing.coherence import diff_traces
from dfqs.routing.fitting import fit_requests, fit_text
from dfqs.routing.numbers import broken_row, require_choice, require_numbers
from dfqs.routing.prompts import Prompt
from dfqs.routing.runs import RoutingRun, compare_runs
from dfqs.routing.trace import Trace, TraceChunk
from dfqs.runtime import Worker
from fixtures_moe import write_tiny_moe
from routing_traces import make_header, make_trace, write

Poison = Callable[[str, float], Path]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    return write_tiny_moe(tmp_path_factory.mktemp("numbers") / "sound.gguf", smollm2_gguf, "qwen3moe")


@pytest.fixture
def poison(sound: Path, tmp_path: Path) -> Poison:
    """The sound model with one tensor's values replaced."""

    def write_poisoned(name: str, value: float) -> Path:
        header = read_header(sound)
        tensor = next(tensor for tensor in header.tensors if tensor.name == name)
        span = header.span(tensor)
        dtype = "<f4" if tensor.type.name == "F32" else "<f2"
        path = tmp_path / "poisoned.gguf"
        path.write_bytes(sound.read_bytes())
        with path.open("r+b") as file:
            file.seek(span.offset)
            file.write(np.full(span.length // int(dtype[2]), value, dtype).tobytes())
        return path

    return write_poisoned


VERBS = (
    ["check"],
    ["check", "--no-matrix", "--profile", "deterministic"],
    ["margins", "--tokens", "16"],
    ["pressure", "--lengths", "8,16"],
    ["trace"],
    ["trace", "--weights"],
)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_model_that_computes_no_numbers_is_given_no_verdict_and_no_figures(
    verb: list[str], poison: Poison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = poison("blk.0.ffn_down_exps.weight", float("nan"))
    arguments = [*verb, "-o", str(tmp_path / "out.route")] if verb[0] == "trace" else verb

    assert run(["route", arguments[0], str(model), *arguments[1:]]) == 3

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the router of layer 1 gives scores that are no numbers" in captured.err
    assert not (tmp_path / "out.route").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("tensor", "where"),
    [
        ("blk.2.ffn_down_exps.weight", "the model's logits are no numbers"),
        ("blk.0.attn_norm.weight", "the router of layer 0"),
        ("blk.1.ffn_gate_inp.weight", "the router of layer 1"),
        ("output_norm.weight", "the model's logits are no numbers"),
    ],
)
def test_wherever_the_numbers_end_it_is_seen(
    tensor: str, where: str, value: float, poison: Poison, tmp_path: Path
) -> None:
    with Worker(threads=1) as worker, pytest.raises(RuntimeFailure, match=where):
        prompt = [Prompt("p", tokens=tuple(range(20, 40)))]
        capture_trace(worker, poison(tensor, value), prompt, tmp_path / "t.route")


def test_a_router_that_scores_every_expert_alike_has_chosen_nothing(poison: Poison, tmp_path: Path) -> None:
    with Worker(threads=1) as worker, pytest.raises(RuntimeFailure, match="the same to every expert"):
        prompt = [Prompt("p", tokens=tuple(range(20, 40)))]
        capture_trace(worker, poison("blk.1.ffn_gate_inp.weight", 0.0), prompt, tmp_path / "t.route")


def test_logits_that_are_all_the_same_tell_nothing() -> None:
    """A K-quantized output layer reads a row of NaN as zeros."""
    rows = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)

    require_numbers(rows, None)
    assert broken_row(rows) is None
    rows[1, 7] = np.nan
    assert broken_row(rows) == 1
    rows[1] = 0
    with pytest.raises(RuntimeFailure, match=r"all the same \(row 1"):
        require_numbers(rows, None)
    assert broken_row(np.empty((0, 50), np.float32)) is None
    assert broken_row(np.full((2, 50), 3e38, np.float32) * np.linspace(0.5, 1, 50, dtype=np.float32)) is None


def _run(ids: np.ndarray, argmax: int) -> RoutingRun:
    tokens = np.arange(ids.shape[1], dtype=np.int32)
    hashes = np.zeros((len(tokens), 16), np.uint8)
    return RoutingRun(tuple(range(len(ids))), tokens, ids, hashes, np.full(len(tokens), argmax, np.int32))


def test_runs_in_which_nothing_was_computed_are_not_identical() -> None:
    for ids in (np.full((2, 3, 2), -1), np.empty((2, 0, 2), int), np.empty((0, 3, 2), int)):
        found = compare_runs(_run(ids, -1), _run(ids, -1))

        assert not found.routing_identical
        assert (found.decisions, found.same_set_share, found.logits_identical, found.argmax_share) == (0,) + (None,) * 3


def test_a_router_that_has_nothing_to_decide_is_not_called_deterministic() -> None:
    model = make_header(3, 8, 2).model

    require_choice(model, (0,), (0, 1, 2))
    with pytest.raises(UsageError, match="every one of this model's 8 experts is used"):
        require_choice(model.model_copy(update={"experts_used": 8}), ())
    with pytest.raises(UsageError, match="every layer of this model is hash-routed"):
        require_choice(model, (0, 1, 2), (0, 1, 2))


def test_traces_of_one_and_the_same_choice_for_every_token_are_not_shown_as_agreement_alone(tmp_path: Path) -> None:
    trace = make_trace(make_header(), 40)
    always = TraceChunk(0, 0, trace.chunks[0].tokens, np.zeros_like(trace.chunks[0].ids) + np.array([3, 5], np.uint8))
    path = write(tmp_path / "same.route", dataclasses.replace(trace, chunks=(always,)))

    assert any("agreement proves nothing" in notice for notice in diff_traces(path, path).notices)
    ordinary = write(tmp_path / "ordinary.route", trace)
    assert diff_traces(ordinary, ordinary).notices == ()


def test_traces_without_tokens_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = str(write(tmp_path / "empty.route", Trace(make_header(), ())))

    for arguments in (["diff", empty, empty], ["stats", empty]):
        assert run(["route", *arguments]) == 2
        assert "no tokens" in capsys.readouterr().err


def test_a_model_of_a_short_context_is_checked_with_what_fits_and_it_is_said(
    smollm2_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended with "failed to decode a batch (code 1)"."""
    monkeypatch.setattr("fixtures_moe.CONTEXT", 512)
    model = write_tiny_moe(tmp_path / "short.gguf", smollm2_gguf, "qwen3moe")

    code = run(["route", "check", str(model), "--profile", "deterministic", "--tokens", "400", "--json"])

    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert code == 0
    assert found["load"]["shortened"]
    assert found["load"]["settings"]["context_tokens"] == 512
    assert sum(row["prompt_tokens"] + 32 for row in found["load"]["requests"]) <= 512
    assert found["matrix_tokens"] == 307
    assert [row["condition"] for row in found["matrix"] if row["refused"] is not None] == []
    assert "requests were cut" in captured.err
    assert "400 tokens of text were asked for; it is 307" in captured.err


def test_requests_are_cut_no_more_than_they_must_be() -> None:
    requests = [list(range(length)) for length in (45, 92, 192, 338)]

    assert fit_requests(requests, 32, 4096) == (requests, None)
    cut, notice = fit_requests(requests, 32, 512)
    assert [len(request) for request in cut] == [45, 92, 123, 123]
    assert notice is not None
    with pytest.raises(UsageError, match="has no room for 4 requests"):
        fit_requests(requests, 32, 128)


def test_a_text_too_short_for_what_was_asked_is_a_sentence() -> None:
    text = list(range(600))

    assert fit_text(text, text, 256, 4096) == (text[:256], text[:100], None)
    short, other, notice = fit_text(text, text, 5000, 4096)
    assert (len(short), len(other)) == (600, 100)
    assert notice == "5,000 tokens of text were asked for; it is 600 for this model, all that the text has"
    short, other, _ = fit_text(text, text, 256, 128)
    assert len(short) + len(other) <= 128
    with pytest.raises(UsageError, match="too few"):
        fit_text([], text, 256, 4096)
