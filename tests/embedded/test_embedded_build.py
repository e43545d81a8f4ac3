"""Writing the demonstration model, on a tiny dense model in the place of SmolLM2: exact where it must be."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import embedded_jobs
from dense_llama import FFN_LENGTH, LAYERS, VOCABULARY, WIDTH, write_dense_llama
from dfqs.embedded import build
from dfqs.embedded.build import build_embedded_model, cached_embedded_model
from dfqs.embedded.dense import forward, read_dense_model
from dfqs.errors import NetworkError
from dfqs.gguf import GGMLType
from dfqs.gguf.file import GGUFFile
from dfqs.runtime import Worker
from runtime_functions import WORKER_ENV

PROMPT = [int(token) for token in np.random.default_rng(1).integers(0, VOCABULARY, 40)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dense_llama(tmp_path_factory.mktemp("dense") / "dense.gguf")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(env=WORKER_ENV, threads=1) as worker:
        yield worker


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, 512).astype(np.uint16)
    monkeypatch.setattr(build, "read_calibration", lambda _count: tokens)


def logits(worker: Worker, path: Path) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = worker.call(embedded_jobs.logits, path, PROMPT)
    return rows


def test_our_forward_pass_is_the_runtime_s_so_that_experts_are_fitted_on_the_true_activations(
    worker: Worker, dense: Path
) -> None:
    theirs = logits(worker, dense)

    ours = forward(read_dense_model(dense), np.array(PROMPT))

    assert theirs.std() > 1
    # The runtime keeps keys and values as F16.
    np.testing.assert_allclose(ours, theirs, atol=0.03)


def test_with_all_experts_used_the_written_model_is_the_dense_one(
    worker: Worker, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding, norms and epsilon over the padded width, the slices of the experts and their weights: all of it."""
    monkeypatch.setattr(build, "EXPERTS_USED", build.EXPERTS)
    monkeypatch.setattr(build, "WEIGHT_TYPE", GGMLType.F32)
    # The weights of the experts are then 1/6 to a millionth, not to a percent.
    monkeypatch.setattr(build, "ROUTER_SPREAD", 1e-6)

    build_embedded_model(tmp_path / "moe.gguf", dense)

    np.testing.assert_allclose(logits(worker, tmp_path / "moe.gguf"), logits(worker, dense), atol=0.03)


def test_with_one_expert_left_out_the_model_stays_near_the_dense_one(
    worker: Worker, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "WEIGHT_TYPE", GGMLType.F32)
    build_embedded_model(tmp_path / "moe.gguf", dense)

    distance = logits(worker, tmp_path / "moe.gguf") - logits(worker, dense)

    # Random weights have no structure to exploit; a wrong expert or weight makes noise of the logits' own size.
    assert 0 < distance.std() < 0.7 * logits(worker, dense).std()


@pytest.mark.thorough
def test_building_twice_gives_the_same_bytes(dense: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_embedded_model(tmp_path / name, dense)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.thorough
def test_the_file_says_what_it_is_so_that_nobody_takes_its_scores_for_another_model_s(
    dense: Path, tmp_path: Path
) -> None:
    build_embedded_model(tmp_path / "moe.gguf", dense)

    with GGUFFile(tmp_path / "moe.gguf") as file:
        metadata = file.header.metadata
    assert "demonstration" in str(metadata["general.name"])
    assert "say nothing about any other model" in str(metadata["general.description"])
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["general.base_model.count"] == 1
    assert metadata["general.base_model.0.name"] == "SmolLM2-135M-Instruct"
    assert metadata["general.base_model.0.repo_url"] == "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"
    assert metadata["llama.expert_count"] == build.EXPERTS
    assert metadata["llama.expert_used_count"] == build.EXPERTS_USED
    assert metadata["llama.feed_forward_length"] == FFN_LENGTH // build.EXPERTS


@pytest.mark.thorough
def test_every_neuron_of_the_dense_model_is_in_one_expert(dense: Path, tmp_path: Path) -> None:
    build_embedded_model(tmp_path / "moe.gguf", dense)

    with GGUFFile(tmp_path / "moe.gguf") as moe, GGUFFile(dense) as source:
        for layer in range(LAYERS):
            for name in ("gate", "up"):
                experts = moe.dequantized(f"blk.{layer}.ffn_{name}_exps.weight").reshape(FFN_LENGTH, -1)
                neurons = source.dequantized(f"blk.{layer}.ffn_{name}.weight")
                nearest = ((neurons[:, None] - experts[None, :, :WIDTH]) ** 2).sum(axis=2).argmin(axis=1)
                assert sorted(nearest) == list(range(FFN_LENGTH))
                assert not experts[:, WIDTH:].any()


@pytest.mark.thorough
class TestCache:
    """A cache of a model that takes a second to build."""

    @pytest.fixture
    def builds(self, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Paths of the models that were built."""
        built: list[Path] = []

        def counted(path: Path, *args: object, **kwargs: object) -> None:
            built.append(path)
            build_embedded_model(path, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(build, "cached_source", lambda _progress: dense)
        monkeypatch.setattr(build, "build_embedded_model", counted)
        return built

    def test_a_second_call_builds_nothing(self, builds: list[Path]) -> None:
        assert cached_embedded_model() == cached_embedded_model()
        assert len(builds) == 1

    def test_a_damaged_model_is_built_again_and_is_the_same(self, builds: list[Path]) -> None:
        path = cached_embedded_model()
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))

        assert cached_embedded_model().read_bytes() == good
        assert len(builds) == 2

    @pytest.mark.parametrize(("name", "value"), [("CALIBRATION_TOKENS", 1024), ("EXPERTS_USED", 4), ("VERSION", 99)])
    def test_another_setting_is_another_model_so_that_no_stale_one_is_used(
        self, builds: list[Path], monkeypatch: pytest.MonkeyPatch, name: str, value: int
    ) -> None:
        before = cached_embedded_model()
        monkeypatch.setattr(build, name, value)

        assert cached_embedded_model() != before
        assert len(builds) == 2

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0" * 64])
    def test_a_damaged_record_of_its_hash_is_no_reason_to_fail(self, builds: list[Path], content: bytes) -> None:
        path = cached_embedded_model()
        path.with_suffix(".sha256").write_bytes(content)

        assert cached_embedded_model() == path
        assert len(builds) == 2

    def test_without_the_source_nothing_half_built_is_left(
        self, builds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def offline(_progress: object) -> Path:
            raise NetworkError("no network")

        monkeypatch.setattr(build, "cached_source", offline)

        with pytest.raises(NetworkError):
            cached_embedded_model()
        assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []
