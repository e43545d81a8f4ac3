"""What a plan says of memory is what the runtime takes: for the reference geometry, and for models loaded for real."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import plan_memory_jobs
from dfqs.gguf import GGMLType, encode_header, read_header, tensor_length
from dfqs.planning.document import ContextPlan, PlanDocument, Verdict
from dfqs.planning.plan import PlanRequest, plan_model
from dfqs.runtime import Worker
from dfqs.runtime.memory import MemoryProbe
from fixtures_moe import write_tiny_moe
from runtime_functions import WORKER_ENV
from v4_flash_stub import write_v4_flash_stub

GB = 1_000_000_000
MIB = 1 << 20
CONTEXTS = (512, 1024, 2048)


@pytest.fixture(scope="module")
def v4_flash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v4_flash_stub(tmp_path_factory.mktemp("plan") / "v4-flash.gguf")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(env=WORKER_ENV, threads=1) as running:
        yield running


def row(plan: PlanDocument, tokens: int, profile: str = "default") -> ContextPlan:
    return next(row for row in plan.contexts if (row.asked_tokens, row.profile) == (tokens, profile))


def needed(found: ContextPlan) -> dict[str, str]:
    return {setting.name: setting.value for setting in found.needed}


def test_a_million_tokens_fit_the_specifications_80_gb_only_with_settings_that_the_plan_names(
    v4_flash: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = []
    answer = MemoryProbe.need
    monkeypatch.setattr(MemoryProbe, "need", lambda probe, s: questions.append(s) or answer(probe, s))  # type: ignore[func-returns-value]

    plan = plan_model(v4_flash, PlanRequest(memory_bytes=80 * GB, vram_bytes=24 * GB), worker=worker)

    assert [r.asked_tokens for r in plan.contexts] == [8192, 8192, 65_536, 65_536, 1_048_576, 1_048_576]
    assert {r.verdict for r in plan.contexts if r.asked_tokens < 100_000} == {Verdict.FITS}
    million, steady = row(plan, 1_048_576), row(plan, 1_048_576, "deterministic")
    assert (million.verdict, steady.verdict) == (Verdict.FITS_WITH, Verdict.FITS_WITH)
    assert needed(million) == {"swa_full": "off", "flash_attention": "on"}
    assert needed(steady) == {"swa_full": "off", "ubatch": "64"}
    assert steady.settings.flash_attention == "off" and (steady.settings.type_k, steady.settings.ubatch) == ("f16", 64)

    def part(found: ContextPlan, kind: str) -> int:
        return sum(p.bytes for p in found.parts if p.kind == kind)

    # Public figures of this geometry: 6,912 MiB of caches; 1.7 GiB of compute buffer with flash attention, 4.6 without.
    assert round(part(million, "kv") / MIB) == 6912
    assert [round(part(r, "compute") / (1 << 30), 1) for r in (million, steady)] == [1.7, 4.6]
    # 50.9 GB of caches with full-size windows; 35 GiB of compute buffer without flash attention.
    otherwise = {s.name: s.otherwise_bytes for s in million.needed}
    assert otherwise["swa_full"] is not None and otherwise["flash_attention"] is not None
    assert million.total_bytes is not None
    assert round((otherwise["flash_attention"] - million.total_bytes + part(million, "compute")) / (1 << 30), 1) == 35.1
    assert 115 * GB < otherwise["swa_full"] < 122 * GB
    assert part(million, "weights") == plan.tensor_bytes
    assert million.total_bytes == sum(p.bytes for p in million.parts)
    # Each costs a tenth of a second: three contexts in two profiles, and what they stand on.
    assert len(questions) <= 12
    assert plan.runtime == "llama.cpp b11549 (xllamacpp 2026.10.11549)"
    holds = {(e.component, e.level): e.holds for e in plan.envelope}
    assert holds["RAM", "minimum"] and holds["GPU VRAM", "minimum"] and not holds["storage", "minimum"]
    assert plan.split is not None and plan.split.fits
    assert plan.split.gpu_weights_bytes + plan.split.gpu_context_bytes + plan.split.reserve_bytes <= 24 * GB


@pytest.mark.parametrize(("ram", "least", "most"), [(48, 0.30, 0.40), (32, 0.65, 0.80), (16, 1.05, 1.20)])
def test_less_memory_streams_with_bytes_a_token_that_follow_from_the_cache(
    v4_flash: Path, worker: Worker, ram: int, least: float, most: float
) -> None:
    request = PlanRequest(contexts=(8192,), memory_bytes=ram * GB, disk_rates=(3 * GB,))

    plan = plan_model(v4_flash, request, worker=worker)

    found = row(plan, 8192)
    assert found.verdict is Verdict.STREAMED and found.streamed is not None
    streamed = found.streamed
    # 6 of 256 experts in each of 43 layers; an expert's slices lose at most a page at each of their ends.
    assert streamed.touched_bytes_per_token == pytest.approx(6 * 43 * 54.1e9 / (256 * 43), rel=0.01)
    assert streamed.total_bytes == ram * GB
    assert streamed.hit_share == streamed.cache_bytes / streamed.experts_bytes
    assert streamed.read_bytes_per_token == round(streamed.touched_bytes_per_token * (1 - streamed.hit_share))
    assert least * GB < streamed.read_bytes_per_token < most * GB
    assert [rate.tokens_per_s for rate in streamed.rates] == [3 * GB / streamed.read_bytes_per_token]


def test_memory_for_the_dense_part_alone_is_refused_with_what_would_change_it(v4_flash: Path, worker: Worker) -> None:
    plan = plan_model(v4_flash, PlanRequest(contexts=(8192,), memory_bytes=7 * GB), worker=worker)

    found = row(plan, 8192)
    assert (found.verdict, found.binding) == (Verdict.DOES_NOT_FIT, "resident weights")
    assert found.least_bytes is not None and 7 * GB < found.least_bytes < 8.5 * GB
    assert found.advice is not None and "GB of memory, or smaller types" in found.advice


def retyped(source: Path, type_: GGMLType, out: Path) -> Path:
    """A model of the same shapes in another type, its weights all zero: a header and a hole."""
    header = read_header(source)
    tensors = [
        (t.name, t.shape, type_ if t.type in (GGMLType.F16, GGMLType.Q8_0) and t.shape[0] % 32 == 0 else t.type)
        for t in header.tensors
    ]
    keys = [header.raw_entry(entry) for entry in header.entries]
    data_bytes = sum((tensor_length(kind, shape) + 31) // 32 * 32 for _, shape, kind in tensors)
    encoded = encode_header(keys, tensors)
    out.write_bytes(encoded)
    with out.open("ab") as file:
        file.truncate(len(encoded) + data_bytes)
    return out


def source_of(name: str, request: pytest.FixtureRequest, smollm2_gguf: Path, directory: Path) -> Path:
    """A model of a family that caches in a way of its own."""
    fixtures = {"demonstration": "embedded_model", "deepseek4": "tiny_deepseek4"}
    if name in fixtures:
        found: Path = request.getfixturevalue(fixtures[name])
        return found
    return write_tiny_moe(directory / "source.gguf", smollm2_gguf, name)


@pytest.mark.parametrize("type_", [GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_0], ids=lambda type_: type_.name)
@pytest.mark.parametrize("name", ["demonstration", "deepseek4", "qwen3moe", "gpt-oss"])
def test_a_plan_is_what_the_runtime_allocates_when_it_loads_the_model_for_real(
    name: str, type_: GGMLType, request: pytest.FixtureRequest, smollm2_gguf: Path, tmp_path: Path, worker: Worker
) -> None:
    path = retyped(source_of(name, request, smollm2_gguf, tmp_path), type_, tmp_path / "model.gguf")

    plan = plan_model(path, PlanRequest(contexts=CONTEXTS, memory_bytes=16 * GB), worker=worker)
    weights, contexts = worker.call(plan_memory_jobs.allocate, path, [{"n_ctx": tokens} for tokens in CONTEXTS])

    for tokens, parts in zip(CONTEXTS, contexts, strict=True):
        found = row(plan, tokens)
        planned = {kind: sum(p.bytes for p in found.parts if p.kind == kind) for kind in ("kv", "state", "compute")}
        assert planned == {kind: sum(p.bytes for p in parts if p.kind == kind) for kind in planned}
        assert found.total_bytes is not None
        program = next(p.bytes for p in found.parts if p.kind == "program")
        really = weights + sum(p.bytes for p in parts)
        # The log tells hundredths of a MiB.
        assert found.total_bytes - program == pytest.approx(really, rel=0.01, abs=MIB // 50)


def check_peak(path: Path, tokens: int, small: Path, worker: Worker) -> None:
    """What a full context takes at the most lies where the plan says."""
    with Worker(env=WORKER_ENV, threads=1) as fresh:
        before, peak = fresh.call(plan_memory_jobs.fill_context, path, tokens, small)

    found = row(plan_model(path, PlanRequest(contexts=(tokens,), memory_bytes=16 * GB), worker=worker), tokens)

    held = {kind: sum(p.bytes for p in found.parts if p.kind == kind) for kind in ("weights", "kv", "program")}
    assert found.total_bytes is not None
    assert held["weights"] + held["kv"] <= peak <= found.total_bytes - held["program"] + before


def test_the_peak_after_a_full_context_lies_where_the_plan_says(
    tiny_deepseek4: Path, smollm2_gguf: Path, tmp_path: Path, worker: Worker
) -> None:
    source = write_tiny_moe(tmp_path / "source.gguf", smollm2_gguf, "qwen3moe")

    check_peak(source, 1024, tiny_deepseek4, worker)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", CONTEXTS)
@pytest.mark.parametrize("type_", [GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_0], ids=lambda type_: type_.name)
@pytest.mark.parametrize("name", ["demonstration", "deepseek4", "qwen3moe", "gpt-oss"])
def test_the_peak_after_a_full_context_lies_where_the_plan_says_for_every_kind_of_cache(
    name: str,
    type_: GGMLType,
    tokens: int,
    request: pytest.FixtureRequest,
    tiny_deepseek4: Path,
    smollm2_gguf: Path,
    tmp_path: Path,
    worker: Worker,
) -> None:
    path = retyped(source_of(name, request, smollm2_gguf, tmp_path), type_, tmp_path / "model.gguf")

    check_peak(path, tokens, tiny_deepseek4, worker)
