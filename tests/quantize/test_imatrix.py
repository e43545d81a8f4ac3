"""Importance matrices: the real tool's file and ours say the same, and what was not seen is said."""

import json
import os
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

from dfqs.errors import FormatError, RuntimeFailure, UsageError
from dfqs.gguf import GGMLType, TensorSource, string, write_gguf
from dfqs.quantize import imatrix
from dfqs.quantize.calibration import read_corpus
from dfqs.quantize.checkpoint import Checkpoint
from dfqs.quantize.coverage import ColdExpert, measure_coverage
from dfqs.quantize.imatrix import ImatrixJob, ImatrixOutcome
from dfqs.quantize.imatrix_file import (
    Accumulated,
    Imatrix,
    ImatrixFile,
    merge_imatrices,
    read_imatrix,
    write_imatrix,
)
from dfqs.runtime import Worker
from quantize_inputs import EXPERTS, FEED_FORWARD, TENSORS, WIDTH, vector_imatrix, write_model

VECTORS = Path(__file__).parents[1] / "vectors" / "quantize"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=1) as worker:
        yield worker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("imatrix") / "model.gguf")


def job(model: Path, out: Path, **changes: Any) -> ImatrixJob:
    plain = ImatrixJob(
        model=model,
        out=out,
        corpus=read_corpus([VECTORS / "calibration.txt"]),
        chunk_tokens=128,
        min_samples=100,
        min_tokens=10_000,
        max_tokens=None,
        add=(),
        threads=1,
    )
    return replace(plain, **changes)


def measure(worker: Worker, wanted: ImatrixJob, on_event: Any = None) -> ImatrixOutcome:
    outcome = worker.reporting(on_event).call(imatrix.measure_imatrix, wanted)
    assert isinstance(outcome, ImatrixOutcome)
    return outcome


def test_what_is_measured_agrees_with_llama_imatrix(model: Path, worker: Worker, tmp_path: Path) -> None:
    measure(worker, job(model, tmp_path / "mine.gguf"))

    mine, peer = read_imatrix(tmp_path / "mine.gguf"), read_imatrix(VECTORS / "llama_imatrix.gguf")
    # llama-imatrix leaves the output matrix out unless it is asked for.
    assert set(mine.entries) - set(peer.entries) == {"output.weight"}
    assert mine.tokens == peer.tokens
    for name, theirs in peer.entries.items():
        ours = mine.entries[name]
        assert ours.counts.tolist() == theirs.counts.tolist(), name
        np.testing.assert_allclose(ours.squares, theirs.squares, rtol=2e-3, atol=1e-3 * theirs.squares.max())
        assert ours.sums is not None and theirs.sums is not None
        np.testing.assert_allclose(ours.sums, theirs.sums, rtol=0, atol=1e-3 * np.abs(theirs.sums).max())


def test_sums_are_those_of_the_inputs_counted_by_hand(model: Path, worker: Worker, tmp_path: Path) -> None:
    """Experts used by each token, times tokens: every (token, slot) is counted once, in every expert matrix."""
    measure(worker, job(model, tmp_path / "mine.gguf"))

    matrix = read_imatrix(tmp_path / "mine.gguf")
    for part in ("gate", "up", "down"):
        assert matrix.entries[f"blk.0.ffn_{part}_exps.weight"].counts.sum() == 2 * matrix.tokens
    assert matrix.entries["blk.0.ffn_gate_inp.weight"].counts.tolist() == [matrix.tokens]


def test_a_file_of_the_real_tool_gives_importance_as_llama_quantize_computes_it() -> None:
    name, shape = "blk.0.ffn_gate_exps.weight", (WIDTH, FEED_FORWARD, EXPERTS)
    with ImatrixFile(VECTORS / "llama_imatrix.gguf") as file:
        importance = file.importance(name, shape)
        entry = file.read(name)

    assert importance is not None
    assert importance.dtype == np.float32
    assert np.array_equal(importance, entry.squares / entry.counts[:, None].astype(np.float32))


def test_an_expert_that_nothing_reached_weighs_every_column_the_same(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", vector_imatrix())

    with ImatrixFile(tmp_path / "i.gguf") as file:
        importance = file.importance("blk.0.ffn_up_exps.weight", (WIDTH, FEED_FORWARD, EXPERTS))
        assert file.uncovered("blk.0.ffn_up_exps.weight") == (1,)

    assert importance is not None
    assert (importance[1] == 1).all()
    assert (importance[2, :5] == 0).all()


def test_a_matrix_multiplied_in_parts_has_importance_for_each_part(tmp_path: Path) -> None:
    """DeepSeek-V4's attn_output_a; llama-quantize stops at such a file."""
    squares = np.arange(1, 2 * 32 + 1, dtype=np.float32).reshape(1, 64)
    write_imatrix(tmp_path / "i.gguf", Imatrix({"blk.0.attn_output_a.weight": Accumulated(squares, np.array([1]))}))

    with ImatrixFile(tmp_path / "i.gguf") as file:
        importance = file.importance("blk.0.attn_output_a.weight", (32, 8))

    assert importance is not None
    assert importance.tolist() == squares.reshape(2, 32).tolist()


@pytest.mark.parametrize("shape", [(32, 9), (33, 8), (32, 8, 3), (63,), (32,)])
def test_importance_of_another_shape_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    squares = np.ones((1, 64), np.float32)
    write_imatrix(tmp_path / "i.gguf", Imatrix({"w": Accumulated(squares, np.array([1]))}))

    with ImatrixFile(tmp_path / "i.gguf") as file, pytest.raises(FormatError, match="another model"):
        file.importance("w", shape)


def test_writing_and_reading_again_changes_nothing(tmp_path: Path) -> None:
    matrix = vector_imatrix()

    write_imatrix(tmp_path / "i.gguf", matrix)
    again = read_imatrix(tmp_path / "i.gguf")

    assert (again.datasets, again.tokens, again.chunk_tokens) == (("vector.txt",), 1024, 512)
    assert list(again.entries) == sorted(matrix.entries)
    for name, entry in matrix.entries.items():
        assert np.array_equal(again.entries[name].squares, entry.squares)
        assert np.array_equal(again.entries[name].counts, entry.counts)


def test_merging_adds_squares_and_counts_so_that_two_machines_can_share_the_work() -> None:
    one = Imatrix({"w": Accumulated(np.array([[1.0, 2.0]], np.float32), np.array([3]))}, ("a",), 512, 512)
    two = Imatrix({"w": Accumulated(np.array([[10.0, 20.0]], np.float32), np.array([4]))}, ("b",), 512, 1024)

    total = merge_imatrices([one, two])

    assert total.entries["w"].squares.tolist() == [[11.0, 22.0]]
    assert total.entries["w"].counts.tolist() == [7]
    assert (total.datasets, total.tokens) == (("a", "b"), 1536)
    assert one.entries["w"].squares.tolist() == [[1.0, 2.0]]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6), st.integers(1, 30))
def test_coverage_counts_an_expert_as_cold_by_the_least_of_its_matrices(counts: list[int], enough: int) -> None:
    up, down = np.array(counts), np.array(counts[::-1])
    squares = np.zeros((len(counts), 4), np.float32)
    matrix = Imatrix(
        {
            "blk.7.ffn_up_exps.weight": Accumulated(squares, up),
            "blk.7.ffn_down_exps.weight": Accumulated(squares, down),
            "blk.7.attn_q.weight": Accumulated(squares[:1], np.array([0])),
        }
    )

    coverage = measure_coverage(matrix, enough)

    least = np.minimum(up, down)
    assert coverage.experts == len(counts)
    assert {entry.expert for entry in coverage.cold} == {i for i, n in enumerate(least) if n < enough}
    assert coverage.unseen == int((least == 0).sum())
    assert all(entry.layer == 7 for entry in coverage.cold)


def test_measuring_stops_when_every_expert_has_seen_enough(model: Path, worker: Worker, tmp_path: Path) -> None:
    notes: list[str] = []
    wanted = job(model, tmp_path / "i.gguf", min_samples=20, min_tokens=256)

    outcome = measure(worker, wanted, lambda event: notes.append(event[2]))

    assert notes[0].startswith("loading")
    notes = [each for each in notes if not each.startswith("loading")]
    # Before the first chunk nothing is known, not even that there are experts.
    assert notes[0] == "" and f"of {EXPERTS} experts have seen enough" in notes[1]
    assert outcome.stopped_because == "every expert has seen enough"
    assert 128 <= outcome.tokens < outcome.tokens_available


def test_measuring_says_which_experts_have_not_seen_enough(model: Path, worker: Worker, tmp_path: Path) -> None:
    outcome = measure(worker, job(model, tmp_path / "i.gguf", min_samples=10_000))

    assert outcome.stopped_because == "the corpus ended"
    assert {(c.layer, c.expert) for c in outcome.coverage.cold} == {(0, e) for e in range(EXPERTS)}
    assert isinstance(outcome.coverage.cold[0], ColdExpert)


def test_an_interrupted_measurement_goes_on_and_ends_with_the_same_sums(
    model: Path, worker: Worker, tmp_path: Path
) -> None:
    wanted = job(model, tmp_path / "i.gguf", checkpoint_s=0.0)

    def stop(event: tuple[int, int, str]) -> None:
        if event[0] >= 3 * 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(worker, wanted, stop)
    assert wanted.partial.exists() and not wanted.out.exists()
    resumed = measure(worker, wanted)
    measure(worker, replace(wanted, out=tmp_path / "whole.gguf"))

    assert resumed.resumed_tokens >= 3 * 128
    assert not wanted.partial.exists()
    assert wanted.out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_file_that_appeared_during_the_measurement_is_kept(model: Path, worker: Worker, tmp_path: Path) -> None:
    wanted = job(model, tmp_path / "i.gguf")
    wanted.out.write_bytes(b"precious")

    with pytest.raises(UsageError, match="exists already"):
        measure(worker, wanted)
    measure(worker, replace(wanted, overwrite=True))

    assert read_imatrix(wanted.out).entries


def leave_checkpoint(wanted: ImatrixJob, fingerprint: str) -> None:
    with Checkpoint(wanted.out, fingerprint) as checkpoint:
        matrix = vector_imatrix()
        matrix.tokens = 128
        checkpoint.write(matrix, 1)


def test_a_checkpoint_of_another_corpus_is_not_mixed_in(model: Path, worker: Worker, tmp_path: Path) -> None:
    wanted = job(model, tmp_path / "i.gguf")
    leave_checkpoint(wanted, "other")

    with pytest.raises(UsageError, match="is of another measurement; finish that one, or give --restart"):
        measure(worker, wanted)

    assert measure(worker, replace(wanted, restart=True)).resumed_tokens == 0
    assert sorted(path.name for path in tmp_path.glob("i.gguf*")) == ["i.gguf"]


@pytest.mark.parametrize("change", ["sums", "journal", "no journal"])
def test_a_checkpoint_that_came_from_elsewhere_is_not_mixed_in(
    change: str, model: Path, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = job(model, tmp_path / "i.gguf")
    leave_checkpoint(wanted, wanted.fingerprint)
    if change == "sums":
        data = bytearray(wanted.partial.read_bytes())
        data[-1] ^= 1
        wanted.partial.write_bytes(data)
    elif change == "journal":
        monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "another user's"))
    else:
        (tmp_path / "i.gguf.imatrix-journal").unlink()

    refused = pytest.raises(UsageError, match="of a measurement of another model, corpus or chunk size")
    with refused, Checkpoint(wanted.out, wanted.fingerprint) as checkpoint:
        checkpoint.read()
    assert wanted.partial.exists()


def test_a_checkpoint_that_0_1_left_is_named(model: Path, tmp_path: Path) -> None:
    left = tmp_path / ".i.gguf.measuring"
    left.write_bytes(b"GGUF")

    with pytest.raises(UsageError, match=r"left by an unfinished measurement of dfqs 0\.1"):
        Checkpoint(tmp_path / "i.gguf", "f")


def test_measuring_on_top_of_another_matrix_adds_to_it(model: Path, worker: Worker, tmp_path: Path) -> None:
    first = job(model, tmp_path / "first.gguf")
    measure(worker, first)
    measure(worker, job(model, tmp_path / "both.gguf", add=(first.out,)))

    one, both = read_imatrix(first.out), read_imatrix(tmp_path / "both.gguf")
    for name, entry in one.entries.items():
        assert both.entries[name].counts.tolist() == (2 * entry.counts).tolist()
        np.testing.assert_allclose(both.entries[name].squares, 2 * entry.squares, rtol=1e-5)


def test_a_model_whose_activations_are_no_numbers_is_refused_by_weight(worker: Worker, tmp_path: Path) -> None:
    values = np.ones(WIDTH, np.float32)
    values[0] = np.inf
    broken = write_model(tmp_path / "broken.gguf", {"blk.0.attn_norm.weight": values})

    with pytest.raises(RuntimeFailure, match=r"inputs of 'blk\.0\.attn_[qkv]\.weight' are no numbers"):
        measure(worker, job(broken, tmp_path / "i.gguf"))


def write_odd(path: Path, name: str, type_: GGMLType, kind: str = "imatrix") -> Path:
    shape = (4, 3)
    size = 12 * (4 if type_ is GGMLType.F32 else 2)
    write_gguf(path, [string("general.type", kind)], [TensorSource(name, shape, type_, lambda: [bytes(size)])])
    return path


@pytest.mark.parametrize(
    ("name", "type_", "kind", "reason"),
    [
        ("w.in_sum2", GGMLType.F32, "imatrix", "no .counts"),
        ("w.in_sum2", GGMLType.F32, "model", "not an importance matrix"),
        ("w.counts", GGMLType.F32, "imatrix", "not an importance matrix"),
    ],
)
def test_a_gguf_that_is_no_importance_matrix_is_refused(
    name: str, type_: GGMLType, kind: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=reason):
        ImatrixFile(write_odd(tmp_path / "odd.gguf", name, type_, kind))


@pytest.mark.parametrize(
    ("square", "count"), [(np.nan, 1), (np.inf, 1), (-1, 1), (1, -1), (1, np.nan), (1, np.inf), (1, 1e30), (np.nan, 0)]
)
def test_sums_that_are_none_are_refused_and_not_taken_for_weights(square: float, count: float, tmp_path: Path) -> None:
    """llama.cpp's kernels make a file of noise with a negative weight, without a word."""
    squares = np.ones((2, 32), np.float32)
    squares[1, 5] = square
    arrays = {"w.in_sum2": squares, "w.counts": np.array([[1], [count]], np.float32)}
    tensors = [
        TensorSource(name, values.shape[::-1], GGMLType.F32, lambda values=values: [values.tobytes()])  # type: ignore[misc]
        for name, values in arrays.items()
    ]
    write_gguf(tmp_path / "i.gguf", [string("general.type", "imatrix")], tensors)

    with ImatrixFile(tmp_path / "i.gguf") as file:
        with pytest.raises(FormatError, match="'w': holds what is no sum of squares, or no count"):
            file.importance("w", (32, 8, 2))
        with pytest.raises(FormatError, match="'w': holds what is no sum"):
            file.read("w")


def test_more_tokens_than_anybody_saw_are_not_added_up(tmp_path: Path) -> None:
    matrix = vector_imatrix()
    matrix.chunk_tokens, matrix.tokens = 2**32 - 1, (2**32 - 1) ** 2
    write_imatrix(tmp_path / "i.gguf", matrix)

    with pytest.raises(FormatError, match="more than anybody saw"):
        read_imatrix(tmp_path / "i.gguf")


def test_importance_of_two_models_is_not_added_up() -> None:
    one, two = (Imatrix({"w": Accumulated(np.ones((1, n), np.float32), np.array([1]))}) for n in (32, 64))

    with pytest.raises(FormatError, match=r"1 experts by 32 columns in one file and 1 by 64.*different models"):
        merge_imatrices([one, two])


def test_command_measures_and_reports_coverage_for_programs(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "i.gguf"
    command = [sys.executable, "-m", "dfqs.cli.main", "imatrix", str(model), "-o", str(out), "--chunk", "64"]
    result = subprocess.run(
        [*command, "--corpus", str(VECTORS / "calibration.txt"), "--max-tokens", "256", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )

    summary = json.loads(result.stdout)
    assert summary["tokens"] == 256
    assert summary["experts"] == EXPERTS
    assert set(read_imatrix(out).entries) == {n for n, shape, _ in TENSORS if len(shape) > 1} - {"token_embd.weight"}


@pytest.mark.skipif("DFQS_LLAMA_IMATRIX" not in os.environ, reason="DFQS_LLAMA_IMATRIX does not name the tool")
def test_the_real_tool_reads_our_file_and_merges_it_to_the_same_sums(
    model: Path, worker: Worker, tmp_path: Path
) -> None:
    measure(worker, job(model, tmp_path / "mine.gguf"))
    files = [tmp_path / "mine.gguf", VECTORS / "llama_imatrix.gguf"]
    command = [os.environ["DFQS_LLAMA_IMATRIX"], "-m", str(model), "-o", str(tmp_path / "theirs.gguf")]

    subprocess.run([*command, "--in-file", str(files[0]), "--in-file", str(files[1])], check=True, capture_output=True)

    ours, theirs = merge_imatrices([read_imatrix(path) for path in files]), read_imatrix(tmp_path / "theirs.gguf")
    assert set(ours.entries) == set(theirs.entries)
    assert ours.tokens == theirs.tokens
    for name, entry in theirs.entries.items():
        assert ours.entries[name].counts.tolist() == entry.counts.tolist()
        np.testing.assert_allclose(ours.entries[name].squares, entry.squares, rtol=1e-6)
