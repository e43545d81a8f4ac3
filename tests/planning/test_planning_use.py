"""What tuning found, kept and used: for that model on that machine under that runtime, and nowhere else."""

import json
import re
from pathlib import Path

import pytest

from cli_processes import run_dfqs
from dfqs.cli import tune as command
from dfqs.cli.main import run
from dfqs.hardware import read_machine
from dfqs.model.files import open_model
from dfqs.planning import tuning as kept
from dfqs.planning import use
from dfqs.planning.settings import RunSettings, default_settings
from dfqs.planning.trials import Workload, run_trials
from dfqs.planning.tuning import Gain, Tuning, describe_gain, find_tuning, identify_model, store_tuning
from dfqs.planning.use import choose_start, choose_tuned
from dfqs.records import read_json
from dfqs.runtime.choice import runtime_name
from dfqs.runtime.loading import InMemory
from dfqs.runtime.requests import ContextSettings
from dfqs.streaming.budget import PROGRAM_BYTES, Streamed
from fixtures_moe import write_tiny_moe
from v4_flash_stub import write_v4_flash_stub

GOLDEN = Path(__file__).parents[1] / "golden" / "tuning-1.json"
SOURCE = Path(__file__).parents[2] / "src" / "dfqs"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    return write_tiny_moe(tmp_path_factory.mktemp("tiny") / "tiny.gguf", smollm2_gguf, "qwen3moe")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does."""
    monkeypatch.setattr(kept, "other_cpus", lambda _: 0.0)


def tuning_of(path: Path, **changes: object) -> Tuning:
    defaults = default_settings()
    found = {
        "model": identify_model(open_model(path)),
        "machine": read_machine().speed_conditions(),
        "runtime": runtime_name(),
        "busy": False,
        "streamed": False,
        "defaults": defaults,
        "settings": defaults.but(n_ubatch=32, n_batch=64, flash_attention="off", repack=False, huge_pages=True),
        **changes,
    }
    return read_json(GOLDEN, Tuning).model_copy(update=found)


def test_a_model_is_known_by_its_content_and_not_by_its_name_or_its_files(
    tiny: Path, tmp_path: Path, smollm2_gguf: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny.read_bytes())
    assert run(["split", str(tiny), "-o", str(tmp_path / "shards"), "--max-tensors", "20"]) == 0
    first = min(tmp_path.glob("shards-*.gguf"))
    other = write_tiny_moe(tmp_path / "other.gguf", smollm2_gguf, "qwen3moe", seed=1)

    known = identify_model(open_model(tiny)).sampled_sha256

    assert identify_model(open_model(copy)).sampled_sha256 == known
    assert identify_model(open_model(first)).sampled_sha256 == known
    assert identify_model(open_model(other)).sampled_sha256 != known


@pytest.mark.usefixtures("cache", "quiet")
def test_a_record_is_found_under_its_own_conditions_and_under_no_others(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(tiny)
    assert find_tuning(model, streamed=False) is None
    tuning = tuning_of(tiny)
    path = store_tuning(tuning)

    assert find_tuning(model, streamed=False) == tuning
    assert find_tuning(model, streamed=True) is None
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(kept, "runtime_name", lambda: "another build")
        assert find_tuning(model, streamed=False) is None
    with monkeypatch.context() as busy:
        busy.setattr(kept, "other_cpus", lambda _: 1.5)
        assert find_tuning(model, streamed=False) is None
    # Somebody else's record under this name, or none at all.
    path.write_text(json.dumps({**tuning.model_dump(mode="json"), "runtime": "another build"}))
    assert find_tuning(model, streamed=False) is None
    path.write_text("{")
    assert find_tuning(model, streamed=False) is None
    path.write_text(json.dumps({**tuning.model_dump(mode="json"), "settings": {"threads": 10**6}}))
    assert find_tuning(model, streamed=False) is None


@pytest.mark.usefixtures("cache", "quiet")
def test_what_was_asked_for_stands_above_what_was_tuned(tiny: Path) -> None:
    model = open_model(tiny)
    defaults = default_settings()
    store_tuning(tuning_of(tiny, settings=defaults.but(threads=1, threads_batch=1, n_ubatch=32)))

    tuned = choose_tuned(model, ContextSettings(n_ctx=512))
    assert (tuned.threads, tuned.context.n_ctx, tuned.context.n_ubatch, tuned.context.threads_batch) == (1, 512, 32, 1)
    asked = choose_tuned(model, ContextSettings(n_ctx=512), 2)
    assert (asked.threads, asked.context.threads_batch, asked.context.n_ubatch) == (2, None, 32)
    without = choose_tuned(model, ContextSettings(n_ctx=512), use_tuning=False)
    assert (without.tuned, without.threads, without.context) == (None, None, ContextSettings(n_ctx=512))


@pytest.mark.usefixtures("cache", "quiet")
def test_where_nothing_beat_the_defaults_a_run_is_as_without_a_tuning(tiny: Path) -> None:
    store_tuning(tuning_of(tiny, settings=default_settings()))

    start = choose_tuned(open_model(tiny), ContextSettings())

    assert (start.tuned, start.context, start.order) == (None, ContextSettings(), InMemory())
    assert "found none" in start.reason


def test_run_takes_what_was_tuned_says_so_with_v_and_leaves_it_out_when_told(tiny: Path, cache: Path) -> None:
    for busy in (False, True):
        store_tuning(tuning_of(tiny, busy=busy))
    arguments = ("run", tiny, "-p", "a", "--raw", "-n", "2", "--json", "-v")

    tuned, plain = run_dfqs(*arguments), run_dfqs(*arguments, "--no-tuning")

    settings = json.loads(tuned.stdout)["settings"]
    assert (settings["tuned"], settings["n_ubatch"], settings["flash_attention"]) == (True, 32, "off")
    assert re.search(r"settings: tuned \(.*n_ubatch 32.*\), when it was measured 1\.50 x \(95 %: ", tuned.stderr)
    assert json.loads(plain.stdout)["settings"]["tuned"] is False
    assert "the defaults (--no-tuning)" in plain.stderr


@pytest.mark.usefixtures("cache", "quiet")
def test_a_model_that_streams_streams_as_it_was_tuned(embedded_model: Path) -> None:
    model = open_model(embedded_model)
    settings = default_settings().but(streaming="hints", cache_share=0.5)
    store_tuning(tuning_of(embedded_model, streamed=True, settings=settings))
    ram = str(model.file_bytes * 6 // 10 + PROGRAM_BYTES)

    _, plain = choose_start(model, ContextSettings(n_ctx=64), ram=ram, use_tuning=False)
    start, plan = choose_start(model, ContextSettings(n_ctx=64), ram=ram)

    assert isinstance(plain.order, Streamed) and isinstance(plan.order, Streamed)
    assert plain.order.settings.hints is False
    assert (plan.order.settings.hints, plan.order.settings.cache_bytes) == (True, plain.order.settings.cache_bytes // 2)
    assert plan.total_bytes == plain.total_bytes - plain.order.settings.cache_bytes + plan.order.settings.cache_bytes
    assert "through the page cache" in (plan.describe() or "")
    assert start.tuned == settings


@pytest.mark.usefixtures("cache", "quiet")
def test_a_cache_that_was_tuned_smaller_than_a_token_needs_is_left_out(
    embedded_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(embedded_model)
    store_tuning(tuning_of(embedded_model, streamed=True, settings=default_settings().but(cache_share=0.5)))
    ram = str(model.file_bytes * 6 // 10 + PROGRAM_BYTES)
    monkeypatch.setattr(use, "least_cache_bytes", lambda *_: 1 << 40)

    _, plan = choose_start(model, ContextSettings(n_ctx=64), ram=ram)
    _, plain = choose_start(model, ContextSettings(n_ctx=64), ram=ram, use_tuning=False)

    assert plan.order == plain.order


@pytest.mark.usefixtures("quiet")
def test_a_cache_that_cannot_be_written_is_told_before_minutes_are_spent(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(command, "tune", lambda *_: pytest.fail("it was measured"))

    assert run(["tune", str(tiny)]) == 3

    assert str(tmp_path / "file" / "cache") in capsys.readouterr().err.replace("\n", "")


def test_an_interval_that_says_nothing_is_not_told_in_numbers() -> None:
    assert describe_gain(Gain(mean=0.9, low=0.01, high=6429475.7, pairs=2)) == "0.90 x (unsure: 2 pairs that differ)"
    assert describe_gain(Gain(mean=1.08, low=1.05, high=1.11, pairs=9)) == "1.08 x (95 %: 1.05 to 1.11)"


@pytest.mark.usefixtures("cache", "quiet")
def test_tune_shows_what_was_found_and_says_what_to_do_where_nothing_was(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", str(tiny), "--show"]) == 2
    assert f"'dfqs tune {tiny}' does it" in capsys.readouterr().err

    store_tuning(tuning_of(tiny))
    assert run(["tune", str(tiny), "--show"]) == 0
    shown = capsys.readouterr().out
    assert "n_ubatch 32" in shown
    assert "60.5 tokens/s (defaults 40.5)" in shown


@pytest.mark.parametrize("budget", ["soon", "0", "-3m", "25h", "3 weeks", "1e9"])
def test_a_budget_that_is_no_time_is_refused(tiny: Path, budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", str(tiny), f"--budget={budget}"]) == 2
    assert "write it like 90s, 3m or 1h" in capsys.readouterr().err


def test_requests_are_measured_and_settings_that_are_refused_left_out(tiny: Path) -> None:
    defaults = default_settings(1)
    # llama.cpp quantizes V under flash attention only.
    refused = defaults.but(type_v="q8_0", flash_attention="off")

    trials = run_trials(tiny, [defaults, refused, defaults.but(huge_pages=True, load_mode="none")], Workload(16, 4))

    assert [trial.settings.huge_pages for trial in trials] == [False, True]
    assert all(trial.prompt_s > 0 and trial.answer_s > 0 and trial.load_s > 0 for trial in trials)


def test_what_eval_and_route_measure_is_never_tuned() -> None:
    tuned = re.compile(r"planning\.(use|tune|tuning|settings)\b|find_tuning|choose_tuned")
    for package in ("evaluate", "quantize", "routing", "report", "embedded", "streaming"):
        for path in (SOURCE / package).rglob("*.py"):
            assert not tuned.search(path.read_text(encoding="utf-8")), path


def test_settings_are_checked_when_a_record_is_read() -> None:
    for wrong in ({"threads": 0}, {"type_k": "q3_k"}, {"load_mode": "lazy"}, {"n_ubatch": 10**9}):
        with pytest.raises(ValueError):
            RunSettings(**{**default_settings(2).model_dump(), **wrong})


@pytest.mark.parametrize(
    ("ctx", "gigabytes", "tokens"),
    [(4096, 32, 2048), (1500, 32, 1024), (600, 32, 512), (4096, 8.6, 512)],
    ids=["room", "short", "shorter", "tight"],
)
def test_a_streamed_prompt_is_computed_in_batches_as_long_as_leave_the_memory_to_experts(
    ctx: int, gigabytes: float, tokens: int, tmp_path: Path, cache: Path
) -> None:
    model = open_model(write_v4_flash_stub(tmp_path / "v4.gguf"))

    start, plan = choose_start(model, ContextSettings(n_ctx=ctx), ram=f"{gigabytes}GB")

    assert isinstance(plan.order, Streamed)
    assert (start.context.n_ubatch, start.context.n_batch) == (tokens, tokens)
    assert (f"prompts {tokens:,} tokens at a time" in start.reason) == (tokens > 512)
    assert plan.total_bytes == int(gigabytes * 1e9)


def test_a_model_in_memory_keeps_its_batches(tiny: Path, cache: Path) -> None:
    start, plan = choose_start(open_model(tiny), ContextSettings(n_ctx=4096), ram="20GB")

    assert plan.cache_bytes is None
    assert start.context == ContextSettings(n_ctx=4096)
