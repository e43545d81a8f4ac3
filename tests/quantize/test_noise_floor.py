"""A model against itself: what arithmetic alone makes of a difference, and that no smaller one is called found."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dfqs.cli.main import run
from dfqs.errors import NonFiniteLogits, UsageError
from dfqs.quantize.bootstrap import Estimate
from dfqs.quantize.noise_floor import (
    NUMERICS,
    NoiseFloor,
    OtherNumerics,
    Resolution,
    SelfDifference,
    hold_against,
    resolve_loss,
)
from dfqs.runtime import Worker
from noise_floor_jobs import floor_of
from quantize_inputs import WIDTH, write_model
from runtime_functions import WORKER_ENV

TEXT = (Path(__file__).parents[1] / "vectors" / "quantize" / "calibration.txt").read_text()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1, env=WORKER_ENV) as worker:
        yield worker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("floor") / "model.gguf")


def test_each_of_the_other_numerics_has_its_divergence_with_an_interval(worker: Worker, model: Path) -> None:
    floor, told = worker.call(floor_of, model, TEXT, 300)

    assert [other.numerics for other in floor.others] == [numerics.name for numerics in NUMERICS]
    assert floor.tokens == 299 and told == 4 * 299
    for other in floor.others:
        assert other.kl is not None and other.same_top is not None and other.perplexity_ratio is not None
        assert other.kl.blocks == 4 and other.kl.low is not None and other.kl.high is not None
        assert other.nll_difference is not None
        assert other.perplexity_ratio.mean == pytest.approx(math.exp(other.nll_difference.mean))
    highs = [other.kl.high for other in floor.others if other.kl is not None and other.kl.high is not None]
    assert floor.kl_nats == max(highs)
    assert 0 < floor.kl_nats < 0.1


def test_the_same_numerics_again_differ_in_nothing(worker: Worker, model: Path) -> None:
    floor, _ = worker.call(floor_of, model, TEXT, 200, (OtherNumerics("the same again"),))

    assert floor.kl_nats == pytest.approx(0, abs=1e-6)
    assert (floor.nll_nats, floor.same_top) == (0, 1)


def test_what_llama_cpp_refuses_is_told_with_its_reason_and_the_others_count(worker: Worker, model: Path) -> None:
    # V is quantized under flash attention only.
    refused = OtherNumerics("V q8_0 without flash attention", "off", "f16", "q8_0")

    floor, _ = worker.call(floor_of, model, TEXT, 100, (refused, NUMERICS[0]))

    assert floor.others[0].kl is None and floor.others[0].reason
    assert floor.others[1].kl is not None and floor.kl_nats is not None


def test_logits_that_are_no_numbers_have_no_floor(worker: Worker, tmp_path: Path) -> None:
    values = np.full(WIDTH, np.nan, np.float32)
    broken = write_model(tmp_path / "broken.gguf", {"output_norm.weight": values})

    with pytest.raises(NonFiniteLogits):
        worker.call(floor_of, broken, TEXT, 100)


def test_one_token_predicts_nothing(worker: Worker, model: Path) -> None:
    with pytest.raises(UsageError, match="fewer than two tokens"):
        worker.call(floor_of, model, "a", 100)


def estimate(mean: float, spread: float | None = None) -> Estimate:
    return Estimate(mean, None if spread is None else mean - spread, None if spread is None else mean + spread, 256, 4)


def made_up(kl: float, nll: float, same: float) -> NoiseFloor:
    return NoiseFloor(
        tokens=256,
        window_tokens=256,
        text_sha256="0" * 64,
        reference="reference",
        others=(SelfDifference(numerics="other", kl=estimate(kl)),),
        kl_nats=kl,
        nll_nats=nll,
        same_top=same,
    )


@pytest.mark.parametrize(
    ("kl", "difference", "same", "expected"),
    [
        (estimate(0.3, 0.1), estimate(-0.3, 0.1), estimate(0.7, 0.1), ("resolved",) * 3),
        (estimate(0.3, 0.2), estimate(-0.3, 0.2), estimate(0.7, 0.2), ("not resolvable",) * 3),
        (estimate(0.3), estimate(0.3), estimate(0.7), ("resolved",) * 3),
        (estimate(0.15), estimate(0.05), estimate(0.95), ("not resolvable",) * 3),
    ],
)
def test_only_what_lies_wholly_beyond_the_larger_floor_is_resolved(
    kl: Estimate, difference: Estimate, same: Estimate, expected: tuple[str, ...]
) -> None:
    floors = [made_up(0.15, 0.15, 0.85), made_up(0.01, 0.01, 0.99), None]

    found = hold_against(floors, kl, difference, same)

    assert found is not None
    assert (found.kl, found.nll_difference, found.same_top) == expected


def test_without_a_floor_nothing_is_said_of_resolution() -> None:
    unmeasured = made_up(0.1, 0.1, 0.9).model_copy(update={"kl_nats": None, "nll_nats": None, "same_top": None})

    assert hold_against([None, unmeasured], estimate(0.3), None, None) is None
    assert resolve_loss([None, unmeasured], estimate(0.3)) is None


def test_a_file_against_its_own_logits_is_called_not_resolvable_in_words_and_in_json(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT[:400])
    common = ["perplexity", str(model), "--text", str(tmp_path / "text.txt"), "--window", "128", "--stride", "64"]
    assert run([*common, "--save", str(tmp_path / "l.gguf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["floor"] is None
    reference = [*common, "--reference", str(tmp_path / "l.gguf")]

    assert run([*reference, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["against_floor"].values()) == {Resolution.NOT_RESOLVABLE.value}
    assert found["floor"]["tokens"] == found["nll"]["tokens"]
    assert run(reference) == 0
    said = capsys.readouterr().out
    assert said.count("not resolvable: the model differs from itself by as much") == 3
    assert "flash attention on" in said and "token by token" in said
    assert run([*reference, "--noise-floor", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["floor"] is None


def test_other_weights_are_resolved(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT[:400])
    values = np.random.default_rng(5).standard_normal((257, WIDTH)).astype(np.float32) / np.float32(8)
    other = write_model(tmp_path / "other.gguf", {"output.weight": values})
    common = ["--text", str(tmp_path / "text.txt"), "--window", "128", "--stride", "64"]
    assert run(["perplexity", str(model), *common, "--save", str(tmp_path / "l.gguf"), "--json"]) == 0
    capsys.readouterr()

    assert run(["perplexity", str(other), *common, "--reference", str(tmp_path / "l.gguf"), "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["against_floor"]["kl"] == "resolved"
