"""Losses and divergences: the real tool's numbers, hand-computed ones, and intervals that mean what they say."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dfqs.cli.main import run
from dfqs.errors import FormatError, RuntimeFailure, UsageError
from dfqs.gguf import GGMLType, TensorSource, string, u32, write_gguf
from dfqs.quantize import perplexity
from dfqs.quantize.bootstrap import BLOCK_TOKENS, estimate_difference, estimate_mean
from dfqs.quantize.logits_file import Conditions, Losses, divergence, read_losses, write_losses
from dfqs.quantize.perplexity import Measured, PerplexityJob, summarise
from dfqs.quantize.windows import plan_windows
from dfqs.runtime import Worker
from dfqs.runtime.logprobs import LogProbabilities, most_probable
from quantize_inputs import WIDTH, write_model

TEXT = (Path(__file__).parents[1] / "vectors" / "quantize" / "calibration.txt").read_text()
LLAMA_PERPLEXITY = [648.8704, 571.5820, 538.8481, 582.1848, 586.4038, 597.9284]
"""Running estimates of `llama-perplexity -m model.gguf -f calibration.txt -c 128 -b 128 -ub 128 -fa off` (llama.cpp
b11549) for the model of quantize_inputs.py: windows of 128 side by side, each scoring its last 63 tokens."""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1) as worker:
        yield worker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("perplexity") / "model.gguf")


def measure(worker: Worker, job: PerplexityJob) -> Measured:
    measured = worker.call(perplexity.measure_losses, job)
    assert isinstance(measured, Measured)
    return measured


def test_losses_are_those_of_llama_perplexity(model: Path, worker: Worker) -> None:
    nll = measure(worker, PerplexityJob(model, TEXT, 128, 64)).losses.nll.astype(np.float64)

    # Every other of our windows is one of that tool's; it leaves the first token of the scored half out.
    scored = [nll[128 * k + 64 : 128 * k + 127] for k in range(len(LLAMA_PERPLEXITY))]
    ours = [math.exp(np.concatenate(scored[: k + 1]).mean()) for k in range(len(scored))]
    assert ours == pytest.approx(LLAMA_PERPLEXITY, abs=2e-4)


@given(st.integers(2, 3000), st.integers(2, 600), st.data())
def test_every_token_but_the_first_is_scored_once_and_with_enough_before_it(
    tokens: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window - 1))

    windows = list(plan_windows(tokens, window, stride))

    scored = [position for w in windows for position in range(w.first_scored, w.end)]
    assert scored == list(range(1, tokens))
    assert all(w.end - w.start <= window for w in windows)
    # The last window may be moved back so that it is full.
    assert all(w.first_scored - w.start >= min(window - stride, w.first_scored) for w in windows)


def test_a_stride_as_long_as_the_window_is_refused_because_its_first_tokens_would_be_guessed_blind() -> None:
    with pytest.raises(UsageError, match="must be shorter"):
        list(plan_windows(100, 10, 10))


def test_a_text_of_one_token_is_refused() -> None:
    with pytest.raises(UsageError, match="fewer than two tokens"):
        list(plan_windows(1, 10, 5))


def test_log_probabilities_do_not_overflow_on_large_logits() -> None:
    row = np.array([1000.0, 999.0, -1000.0], np.float32)

    log_p = LogProbabilities.of(row)[np.arange(3)]

    assert log_p.tolist() == pytest.approx([-math.log(1 + math.exp(-1)), -1 - math.log(1 + math.exp(-1)), -2000.3133])


@given(arrays(np.float32, st.integers(1, 300), elements=st.integers(-20, 0)), st.integers(1, 40))
def test_the_most_probable_tokens_are_found_whatever_is_left_out_of_the_search(
    row: np.ndarray[Any, Any], count: int
) -> None:
    count = min(count, len(row))

    found = most_probable(row, count)

    assert found.tolist() == np.argsort(-row, kind="stable")[:count].tolist()


@given(
    arrays(np.float32, st.integers(1, 150), elements=st.floats(-30, 30, width=32)),
    st.integers(1, 40),
    st.sampled_from([1.0, 1e-6, 3e4]),
    st.floats(-40, -1),
)
def test_the_most_probable_of_few_candidates_are_those_of_the_whole_vocabulary_to_the_last_bit(
    row: np.ndarray[Any, Any], count: int, scale: float, least: float
) -> None:
    """Ties that rounding makes, and tokens below the least, included."""
    count, row = min(count, len(row)), row * np.float32(scale)

    ids, values = LogProbabilities.of(row).most_probable(count, least)

    shifted = row[None] - row.max()
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    whole = np.maximum((shifted - np.log(total).astype(np.float32))[0], np.float32(least))
    assert ids.tolist() == np.argsort(-whole, kind="stable")[:count].tolist()
    assert values.tobytes() == whole[ids].tobytes()


def made_up(top_logprobs: list[list[float]], **changes: Any) -> Losses:
    top = np.log(np.array(top_logprobs, np.float64)).astype(np.float32)
    tokens = len(top)
    plain = Losses(
        "model.gguf",
        Conditions("0" * 64, 10, 8, 4, "reference"),
        np.zeros(tokens, np.int32),
        -top[:, 0],
        np.tile(np.arange(top.shape[1], dtype=np.int32), (tokens, 1)),
        top,
    )
    return replace(plain, **changes)


def test_divergence_is_the_one_computed_by_hand() -> None:
    """0.5 ln(0.5/0.25) + 0.3 ln(0.3/0.3) + 0.2 ln(0.2/0.45): the last outcome is everything that was not stored."""
    reference = made_up([[0.5, 0.3]])

    kl = divergence(reference, np.log(np.array([[0.25, 0.3]])).astype(np.float32))

    assert kl[0] == pytest.approx(0.5 * math.log(2) + 0.2 * math.log(0.2 / 0.45), abs=1e-6)


def test_divergence_from_itself_is_zero_and_never_below() -> None:
    reference = made_up([[0.5, 0.3], [0.999999, 0.000001], [0.9, 0.1]])

    assert divergence(reference, reference.top_logprobs).tolist() == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.thorough
@given(st.lists(st.floats(0.01, 1), min_size=6, max_size=12), st.lists(st.floats(0.01, 1), min_size=12, max_size=12))
def test_divergence_on_few_outcomes_is_never_above_the_true_one(p_raw: list[float], q_raw: list[float]) -> None:
    p = np.sort(np.array(p_raw) / sum(p_raw))[::-1]
    q = np.array(q_raw[: len(p)]) / sum(q_raw[: len(p)])
    true = float((p * np.log(p / q)).sum())

    kl = divergence(made_up([p[:4].tolist()]), np.log(q[None, :4]).astype(np.float32))

    assert -1e-9 <= kl[0] <= true + 1e-4


def test_stored_logits_come_back_as_they_were(model: Path, worker: Worker, tmp_path: Path) -> None:
    losses = measure(worker, PerplexityJob(model, TEXT, 128, 64, 200)).losses

    write_losses(tmp_path / "l.gguf", losses)
    again = read_losses(tmp_path / "l.gguf")

    assert (again.model_name, again.conditions) == (losses.model_name, losses.conditions)
    for name in ("targets", "nll", "top_ids", "top_logprobs"):
        assert np.array_equal(getattr(again, name), getattr(losses, name))


def test_a_model_compared_with_itself_differs_in_nothing(model: Path, worker: Worker, tmp_path: Path) -> None:
    job = PerplexityJob(model, TEXT, 128, 64, 300)
    reference = measure(worker, job).losses
    write_losses(tmp_path / "l.gguf", reference)

    summary = summarise(measure(worker, replace(job, reference=tmp_path / "l.gguf")), reference)

    assert summary.kl is not None and summary.kl.mean == pytest.approx(0, abs=1e-6)
    assert summary.nll_difference is not None and summary.nll_difference.mean == 0
    assert not summary.nll_difference.excludes_zero
    assert summary.same_top is not None and summary.same_top.mean == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text": TEXT + "!"}, "text sha256"),
        ({"stride_tokens": 32}, "stride tokens is 32 here and 64 there"),
        ({"window_tokens": 96}, "window tokens"),
        ({"max_tokens": 250}, "other tokens"),
    ],
)
def test_numbers_under_other_conditions_are_not_compared(
    changes: dict[str, Any], reason: str, model: Path, worker: Worker, tmp_path: Path
) -> None:
    job = PerplexityJob(model, TEXT, 128, 64, 300)
    write_losses(tmp_path / "l.gguf", measure(worker, job).losses)

    with pytest.raises(UsageError, match=f"cannot be compared: .*{reason}"):
        measure(worker, replace(job, reference=tmp_path / "l.gguf", **changes))


def test_logits_that_are_no_numbers_are_refused_not_averaged(worker: Worker, tmp_path: Path) -> None:
    values = np.ones(WIDTH, np.float32)
    values[0] = np.nan
    broken = write_model(tmp_path / "broken.gguf", {"output_norm.weight": values})

    with pytest.raises(RuntimeFailure, match=r"logits at (token|position) 0 are (no numbers|NaN)"):
        measure(worker, PerplexityJob(broken, TEXT, 128, 64))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nll": np.array([np.nan], np.float32)}, "no probability"),
        ({"nll": np.array([-3.0], np.float32)}, "no probability"),
        ({"nll": np.array([1.0, 2.0], np.float32)}, "differ in length"),
        ({"targets": np.array([10], np.int32)}, "outside its vocabulary"),
        ({"top_ids": np.array([[-1, 0]], np.int32)}, "outside its vocabulary"),
    ],
)
def test_stored_logits_that_lie_are_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_losses(tmp_path / "l.gguf", made_up([[0.5, 0.3]], **changes))

    with pytest.raises(FormatError, match=reason):
        read_losses(tmp_path / "l.gguf")


def test_a_reference_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    write_losses(tmp_path / "l.gguf", made_up([[0.5, 0.3]], model_name="\x1b]0;gotcha\x07"))

    assert read_losses(tmp_path / "l.gguf").model_name == "\\x1b]0;gotcha\\x07"


def test_another_gguf_is_not_taken_for_stored_logits(tmp_path: Path) -> None:
    tensor = TensorSource("nll", (1,), GGMLType.F32, lambda: [bytes(4)])
    write_gguf(tmp_path / "m.gguf", [string("general.architecture", "llama"), u32("x", 1)], [tensor])

    with pytest.raises(FormatError, match="not a file of stored logits"):
        read_losses(tmp_path / "m.gguf")


def test_fewer_than_two_blocks_have_no_interval() -> None:
    estimate = estimate_mean(np.arange(2 * BLOCK_TOKENS - 1.0))

    assert estimate.blocks == 1
    assert (estimate.low, estimate.high) == (None, None)
    assert not estimate.excludes_zero


@pytest.mark.thorough
def test_intervals_cover_the_true_mean_as_often_as_they_claim_even_when_neighbours_depend() -> None:
    """200 texts of 40 blocks whose tokens are correlated over some ten neighbours."""
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        noise = random.standard_normal(40 * BLOCK_TOKENS + 20)
        values = np.convolve(noise, np.ones(10) / 10, "valid")[: 40 * BLOCK_TOKENS]
        estimate = estimate_mean(values)
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= 0 <= estimate.high
    assert 0.90 <= covered / 200 <= 0.98


def test_pairing_tells_models_apart_that_overlapping_intervals_would_not() -> None:
    random = np.random.default_rng(2)
    hard = np.repeat(random.gamma(2, 1, 40), BLOCK_TOKENS)
    one, other = hard + 0.1 * random.standard_normal(hard.size), hard + 0.05

    single, paired = estimate_mean(one), estimate_difference(other, one)

    assert single.low is not None and single.high is not None and single.high - single.low > 0.2
    assert paired.excludes_zero and paired.mean == pytest.approx(0.05, abs=0.01)


def test_losses_of_different_texts_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        estimate_difference(np.zeros(3), np.zeros(4))


def test_command_gives_numbers_with_their_conditions(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    command = [sys.executable, "-m", "dfqs.cli.main", "perplexity", str(model), "--text", str(tmp_path / "text.txt")]

    result = subprocess.run(
        [*command, "--window", "128", "--stride", "64", "--save", str(tmp_path / "l.gguf"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )

    summary = json.loads(result.stdout)
    assert summary["perplexity"] == pytest.approx(math.exp(summary["nll"]["mean"]))
    assert summary["conditions"]["window_tokens"] == 128
    assert summary["kl"] is None
    assert len(read_losses(tmp_path / "l.gguf").nll) == summary["nll"]["tokens"]


def test_the_same_command_after_its_end_gives_the_stored_numbers_and_any_other_says_exists(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "l.gguf"
    command = ["perplexity", str(model), "--text", str(tmp_path / "text.txt"), "--window", "128", "--stride", "64"]
    assert run([*command, "--save", str(out), "--json"]) == 0
    first, stored = json.loads(capsys.readouterr().out), out.read_bytes()

    assert run([*command, "--save", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first and out.read_bytes() == stored
    assert run([*command, "--save", str(out)]) == 0
    assert "done already" in capsys.readouterr().err
    assert run([*command, "--max-tokens", "100", "--save", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err and out.read_bytes() == stored
