"""An audit finds what was not made as is said, says unknown where it cannot tell, and reads no more than it must."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import gguf
from dfqs.cli.main import run
from dfqs.errors import UsageError
from dfqs.gguf import GGMLType, TensorSource, read_header, string, u32, write_gguf
from dfqs.gguf.source import FileSource
from dfqs.model.classes import CLASSES, DeploymentClass
from dfqs.model.files import open_model
from dfqs.model.spec import Role
from dfqs.pull import Hub
from dfqs.quantize.audit import Audit, Side, Verdict, audit
from dfqs.quantize.audit_sample import draw_sample
from dfqs.quantize.imatrix_file import write_imatrix
from dfqs.quantize.quantize import quantize
from dfqs.runtime import Worker
from hub_server import FakeHub
from quantize_inputs import hashed_values, vector_imatrix, weights, write_model

COUNT, SWAPPED = 300, "blk.137.attn_q.weight"
NAMES = [f"blk.{n}.attn_q.weight" for n in range(COUNT)]
SHAPE = (64, 8)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=2) as worker:
        yield worker


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, worker: Worker) -> Path:
    """A source, its importance matrix, and what we quantized of it."""
    folder = tmp_path_factory.mktemp("audit")
    write_model(folder / "source.gguf")
    write_imatrix(folder / "imatrix.gguf", vector_imatrix())
    for name in ("IQ2_XXS-XL", "Q4_K-XL"):
        quantize(
            folder / "source.gguf",
            folder / f"{name}.gguf",
            CLASSES[name],
            imatrix=folder / "imatrix.gguf",
            worker=worker,
        )
    quantize(folder / "source.gguf", folder / "plain.gguf", CLASSES["Q4_K-XL"], worker=worker)
    return folder


@contextmanager
def side(path: Path) -> Iterator[Side]:
    model = open_model(path)
    sources = tuple(FileSource(part) for part in model.paths)
    yield Side(model, sources)
    for source in sources:
        source.close()


@pytest.fixture
def audited(worker: Worker) -> Callable[..., Audit]:
    def call(model: Path, source: Path, *, confidence: float = 1.0, **options: object) -> Audit:
        with side(model) as ours, side(source) as theirs:
            return audit(ours, theirs, confidence=confidence, worker=worker, **options)  # type: ignore[arg-type]

    return call


def once(data: bytes) -> Iterator[bytes]:
    yield data


def change(path: Path, name: str, data: bytes) -> None:
    header = read_header(path)
    span = header.span(header.tensor(name))
    assert len(data) == span.length
    whole = bytearray(path.read_bytes())
    whole[span.offset : span.end] = data
    path.write_bytes(whole)


@pytest.mark.parametrize("name", ["IQ2_XXS-XL", "Q4_K-XL", "plain"])
def test_what_we_quantized_is_byte_identical_when_it_is_made_again(
    name: str, made: Path, audited: Callable[..., Audit]
) -> None:
    imatrix = None if name == "plain" else made / "imatrix.gguf"

    found = audited(made / f"{name}.gguf", made / "source.gguf", imatrix=imatrix)

    assert found.verdict is Verdict.EQUAL
    assert len(found.tensors) == found.count(Verdict.EQUAL) == found.sample.population == 13
    assert all(tensor.rows_compared == tensor.rows for tensor in found.tensors)
    assert any(tensor.type != tensor.source_type for tensor in found.tensors)


def test_one_tensor_of_three_hundred_with_another_types_rounding_is_found_when_it_is_drawn(
    tmp_path: Path, worker: Worker, audited: Callable[..., Audit]
) -> None:
    source, model = tmp_path / "source.gguf", tmp_path / "model.gguf"
    keys = [string("general.architecture", "llama"), u32("llama.block_count", COUNT), u32("llama.embedding_length", 64)]
    keys += [u32("llama.context_length", 64), u32("llama.attention.head_count", 4)]

    def tensor(name: str) -> TensorSource:
        return TensorSource(name, SHAPE, GGMLType.F32, lambda: iter([hashed_values(name, 512).tobytes()]))

    write_gguf(source, keys, [tensor(name) for name in NAMES])
    quantize(source, model, DeploymentClass("mine", {Role.ATTENTION: GGMLType.Q8_0}), worker=worker)
    # Its values went through Q4_0 first, as those of a file that was made from a smaller one.
    values = hashed_values(SWAPPED, 512).reshape(8, 64)
    rounded = gguf.quants.dequantize(
        gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0), gguf.GGMLQuantizationType.Q4_0
    )
    change(model, SWAPPED, gguf.quants.quantize(rounded, gguf.GGMLQuantizationType.Q8_0).tobytes())
    drawn = {
        seed: SWAPPED in draw_sample(NAMES, confidence=0.5, share=1 / COUNT, seed=seed).names for seed in range(20)
    }
    seeds = [next(s for s in drawn if drawn[s]), next(s for s in drawn if not drawn[s])]

    with_it, without = (audited(model, source, confidence=0.5, share=1 / COUNT, seed=seed) for seed in seeds)

    assert with_it.verdict is Verdict.DIFFERENT and with_it.count(Verdict.DIFFERENT) == 1
    (different,) = [found for found in with_it.tensors if found.verdict is Verdict.DIFFERENT]
    assert different.name == SWAPPED and different.differing_blocks == different.blocks == 16
    assert different.rmse is not None and different.expected_rmse is not None
    assert different.rmse == pytest.approx(float(np.sqrt(np.mean((rounded - values) ** 2))), rel=0.1)
    assert different.rmse > 5 * different.expected_rmse > 0
    assert without.verdict is Verdict.EQUAL and len(without.tensors) == 150


def test_without_its_importance_matrix_a_tensor_is_unknown_and_neither_equal_nor_different(
    made: Path, audited: Callable[..., Audit]
) -> None:
    low = audited(made / "IQ2_XXS-XL.gguf", made / "source.gguf")
    four = audited(made / "Q4_K-XL.gguf", made / "source.gguf")

    assert low.verdict is four.verdict is Verdict.UNKNOWN
    for found in (low, four):
        for tensor in found.tensors:
            depends = tensor.type not in ("F32", "Q8_0")
            assert tensor.verdict is (Verdict.UNKNOWN if depends else Verdict.EQUAL), tensor
            assert not depends or "none was given" in (tensor.reason or "")
        assert found.making is not None and str(found.making.imatrix_sha256) in str([t.reason for t in found.tensors])


def test_another_importance_matrix_than_the_one_that_is_recorded_is_refused(
    made: Path, tmp_path: Path, audited: Callable[..., Audit]
) -> None:
    other = vector_imatrix()
    next(iter(other.entries.values())).squares[0, 0] += 1
    write_imatrix(tmp_path / "other.gguf", other)

    with pytest.raises(UsageError, match="not the importance matrix that the file was made with"):
        audited(made / "Q4_K-XL.gguf", made / "source.gguf", imatrix=tmp_path / "other.gguf")
    with pytest.raises(UsageError, match="without any"):
        audited(made / "plain.gguf", made / "source.gguf", imatrix=made / "imatrix.gguf")


def test_a_source_with_other_weights_is_different_in_what_was_made_of_them(
    made: Path, tmp_path: Path, audited: Callable[..., Audit]
) -> None:
    name = "blk.0.ffn_gate_exps.weight"
    shape = (256, 288, 4)
    write_model(tmp_path / "other.gguf", {name: weights(name, shape) * np.float32(1.5)})

    found = audited(made / "plain.gguf", tmp_path / "other.gguf")

    assert [t.name for t in found.tensors if t.verdict is Verdict.DIFFERENT] == [name]
    assert found.verdict is Verdict.DIFFERENT


def test_copied_tensors_must_be_the_sources_bytes(made: Path, tmp_path: Path, audited: Callable[..., Audit]) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes((made / "plain.gguf").read_bytes())
    change(copy, "blk.0.attn_norm.weight", np.ones(256, np.float32).tobytes())

    found = audited(copy, made / "source.gguf")

    (different,) = [t for t in found.tensors if t.verdict is Verdict.DIFFERENT]
    assert (different.name, different.reason) == (
        "blk.0.attn_norm.weight", "the source has the same type and other bytes",
    )  # fmt: skip


def test_a_large_tensor_is_read_in_places_and_it_is_said(made: Path, audited: Callable[..., Audit]) -> None:
    whole = audited(made / "plain.gguf", made / "source.gguf")

    found = audited(made / "plain.gguf", made / "source.gguf", limit_bytes=20_000)

    assert found.verdict is Verdict.EQUAL
    assert found.source_bytes_read < whole.source_bytes_read / 3
    assert all(t.rows_compared * 4 * 288 <= max(20_000 * 4, 16 * 4 * 288) for t in found.tensors)
    assert any(0 < t.rows_compared < t.rows for t in found.tensors)


def test_a_row_longer_than_any_models_is_not_read_into_memory(
    made: Path, monkeypatch: pytest.MonkeyPatch, audited: Callable[..., Audit]
) -> None:
    monkeypatch.setattr("dfqs.quantize.audit.LONGEST_ROW", 256)

    found = audited(made / "plain.gguf", made / "source.gguf")

    (long,) = [tensor for tensor in found.tensors if tensor.verdict is Verdict.UNKNOWN]
    assert long.name == "blk.0.ffn_down_exps.weight" and "longer than any model's" in (long.reason or "")
    assert long.rows_compared == 0


def test_a_source_that_is_no_number_makes_nothing_known(
    made: Path, tmp_path: Path, audited: Callable[..., Audit]
) -> None:
    name = "blk.0.attn_q.weight"
    values = weights(name, (256, 256)).copy()
    values[3, 5] = np.nan
    write_model(tmp_path / "nan.gguf", {name: values})

    found = audited(made / "plain.gguf", tmp_path / "nan.gguf")

    (unknown,) = [t for t in found.tensors if t.verdict is Verdict.UNKNOWN]
    assert unknown.name == name and "no numbers" in (unknown.reason or "")
    assert found.verdict is Verdict.UNKNOWN


def test_tensors_of_one_side_alone_are_a_difference_and_another_model_is_refused(
    made: Path, tmp_path: Path, worker: Worker, audited: Callable[..., Audit]
) -> None:
    source = made / "source.gguf"
    with_more = tmp_path / "more.gguf"
    header = read_header(source)
    with FileSource(source) as file:
        parts = {t.name: file.read_exactly(header.span(t).offset, t.length) for t in header.tensors}
    tensors = [TensorSource(t.name, t.shape, t.type, partial(once, parts[t.name])) for t in header.tensors]
    extra = TensorSource("blk.0.extra.weight", (64,), GGMLType.F32, partial(once, bytes(256)))
    write_gguf(with_more, [header.raw_entry(entry) for entry in header.entries], [*tensors, extra])

    more, less = audited(with_more, source), audited(source, with_more)

    assert more.verdict is less.verdict is Verdict.DIFFERENT
    assert more.only_in_model == less.only_in_source == ("blk.0.extra.weight",)
    with pytest.raises(UsageError, match="another model"):
        write_gguf(tmp_path / "o.gguf", [header.raw_entry(entry) for entry in header.entries], [extra])
        audited(source, tmp_path / "o.gguf")


def test_from_the_hub_only_the_ranges_of_drawn_tensors_are_read(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: (made / name).read_bytes() for name in ("plain.gguf", "source.gguf")}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with FakeHub(files=files) as hub:
        monkeypatch.setattr("dfqs.cli.remote.Hub", lambda **how: Hub(hub.endpoint, "none", **how))
        words = ["hf:owner/model:plain", "--source", "hf:owner/model:source", "--seed", "3", "--json"]
        words += ["--share", "0.3", "--confidence", "0.5"]

        assert run(["audit", *words]) == 0

        found = json.loads(capsys.readouterr().out)
        assert found["verdict"] == "equal" and found["sampled"] == found["equal"] < found["tensors"]
        assert hub.sent_bytes < sum(map(len, files.values())) / 2
        assert found["model_bytes_read"] + found["source_bytes_read"] <= hub.sent_bytes


def test_shards_on_both_sides_are_one_model(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plain", "source"):
        assert run(["split", str(made / f"{name}.gguf"), "--max-tensors", "5", "-o", str(tmp_path / name)]) == 0
    capsys.readouterr()

    first, second = (str(tmp_path / f"{name}-00001-of-00003.gguf") for name in ("plain", "source"))

    assert run(["audit", first, "--source", second, "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sampled"] == 13


def test_the_verb_says_what_it_found_in_its_exit_code(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes((made / "plain.gguf").read_bytes())
    change(copy, "blk.0.attn_norm.weight", np.ones(256, np.float32).tobytes())
    source = ["--source", str(made / "source.gguf"), "--confidence", "1"]

    assert run(["audit", str(copy), *source]) == 1
    shown = capsys.readouterr().out
    assert "different: of 13 of 13 tensors 12 are byte-identical, 1 different, 0 unknown" in shown
    assert "--seed" in shown
    assert run(["audit", str(made / "Q4_K-XL.gguf"), *source]) == 4
    assert run(["audit", str(made / "plain.gguf"), "--source", str(made / "none.gguf")]) == 2
    assert run(["audit", str(made / "plain.gguf"), *source, "--limit", "none"]) == 2
