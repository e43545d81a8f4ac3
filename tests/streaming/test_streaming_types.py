"""Streamed logits are those in memory, bit for bit, whatever type experts are stored in and wherever they lie."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import streaming_jobs
from dfqs.gguf import GGMLType, read_header
from dfqs.runtime import Worker
from dfqs.streaming.layout import plan_layout
from fixtures_deepseek4 import Geometry, write_tiny_deepseek4
from runtime_functions import WORKER_ENV
from streaming_models import quantize_experts, write_wide_moe

TOKENS = [(7 * i * i + 13 * i) % 4000 for i in range(200)]
"""40 of a prompt in batches, 160 one by one, and the prompt backwards as a second sequence."""
TYPES = (GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.IQ1_S, GGMLType.MXFP4)
WHOLE_BLOCKS = {GGMLType.Q8_0, GGMLType.MXFP4, GGMLType.IQ4_NL}
"""Types for the demonstration model: its rows of 576 have no whole blocks of 256."""
QUICK = [
    ("qwen3moe", GGMLType.Q4_K, 32),
    ("gpt-oss", GGMLType.MXFP4, 32),
    ("llama4", GGMLType.IQ1_S, 4096),
    ("qwen3moe", GGMLType.Q8_0, 4096),
]
MATRIX = [*itertools.product(("qwen3moe", "gpt-oss", "llama4", "deepseek4"), TYPES, (32, 4096))]
MATRIX += [*itertools.product(("demonstration",), sorted(WHOLE_BLOCKS), (32, 4096))]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(threads=2, omp_wait_policy="passive", env=WORKER_ENV) as running:
        yield running


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


def written(sources: Path, architecture: str, smollm2: Path, embedded: Path) -> Path:
    """The model in F16, written once."""
    if architecture == "demonstration":
        return embedded
    path = sources / f"{architecture}.gguf"
    if path.is_file():
        return path
    if architecture == "deepseek4":
        few = Geometry(experts=8, compress_ratios=(0, 4, 128), hash_layers=1)
        return write_tiny_deepseek4(path, smollm2, few)
    return write_wide_moe(path, smollm2, architecture)


def assert_the_same(worker: Worker, model: Path) -> int:
    """With room for no, one, ten and all experts; returns how often experts were given up or had no place."""
    experts = plan_layout([read_header(model)]).experts
    one = max(pages.length for pages in experts.values())
    wanted = worker.call(streaming_jobs.run_in_memory, [model], TOKENS)
    storms = 0
    for cached in (0, 1, 10, len(experts)):
        found = worker.call(streaming_jobs.run_streamed, [model], TOKENS, cached * one)
        assert found.logits_sha256 == wanted.logits_sha256, f"{cached} experts cached"
        assert found.counts is not None
        storms += found.counts.misses if cached < len(experts) else 0
    return storms


def check(
    worker: Worker, sources: Path, tmp_path: Path, smollm2: Path, embedded: Path, case: tuple[str, GGMLType, int]
) -> None:
    architecture, type_, alignment = case
    target = tmp_path / "m.gguf"
    source = written(sources, architecture, smollm2, embedded)
    worker.call(quantize_experts, source, target, type_, alignment)
    layout = plan_layout([read_header(target)])
    assert layout.experts
    assert assert_the_same(worker, target) > 200


def name_of(case: tuple[str, GGMLType, int]) -> str:
    return f"{case[0]}-{case[1].name}-{case[2]}"


@pytest.mark.parametrize("case", QUICK, ids=name_of)
def test_experts_stream_to_the_same_bits_in_the_types_that_people_store_them_in(
    worker: Worker,
    sources: Path,
    tmp_path: Path,
    smollm2_gguf: Path,
    embedded_model: Path,
    case: tuple[str, GGMLType, int],
) -> None:
    check(worker, sources, tmp_path, smollm2_gguf, embedded_model, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MATRIX, ids=name_of)
def test_every_family_in_every_type_streams_to_the_same_bits(
    worker: Worker,
    sources: Path,
    tmp_path: Path,
    smollm2_gguf: Path,
    embedded_model: Path,
    case: tuple[str, GGMLType, int],
) -> None:
    check(worker, sources, tmp_path, smollm2_gguf, embedded_model, case)
