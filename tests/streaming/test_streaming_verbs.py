"""Every verb that loads a model looks at memory before it does, says so in one voice, and stays within --ram."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.loading import Checking
from dfqs.cli.main import run
from dfqs.errors import SpaceError, UsageError
from dfqs.model.files import ModelFiles
from dfqs.runtime.loading import InMemory
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming import budget
from dfqs.streaming.budget import Streamed, choose_load
from memory_cgroup import memory_group, run_in_group

SETTINGS = ContextSettings(256)
RAM = 430_000_000
NEARLY_CHECKED, NEARLY_EVALUATED = 615_000_000, 590_000_000
"""A little less than what these take with all weights in memory (624 and 598 MB): the model uses five of its six
experts for every token, and with room for two each token would read all of them again, for minutes."""


def run_within(ram: int, arguments: Sequence[str | Path], seconds: float = 300) -> dict[str, Any]:
    """A command in a group that may hold no more than it was told to take; its document."""
    command = [sys.executable, "-m", "dfqs", *map(str, arguments), "--ram", str(ram), "--json"]
    with memory_group(ram) as group:
        if group is None:
            pytest.skip("no control group can be made here")
        ended = run_in_group(group, command, seconds)
        version_1 = (group / "memory.oom_control").exists()
        told = (group / ("memory.oom_control" if version_1 else "memory.events")).read_text()
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("streaming experts from disk") == 1
    assert "oom_kill 0" in told
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


def test_perplexity_stays_within_the_memory_it_was_given(embedded_model: Path) -> None:
    arguments: list[str | Path] = [
        "perplexity",
        embedded_model,
        "--window",
        "64",
        "--stride",
        "32",
        "--max-tokens",
        "129",
    ]

    document = run_within(RAM, arguments)

    assert document["streaming"]["read_bytes"] > 0
    assert document["conditions"]["numerics"].endswith(", not repacked")


@pytest.mark.slow
def test_an_importance_matrix_is_measured_within_the_memory_it_was_given(embedded_model: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = [
        "imatrix",
        embedded_model,
        "-o",
        tmp_path / "i.gguf",
        "--chunk",
        "64",
        "--max-tokens",
        "256",
    ]

    assert run_within(RAM, arguments)["streaming"]["read_bytes"] > 0


@pytest.mark.slow
def test_a_trace_is_captured_within_the_memory_it_was_given(embedded_model: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = [
        "route",
        "trace",
        embedded_model,
        "-o",
        tmp_path / "t.route",
        "--ctx",
        "256",
        "--weights",
    ]

    document = run_within(520_000_000, arguments)

    assert document["streaming"]["read_bytes"] > 0
    assert document["header"]["conditions"]["repack"] is False


@pytest.mark.slow
def test_routing_is_checked_within_the_memory_it_was_given(embedded_model: Path) -> None:
    arguments: list[str | Path] = ["route", "check", embedded_model, "--no-matrix", "--profile", "deterministic"]

    document = run_within(NEARLY_CHECKED, arguments)

    assert document["streaming"]["read_bytes"] > 0
    assert document["repack"] is False
    assert document["holds"] is True


@pytest.mark.slow
def test_an_evaluation_stays_within_the_memory_it_was_given_and_says_how_it_was_made(
    embedded_model: Path, tmp_path: Path
) -> None:
    arguments: list[str | Path] = ["eval", embedded_model, "-o", tmp_path / "out", "--suite", "quick", "--limit", "1"]

    ram = NEARLY_EVALUATED
    report = run_within(ram, [*arguments, "--only", "reasoning,speed"], seconds=1800)

    assert report["conditions"]["score"]["numerics"]["repack"] is False
    assert report["conditions"]["speed"]["load_mode"] == "streamed"
    assert report["conditions"]["speed"]["memory_limit_bytes"] == ram
    assert report["details"]["speed"]["disk_bytes_per_token"] >= 0


def test_what_nearly_fills_memory_is_loaded_with_a_word_about_it(
    smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = choose_load(smollm2_gguf, SETTINGS, "20GB").total_bytes

    def plan_with(available: int, **options: Any) -> budget.LoadPlan:
        monkeypatch.setattr(budget, "available_memory_bytes", lambda: available)
        return choose_load(smollm2_gguf, SETTINGS, None, smaller="a smaller --window", **options)

    assert plan_with(2 * need).describe() is None
    near = plan_with(int(need * 1.05))
    assert near.order == InMemory()
    assert "that are free; a smaller --window takes less" in (near.describe() or "")
    with pytest.raises(SpaceError, match=r"use a smaller --window, or a smaller quantization, or --force"):
        plan_with(int(need * 0.9), force=False)
    forced = plan_with(int(need * 0.9), force=True)
    # A copy in another order could not be thrown away and read again.
    assert forced.order == InMemory(repack=False)
    assert "(--force)" in (forced.describe() or "")


def test_a_model_that_fits_is_said_to_where_memory_was_named(embedded_model: Path) -> None:
    plan = choose_load(embedded_model, SETTINGS, "20GB", whole=InMemory(gpu_layers=0))

    assert plan.order == InMemory(gpu_layers=0)
    assert plan.limit_bytes == 20_000_000_000
    assert (plan.describe() or "").startswith("it fits whole: ")


def test_what_a_verb_needs_beside_the_model_is_taken_from_the_experts(embedded_model: Path) -> None:
    ram = 460_000_000
    plain = choose_load(embedded_model, SETTINGS, str(ram))
    beside = choose_load(embedded_model, SETTINGS, str(ram), beside_bytes=10_000_000)
    larger = choose_load(embedded_model, SETTINGS, str(ram), others=[ContextSettings(1024)])

    assert isinstance(plain.order, Streamed)
    assert isinstance(beside.order, Streamed)
    assert isinstance(larger.order, Streamed)
    assert beside.order.settings.cache_bytes == plain.order.settings.cache_bytes - 10_000_000
    assert larger.order.settings.cache_bytes < plain.order.settings.cache_bytes
    assert plain.total_bytes == beside.total_bytes == larger.total_bytes == ram
    with pytest.raises(SpaceError, match="it needs at least"):
        choose_load(embedded_model, SETTINGS, str(ram), beside_bytes=ram)
    with pytest.raises(UsageError):
        choose_load(embedded_model, SETTINGS, "much")


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "MODEL", "-p", "Hi"],
        ["serve", "MODEL", "--ctx", "256"],
        ["perplexity", "MODEL", "--window", "64", "--stride", "32"],
        ["imatrix", "MODEL", "-o", "OUT", "--chunk", "64"],
        ["route", "trace", "MODEL", "-o", "OUT", "--ctx", "256"],
        ["route", "check", "MODEL", "--no-matrix", "--profile", "deterministic"],
        ["route", "margins", "MODEL", "--tokens", "64"],
        ["route", "pressure", "MODEL", "--lengths", "64"],
        ["eval", "MODEL", "-o", "OUT", "--suite", "quick", "--only", "reasoning"],
    ],
)
def test_what_is_streamed_can_be_checked_by_every_verb(
    arguments: list[str],
    embedded_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(checking: Checking, model: ModelFiles, plan: budget.LoadPlan) -> budget.LoadPlan:
        raise UsageError(f"{model.name} against {checking}, {plan.total_bytes > 0}")

    monkeypatch.setattr(Checking, "applied", refuse)
    named = {"MODEL": str(embedded_model), "OUT": str(tmp_path / "out")}
    given = [named.get(argument, argument) for argument in arguments]

    code = run([*given, "--check", "all", "--manifest", "other.json"])

    assert code == 2
    told = capsys.readouterr().err.replace("\n", " ")
    assert "against Checking(mode='all', manifest=PosixPath('other.json')), True" in told


def test_a_ladder_checks_what_each_of_its_models_streams_against_its_own_manifest(
    embedded_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(checking: Checking, model: ModelFiles, plan: budget.LoadPlan) -> budget.LoadPlan:
        raise UsageError(f"{model.name} against {checking}, {plan.total_bytes > 0}")

    monkeypatch.setattr(Checking, "applied", refuse)

    ladder = ["ladder", str(embedded_model), str(tmp_path / "out"), "-c", "Q8_0", "--allow-requantize"]
    assert run([*ladder, "--check", "all"]) == 2
    assert "against Checking(mode='all', manifest=None), True" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "smaller"),
    [
        (["run", "MODEL", "-p", "Hi"], "a smaller --ctx"),
        (["perplexity", "MODEL"], "a smaller --window"),
        (["imatrix", "MODEL", "-o", "OUT"], "a smaller --chunk"),
        (["route", "trace", "MODEL", "-o", "OUT"], "a smaller --ctx or --ubatch"),
        (["route", "check", "MODEL"], "--no-matrix"),
        (["route", "margins", "MODEL"], "a smaller --tokens"),
        (["route", "pressure", "MODEL"], "shorter --lengths"),
        (["eval", "MODEL", "-o", "OUT", "--suite", "quick"], "a smaller --context"),
    ],
)
def test_too_little_memory_is_refused_before_loading_in_the_words_of_the_command(
    arguments: list[str], smaller: str, embedded_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"MODEL": str(embedded_model), "OUT": str(tmp_path / "out")}

    code = run([named.get(argument, argument) for argument in arguments] + ["--ram", "100MB"])

    assert code == 3
    told = capsys.readouterr().err
    assert "streamed, it needs at least" in told
    assert f"use {smaller}, or give it more (--ram), or --force" in told
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
