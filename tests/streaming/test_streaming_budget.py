"""Whether a model is streamed, and that a process told to keep within so much memory does."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dfqs.errors import SpaceError
from dfqs.gguf import read_header
from dfqs.runtime.loading import InMemory
from dfqs.runtime.memory import MemoryNeed
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming import budget
from dfqs.streaming.budget import PROGRAM_BYTES, Shortfall, Streamed
from dfqs.streaming.layout import plan_layout
from fixtures_moe import write_tiny_moe
from memory_cgroup import memory_group, run_in_group
from streaming_plans import plan_load
from v4_flash_stub import write_v4_flash_stub

GB = 1_000_000_000


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v4_flash_stub(tmp_path_factory.mktemp("stub") / "v4.gguf")


def need_of(path: Path) -> MemoryNeed:
    header = read_header(path)
    weights = sum(tensor.length for tensor in header.tensors)
    return MemoryNeed(8192, weights, 90 << 20, 300 << 20, 1 << 20)


@pytest.mark.thorough
def test_the_reference_model_is_loaded_whole_in_80_gb_and_streamed_in_less(stub: Path) -> None:
    header, need = read_header(stub), need_of(stub)

    whole = plan_load((header,), (stub,), need, 6, 80 * GB)
    assert whole.order == InMemory()
    assert whole.describe() is None
    for ram in (16 * GB, 32 * GB, 48 * GB):
        plan = plan_load((header,), (stub,), need, 6, ram)
        assert isinstance(plan.order, Streamed)
        assert plan.total_bytes == ram
        assert plan.resident_bytes is not None
        assert need.weights_bytes is not None
        assert (
            plan.order.settings.cache_bytes
            == plan.cache_bytes
            == ram - plan.resident_bytes - need.total_bytes + (need.weights_bytes) - PROGRAM_BYTES
        )
        # Attention, shared experts, output: 7.4 GB; and a page at each end of 33,024 slices.
        assert 7.4 * GB < plan.resident_bytes < 7.8 * GB


@pytest.mark.thorough
def test_memory_too_small_for_one_layers_experts_is_refused_with_what_it_takes(stub: Path) -> None:
    header = read_header(stub)

    with pytest.raises(SpaceError, match=r"it needs at least 8\.\d GB \(7\.\d GB of weights that every token uses, 4"):
        plan_load((header,), (stub,), need_of(stub), 6, 8 * GB)


def test_a_dense_model_that_does_not_fit_is_not_said_to_stream(smollm2_gguf: Path) -> None:
    header = read_header(smollm2_gguf)

    with pytest.raises(SpaceError, match="a model without experts cannot be streamed"):
        plan_load((header,), (smollm2_gguf,), need_of(smollm2_gguf), 0, 100_000_000)


def test_experts_smaller_than_a_page_are_not_called_no_experts(tmp_path: Path, smollm2_gguf: Path) -> None:
    path = write_tiny_moe(tmp_path / "tiny.gguf", smollm2_gguf, "qwen3moe")
    header = read_header(path)
    assert not plan_layout([header]).experts

    with pytest.raises(
        SpaceError, match=r"not streamed, because its experts are smaller than a page of memory \(4,096"
    ):
        plan_load((header,), (path,), need_of(path), 2, 100_000)


def test_a_run_told_to_keep_within_its_memory_lives_in_a_group_of_that_size_and_says_the_same(
    embedded_model: Path,
) -> None:
    ram = 440_000_000
    layout = plan_layout([read_header(embedded_model)])
    command = [sys.executable, "-m", "dfqs", "run", str(embedded_model), "-p", "The capital of France is", "--json"]
    command += ["--ctx", "256", "-n", "12"]
    with memory_group(ram) as group:
        if group is None:
            pytest.skip("no control group can be made here")
        streamed = run_in_group(group, [*command, "--ram", str(ram)])
        assert streamed.returncode == 0, streamed.stderr
        assert "streaming experts from disk" in streamed.stderr
        assert (
            "oom_kill 0" in (group / "memory.oom_control").read_text()
            if (group / "memory.oom_control").exists()
            else "oom_kill 0" in (group / "memory.events").read_text()
        )
    document = json.loads(streamed.stdout)

    with memory_group(10 * GB) as group:
        assert group is not None
        whole = json.loads(run_in_group(group, command).stdout)
    assert document["streaming"]["read_bytes"] > 0
    assert whole["streaming"] is None
    assert document["generated_tokens"] == whole["generated_tokens"] == 12
    assert layout.resident_bytes < ram


def test_without_the_option_what_fits_is_not_measured_and_what_does_not_is_streamed(
    embedded_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ContextSettings(n_ctx=256)
    assert budget.choose_load(embedded_model, settings, None).order == InMemory()

    monkeypatch.setattr(budget, "available_memory_bytes", lambda: 500_000_000)
    plan = budget.choose_load(embedded_model, settings, None)
    assert isinstance(plan.order, Streamed)
    assert plan.total_bytes <= 450_000_000


def test_a_command_without_force_does_not_advise_it() -> None:
    short = Shortfall(8 * GB, 62 * GB, 9 * GB, 8 * GB, GB)

    for told in (short, replace(short, least_bytes=None), replace(short, reason="the file is in memory already")):
        assert "--force" not in told.describe()
        assert "or --force" in told.describe(offers_force=True)
