"""Memory needed, from a header alone: the numbers that llama.cpp then really allocates."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import runtime_session_jobs
from dfqs.errors import FormatError, RuntimeFailure, UsageError
from dfqs.gguf import encode_header, read_header, string
from dfqs.model.files import open_model
from dfqs.runtime import Worker
from dfqs.runtime.memory import (
    MemoryProbe,
    copied_output_bytes,
    measure_memory,
    measure_memory_curve,
    measure_stub,
    open_stub,
)
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.stub import write_stub, write_stubs
from fixtures_moe import write_tiny_moe
from moe_families import FAMILIES
from runtime_functions import WORKER_ENV
from v4_flash_stub import write_v4_flash_stub

MIB = 1 << 20


@pytest.fixture(scope="module")
def v4_flash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v4_flash_stub(tmp_path_factory.mktemp("stub") / "v4-flash.gguf")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(env=WORKER_ENV, threads=1) as running:
        yield running


@pytest.mark.parametrize("fixture", ["embedded_model", "tiny_deepseek4"])
def test_what_is_predicted_from_the_header_is_what_a_loaded_model_allocates(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(fixture)
    with Worker(env=WORKER_ENV, threads=1) as worker:
        predicted = measure_memory(path, 1024, worker=worker, flash_attention="off", n_ubatch=128)
        n_ctx, _, buffers = worker.call(
            runtime_session_jobs.describe_context,
            path,
            {"n_ctx": 1024, "flash_attention": "off", "n_ubatch": 128, "threads": 1},
        )

    def allocated(*kinds: str) -> int:
        return sum(buffer.bytes for buffer in buffers if buffer.kind in kinds)

    assert predicted.context_tokens == n_ctx == 1024
    assert predicted.compute_bytes == allocated("compute") > 0
    assert predicted.output_bytes == allocated("output") > 0
    assert predicted.kv_bytes == sum(b.bytes for b in buffers) - allocated("compute", "output") > 0
    assert predicted.weights_bytes == sum(tensor.length for tensor in read_header(path).tensors)


def test_a_llama_cache_has_the_size_that_its_geometry_says(smollm2_gguf: Path) -> None:
    # 30 layers x (K + V) x 3 heads of 64 x 2 bytes a token.
    short, long = measure_memory_curve(smollm2_gguf, [512, 2048])

    assert (short.kv_bytes, long.kv_bytes) == (512 * 23_040, 2048 * 23_040)
    assert long.total_bytes == long.weights_bytes + long.kv_bytes + long.compute_bytes + long.output_bytes


def test_the_reference_model_at_its_true_size_without_62_gb_of_anything(v4_flash: Path) -> None:
    """Public figures of llama.cpp b11549 for this geometry, f16 caches: see docs/runtime.md."""
    with Worker() as worker:
        small, middle, million = measure_memory_curve(v4_flash, [8192, 65_536, 1_048_576], worker, flash_attention="on")
        (full,) = measure_memory_curve(v4_flash, [8192], worker, flash_attention="on", swa_full=True)

    assert round(small.weights_bytes / 1e9, 1) == 62.1
    # Caches, and beside them the compressors' states of some 12 MiB.
    assert [round(need.kv_bytes / MIB) for need in (small, middle, million)] == [101, 474, 6924]
    assert round(full.kv_bytes / MIB) == 413
    # A million tokens fit beside the weights in 80 GB.
    assert million.total_bytes < 72e9


def test_the_reference_models_caches_have_names_so_that_a_reader_sees_which_one_grows(v4_flash: Path) -> None:
    with Worker(env=WORKER_ENV, threads=1) as worker:
        (small,) = measure_memory_curve(v4_flash, [8192], worker)
        (full,) = measure_memory_curve(v4_flash, [8192], worker, swa_full=True, flash_attention="off")

    assert [(part.name, part.cells, part.layers) for part in small.parts if part.kind == "kv"] == [
        ("sliding window", 768, 43),
        ("DSV4 CSA compressed", 2048, 21),
        ("DSV4 HCA compressed", 256, 20),
        ("DSV4 lightning-indexer", 2048, 21),
    ]
    assert {part.name for part in small.parts if part.kind == "state"} == {"DSV4 csa", "DSV4 hca", "DSV4 lid"}
    assert next(part.cells for part in full.parts if part.name == "sliding window") == 8192
    assert (small.flash_attention, full.flash_attention) == (True, False)
    assert sum(part.bytes for part in small.parts) == small.context_bytes


def test_a_refused_model_is_called_by_its_own_name_and_the_worker_goes_on(
    tmp_path: Path, smollm2_gguf: Path, embedded_model: Path
) -> None:
    header = read_header(smollm2_gguf)
    keys = [header.raw_entry(entry) for entry in header.entries if not entry.name.endswith("block_count")]
    odd = tmp_path / "odd \x1b[2J name.gguf"
    odd.write_bytes(encode_header(keys, [(t.name, t.shape, t.type) for t in header.tensors]))
    with odd.open("ab") as file:
        file.truncate(header.file_size)
    with Worker(env=WORKER_ENV, threads=1) as worker:
        with pytest.raises(RuntimeFailure, match=r"cannot load .*odd \\x1b\[2J name.gguf: .*block_count") as caught:
            measure_memory(odd, 512, worker=worker)
        assert "stub" not in str(caught.value)
        assert measure_memory(embedded_model, 512, worker=worker).context_tokens == 512


def test_a_context_beyond_the_trained_length_is_measured_capped_and_says_so(smollm2_gguf: Path) -> None:
    need = measure_memory(smollm2_gguf, 100_000)

    assert need.context_tokens == 8192
    assert need.notices == ("context capped at 8,192 tokens, the length this model was trained for",)


def test_a_stub_is_the_header_and_a_hole(v4_flash: Path, tmp_path: Path) -> None:
    header = read_header(v4_flash)
    stub = write_stub(header, tmp_path / "stub.gguf")

    found = read_header(stub)
    assert found.file_size > 62_000_000_000
    assert found.file_size - found.data_offset == header.file_size - header.data_offset
    assert stub.stat().st_blocks * 512 < 10_000_000
    assert found.tensors == header.tensors
    # All keys as they are, but for merges, of which llama.cpp makes a table that no number of ours depends on.
    merges = "tokenizer.ggml.merges"
    assert found.metadata[merges] == header.metadata[merges][:1]  # type: ignore[index]
    assert [name for name in header.metadata if not found.same_value(header, name)] == [merges]
    assert list(found.metadata) == list(header.metadata)


def test_a_stub_without_tokens_says_how_many_there_are_and_nothing_else_of_them(v4_flash: Path, tmp_path: Path) -> None:
    header = read_header(v4_flash)
    found = read_header(write_stub(header, tmp_path / "stub.gguf", tokens=False))

    assert found.tensors == header.tensors
    assert found.file_size - found.data_offset == header.file_size - header.data_offset
    assert found.metadata["deepseek4.vocab_size"] == 129_280
    assert [name for name in found.metadata if name.startswith("tokenizer.")] == ["tokenizer.ggml.model"]
    others = [name for name in header.metadata if not name.startswith("tokenizer.")]
    assert all(found.same_value(header, name) for name in others)
    assert (tmp_path / "stub.gguf").stat().st_blocks * 512 < 200_000


@pytest.mark.parametrize("family", ["embedded", "deepseek4", *sorted(FAMILIES)])
def test_what_a_context_takes_does_not_depend_on_which_tokens_there_are(
    family: str, request: pytest.FixtureRequest, tmp_path: Path, worker: Worker, smollm2_gguf: Path
) -> None:
    known = {"embedded": "embedded_model", "deepseek4": "tiny_deepseek4"}
    if family in known:
        path: Path = request.getfixturevalue(known[family])
    else:
        path = write_tiny_moe(tmp_path / "m.gguf", smollm2_gguf, family)
    settings = {"n_ctx": 512, "flash_attention": "off", "threads": 1}

    found = measure_memory(path, 512, worker=worker, flash_attention="off", threads=1)
    whole = write_stubs([read_header(path)], tmp_path)
    repacks = worker.call(open_stub, whole, path.name)

    said = worker.call(measure_stub, settings)
    copied = copied_output_bytes(read_header(path).tensors) if repacks else 0
    assert found == replace(said, weights_bytes=said.weights_bytes + copied)


def test_contexts_asked_about_together_are_those_asked_about_alone(v4_flash: Path, worker: Worker) -> None:
    asked = [
        ContextSettings(n_ctx=8192),
        ContextSettings(n_ctx=65_536, flash_attention="off"),
        ContextSettings(n_ctx=8192, flash_attention="off", type_v="q8_0"),
        ContextSettings(n_ctx=8192, swa_full=True, flash_attention="on"),
    ]
    with MemoryProbe(open_model(v4_flash), worker) as probe:
        together = probe.needs(asked)
        # Quantized V needs flash attention.
        assert isinstance(together[2], RuntimeFailure)
        assert [together[i] for i in (0, 1, 3)] == [probe.need(asked[i]) for i in (0, 1, 3)]


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused_when_the_tokens_are_asked_for(
    embedded_model: Path, tmp_path: Path, worker: Worker
) -> None:
    header = read_header(embedded_model)
    keys = [header.raw_entry(e) for e in header.entries if e.name != "tokenizer.ggml.pre"]
    odd = tmp_path / "odd.gguf"
    strange = string("tokenizer.ggml.pre", "strange")
    odd.write_bytes(encode_header([*keys, strange], [(t.name, t.shape, t.type) for t in header.tensors]))
    with odd.open("ab") as file:
        file.truncate(header.file_size)

    with MemoryProbe(open_model(odd), worker, check_tokens=True) as probe:
        assert probe.need(ContextSettings(n_ctx=512)).context_tokens == 512
        with pytest.raises(RuntimeFailure, match=r"odd\.gguf.*strange"):
            probe.require_tokens()
    with MemoryProbe(open_model(embedded_model), worker, check_tokens=True) as probe:
        probe.require_tokens()


def test_a_stub_of_a_tokenizer_without_merges_is_the_header_itself(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(encode_header([string("general.architecture", "llama")], []))
    header = read_header(source)

    assert write_stub(header, tmp_path / "stub.gguf").read_bytes() == source.read_bytes()


def test_no_stub_is_left_behind(smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    measure_memory(smollm2_gguf, 512)
    with pytest.raises(RuntimeFailure):
        measure_memory(smollm2_gguf, 512, type_v="q8_0", flash_attention="off")

    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_measured_is_refused(tmp_path: Path, smollm2_gguf: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model, not at all\n")

    with pytest.raises(FormatError):
        measure_memory(tmp_path / "text.gguf", 512)
    with pytest.raises(UsageError, match="no context length"):
        measure_memory_curve(smollm2_gguf, [])
