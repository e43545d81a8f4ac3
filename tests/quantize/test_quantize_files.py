"""Writing a quantized model: the same bytes on any path to them, what the file says of itself, and what is refused."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dfqs.errors import FormatError, SpaceError, UsageError
from dfqs.gguf import GGMLType, read_header
from dfqs.gguf.file import GGUFFile
from dfqs.integrity import hash_model
from dfqs.integrity.manifest import read_manifest
from dfqs.model.classes import CLASSES
from dfqs.quantize.imatrix_file import Accumulated, write_imatrix
from dfqs.quantize.quantize import plan_source, plan_work, quantize, read_source
from dfqs.runtime import Worker
from quantize_inputs import EXPERTS, FEED_FORWARD, WIDTH, vector_imatrix, weights, write_model

Q4 = CLASSES["Q4_K-XL"]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=2) as worker:
        yield worker


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_bytes_do_not_depend_on_threads_or_memory(model: Path, worker: Worker, tmp_path: Path) -> None:
    one, other = tmp_path / "one.gguf", tmp_path / "other.gguf"

    quantize(model, one, Q4, threads=1, worker=worker)
    quantize(model, other, Q4, threads=7, memory_bytes=300_000_000, worker=worker)

    assert one.read_bytes() == other.read_bytes()


def test_shards_in_and_out_hold_the_same_tensors_as_one_file(model: Path, worker: Worker, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole.gguf", tmp_path / "again.gguf"
    quantize(model, whole, Q4, worker=worker)

    parts = quantize(model, tmp_path / "part.gguf", Q4, max_shard_bytes=200_000, worker=worker).paths
    quantize(parts[0], again, CLASSES["Q4_K-XL"], worker=worker)

    assert len(parts) > 3
    assert parts[0].name == f"part-00001-of-{len(parts):05d}.gguf"
    with GGUFFile(whole) as a, GGUFFile(again) as b:
        assert {t.name: a.read_tensor(t.name) for t in a.header.tensors} == {
            t.name: b.read_tensor(t.name) for t in b.header.tensors
        }
    assert "split.count" not in read_header(again).metadata


def test_a_dot_in_the_name_stays_in_the_names_of_shards(model: Path, worker: Worker, tmp_path: Path) -> None:
    parts = quantize(model, tmp_path / "model-1.5", Q4, max_shard_bytes=400_000, worker=worker).paths

    assert [path.name for path in parts] == [f"model-1.5-{n:05d}-of-{len(parts):05d}.gguf" for n in (1, 2, 3)]


def test_the_file_says_by_what_recipe_and_from_what_it_was_made(model: Path, worker: Worker, tmp_path: Path) -> None:
    imatrix, out = tmp_path / "i.gguf", tmp_path / "out.gguf"
    write_imatrix(imatrix, vector_imatrix())

    quantize(model, out, Q4, imatrix=imatrix, worker=worker)

    metadata = read_header(out).metadata
    assert metadata["general.file_type"] == 15
    assert metadata["general.quantization_version"] == 2
    assert metadata["dfqs.class"] == "Q4_K-XL"
    assert json.loads(str(metadata["dfqs.recipe"]))["types"]["routed experts"] == "Q4_K"
    assert metadata["quantize.imatrix.file"] == "i.gguf"
    assert metadata["quantize.imatrix.dataset"] == "vector.txt"
    assert metadata["dfqs.imatrix_sha256"] == hashlib.sha256(imatrix.read_bytes()).hexdigest()
    assert str(metadata["dfqs.source_content_sha256"]) != "0" * 64
    assert metadata["llama.expert_count"] == EXPERTS
    assert len(metadata["tokenizer.ggml.tokens"]) == 257  # type: ignore[arg-type]


def test_the_class_of_an_input_is_not_inherited_by_what_is_made_of_it(
    model: Path, worker: Worker, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    quantize(model, first, CLASSES["Q8_0"], worker=worker)

    quantize(first, second, Q4, worker=worker)

    assert read_header(second).metadata["dfqs.class"] == "Q4_K-XL"
    assert "dfqs.imatrix_sha256" not in read_header(second).metadata


def test_low_bit_input_is_refused_unless_asked_for(model: Path, worker: Worker, tmp_path: Path) -> None:
    low = tmp_path / "low.gguf"
    quantize(model, low, Q4, worker=worker)

    with pytest.raises(UsageError, match=r"3 tensors are already quantized \(Q4_K, Q5_0.*--allow-requantize"):
        quantize(low, tmp_path / "out.gguf", CLASSES["Q2_K-XL"], worker=worker)
    quantize(low, tmp_path / "out.gguf", CLASSES["Q2_K-XL"], allow_requantize=True, worker=worker)

    assert read_header(tmp_path / "out.gguf").tensor("blk.0.ffn_up_exps.weight").type is GGMLType.Q2_K


def test_one_bit_types_without_an_importance_matrix_are_refused_before_work_begins(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"IQ1_S needs an importance matrix.*blk\.0\.ffn_gate_exps\.weight"):
        quantize(model, tmp_path / "out.gguf", CLASSES["IQ1_S-XL"])

    assert names_in(tmp_path) == ["model.gguf"]


def test_importance_of_another_model_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    matrix = vector_imatrix()
    matrix.entries["blk.0.attn_q.weight"] = Accumulated(np.ones((1, WIDTH + 32), np.float32), np.ones(1, np.int64))
    write_imatrix(tmp_path / "i.gguf", matrix)

    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight.*another model"):
        quantize(model, tmp_path / "out.gguf", Q4, imatrix=tmp_path / "i.gguf")


def test_importance_that_misses_a_needed_tensor_is_refused(model: Path, tmp_path: Path) -> None:
    matrix = vector_imatrix()
    del matrix.entries["blk.0.ffn_up_exps.weight"]
    write_imatrix(tmp_path / "i.gguf", matrix)

    with pytest.raises(UsageError, match=r"says nothing about 1 tensors that become IQ1_S"):
        quantize(model, tmp_path / "out.gguf", CLASSES["IQ1_S-XL"], imatrix=tmp_path / "i.gguf")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_with_tensor_and_place(
    bad: float, worker: Worker, tmp_path: Path
) -> None:
    values = weights("x", (WIDTH, FEED_FORWARD, EXPERTS))
    values[2, 5, 7] = bad
    model = write_model(tmp_path / "model.gguf", {"blk.0.ffn_gate_exps.weight": values})
    row = 2 * FEED_FORWARD + 5

    with pytest.raises(FormatError, match=rf"'blk\.0\.ffn_gate_exps\.weight'.*no numbers.*row {row}, column 7"):
        quantize(model, tmp_path / "out.gguf", Q4, worker=worker)

    assert names_in(tmp_path) == ["model.gguf"]


def test_a_norm_that_is_only_copied_is_looked_at_too(worker: Worker, tmp_path: Path) -> None:
    norm = np.ones(WIDTH, np.float32)
    norm[3] = np.nan
    model = write_model(tmp_path / "model.gguf", {"blk.0.ffn_norm.weight": norm})

    with pytest.raises(FormatError, match=r"blk\.0\.ffn_norm\.weight"):
        quantize(model, tmp_path / "out.gguf", Q4, worker=worker)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)

    with pytest.raises(SpaceError, match=r"1\.0 kB free, 966 kB are needed"):
        quantize(model, tmp_path / "out.gguf", Q4)

    assert names_in(tmp_path) == ["model.gguf"]


def test_an_existing_target_is_kept(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_bytes(b"precious")

    with pytest.raises(UsageError, match="exists already"):
        quantize(model, tmp_path / "out.gguf", Q4)

    assert (tmp_path / "out.gguf").read_bytes() == b"precious"


def test_a_model_cannot_be_quantized_onto_itself(model: Path) -> None:
    with pytest.raises(UsageError, match="both input and output"):
        quantize(model, model, Q4, overwrite=True)


def test_too_little_memory_is_refused_with_the_least_that_works(model: Path, worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--memory must be at least"):
        quantize(model, tmp_path / "out.gguf", Q4, memory_bytes=100_000_000, worker=worker)

    assert names_in(tmp_path) == ["model.gguf"]


def test_a_truncated_input_is_refused(model: Path, tmp_path: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1])

    with pytest.raises(FormatError, match="truncated"):
        quantize(model, tmp_path / "out.gguf", Q4)


def test_sizes_are_those_that_the_plan_announced(model: Path, tmp_path: Path) -> None:
    source = read_source(model)
    work = plan_work(source, plan_source(source, Q4), tmp_path / "out.gguf", None, None, 2**31, 1, False)

    result = quantize(model, tmp_path / "out.gguf", Q4)

    assert (tmp_path / "out.gguf").stat().st_size == result.file_bytes == work.outputs[0].size


def test_the_source_hash_in_the_file_is_the_one_that_verify_computes(
    model: Path, worker: Worker, tmp_path: Path
) -> None:
    result = quantize(model, tmp_path / "out.gguf", Q4, worker=worker)

    expected = hash_model(model, file=False).content_sha256
    assert read_header(tmp_path / "out.gguf").metadata["dfqs.source_content_sha256"] == expected
    manifest = read_manifest(result.manifests[0])
    assert manifest.file_sha256 == hashlib.sha256((tmp_path / "out.gguf").read_bytes()).hexdigest()
