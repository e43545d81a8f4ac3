"""A server whose experts stream: it says what the model in memory says, and says nothing where bytes are missing."""

import http.client
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli_processes import RunningDfqs
from dfqs.errors import RuntimeFailure
from dfqs.gguf import read_header
from dfqs.integrity.manifest import make_manifest, manifest_path
from dfqs.records import write_json
from dfqs.runtime.loading import InMemory, StreamFigures
from dfqs.runtime.requests import ContextSettings
from dfqs.serving import server_watch
from dfqs.serving.engine import ServerSettings
from dfqs.serving.server import limits_of
from dfqs.serving.stream_metrics import format_metrics
from dfqs.streaming.budget import Streamed
from dfqs.streaming.layout import plan_layout
from dfqs.streaming.settings import StreamSettings
from engine_requests import ask_engine, complete
from engine_requests import post as post_to_engine
from fixtures_moe import write_tiny_moe
from memory_cgroup import memory_group

PROMPTS = [[(11 * i * i + 17 * i + 101 * row) % 3900 + 20 for i in range(9 + 8 * row)] for row in range(4)]
TOKENS = sum(map(len, PROMPTS)) + 4 * 11
"""That four answers of twelve tokens take: the last of each is not computed with."""
SPEED = ContextSettings(n_batch=64, n_ubatch=32, flash_attention="off")
RAM = 560_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    path = tmp_path_factory.mktemp("serving") / "model.gguf"
    return write_tiny_moe(path, smollm2_gguf, "qwen3moe", alignment=4096)


def settings(path: Path, order: Any, parallel: int = 4) -> ServerSettings:
    return ServerSettings(path, "tiny", context_tokens=64, parallel=parallel, speed=SPEED, order=order, bounded=True)


def test_four_requests_at_once_are_answered_as_in_memory_with_no_few_and_all_experts_cached(tiny: Path) -> None:
    experts = plan_layout([read_header(tiny)]).experts
    one = max(pages.length for pages in experts.values())
    ask = complete(PROMPTS, 12)
    wanted, nothing = ask_engine(settings(tiny, InMemory("mmap", repack=False)), ask)

    assert nothing is None
    assert [len(tokens) for tokens, _ in wanted] == [12] * 4
    for cached in (0, 10, len(experts)):
        answers, figures = ask_engine(settings(tiny, Streamed((tiny,), StreamSettings(cached * one))), ask, TOKENS)
        # Tokens, and the log-probabilities of those that might have come instead, to the last digit.
        assert answers == wanted, f"{cached} experts cached"
        assert figures is not None and figures.tokens is not None and figures.hit_rate is not None
        assert figures.choices > figures.passes >= 13
        if cached == 0:
            assert figures.hit_rate == figures.read_bytes == 0
        if cached == len(experts):
            assert figures.read_bytes <= sum(pages.length for pages in experts.values())


def test_a_deterministic_server_answers_four_at_once_as_each_alone_in_memory_and_streamed(tiny: Path) -> None:
    shared = [PROMPTS[3][:20] + prompt for prompt in PROMPTS]

    def ask(engine: Path) -> Any:
        def one(prompt: list[int]) -> Any:
            body = {"prompt": prompt, "n_predict": 10, "temperature": 0, "n_probs": 4, "return_tokens": True}
            status, answer = post_to_engine(engine, "/completion", body)
            assert status == 200, answer
            return answer["tokens"], answer["completion_probabilities"]

        alone = [one(prompt) for prompt in shared]
        with ThreadPoolExecutor(4) as pool:
            at_once = list(pool.map(one, shared * 2))
        assert at_once == alone * 2
        return alone

    orders = (InMemory("mmap", repack=False), Streamed((tiny,), StreamSettings(200_000)))
    whole, streamed = (
        ask_engine(replace(settings(tiny, order, parallel=1), deterministic=True), ask)[0] for order in orders
    )
    assert whole == streamed


def test_a_wheel_that_is_another_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    class Batch:
        poll = 50

    class Parameters:
        cpuparams_batch = Batch()
        numa = rope_scaling_type = pooling_type = attention_type = flash_attn_type = -1

    with pytest.raises(RuntimeFailure, match="its neighbours are not where they were"):
        server_watch.watch_graphs(Parameters(), 1)
    assert Parameters.cpuparams_batch.poll == 50

    monkeypatch.setattr(server_watch, "installed_version", lambda: "2026.11.1")
    with pytest.raises(RuntimeFailure, match=r"it is xllamacpp 2026\.11\.1, not .* pip install xllamacpp=="):
        server_watch.watch_graphs(Parameters(), 1)


def test_metrics_have_no_line_for_what_is_not_known() -> None:
    some = StreamFigures(2, 40, 0.25, 6000, 0.5, tokens=3, passes_s=1.5, disk_bytes_per_s=None)
    lines = format_metrics(some).decode().splitlines()

    assert "dfqs_stream_bytes_per_token 2000.0" in lines
    assert "dfqs_stream_experts_in_memory_total 10" in lines
    assert "# TYPE dfqs_stream_read_bytes_total counter" in lines
    assert not any("bound_ratio" in line or "None" in line for line in lines)

    known = StreamFigures(2, 40, 0.25, 6000, 0.5, tokens=3, passes_s=1.5, disk_bytes_per_s=20_000.0)
    # A second of computing and 0.3 of reading, in the 1.5 seconds that it took.
    assert known.bound_share == pytest.approx(1.3 / 1.5)
    assert "dfqs_stream_bound_ratio 0.86" in format_metrics(known).decode()
    assert StreamFigures(0, 0, None, 0, 0.0).bytes_per_token is None


def test_requests_are_bounded_only_where_memory_is() -> None:
    free = ServerSettings(Path("m.gguf"), "m", context_tokens=8192)
    bounded = ServerSettings(Path("m.gguf"), "m", context_tokens=8192, bounded=True)

    assert limits_of(free).body_bytes == 32 << 20
    assert limits_of(bounded).body_bytes == (1 << 20) + 8192 * 16
    assert limits_of(bounded).bodies_bytes <= 5 << 20


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def serve_streamed(model: Path, *more: str) -> RunningDfqs:
    # For one request at a time all of the model would fit.
    fixed = ("--port", "0", "--json", "--ctx", "256", "--parallel", "2", "--threads", "1", "--no-tuning")
    return RunningDfqs("serve", model, *fixed, "--ram", str(RAM), *more)


def test_served_within_a_group_of_its_memory_it_tells_what_streams_and_a_changed_file_ends_it_in_a_sentence(
    embedded_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(embedded_model.read_bytes())
    asked = {"prompt": "The capital of France is", "n_predict": 12, "temperature": 0}
    with memory_group(RAM) as group, serve_streamed(model) as running:
        if group is not None:
            # Before the model is loaded, so that all of it counts; the worker is a child.
            (group / "cgroup.procs").write_text(str(running.process.pid))
        document = json.loads(running.read_until("}\n"))
        assert document["cache_bytes"] > 0
        status, first = post(document["url"] + "/completion", asked)
        assert (status, first["tokens_predicted"]) == (200, 12)
        assert post(document["url"] + "/completion", asked)[1]["content"] == first["content"]
        time.sleep(0.6)
        with urllib.request.urlopen(document["url"] + "/metrics", timeout=30) as answer:
            metrics = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
        assert float(metrics["llamacpp:tokens_predicted_total"]) == 24
        assert float(metrics["dfqs_stream_tokens_total"]) >= 24
        assert float(metrics["dfqs_stream_read_bytes_total"]) > 0
        assert 0 < float(metrics["dfqs_stream_hit_ratio"]) < 1

        with model.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x55")
        status, refusal = post(document["url"] + "/completion", asked)
        assert status == 500
        assert f"{model} is not what it was when it was loaded" in refusal["error"]["message"]
        assert running.wait() == 3
        errors = running.errors()
        if group is not None:
            counts = (group / "memory.oom_control", group / "memory.events")
            assert "oom_kill 0" in next(path for path in counts if path.exists()).read_text()
    assert "streaming experts from disk" in errors
    assert "it was written to; load it again" in json.loads(errors.splitlines()[-1])["message"]
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_streaming_server_cleanly_in_the_middle_of_an_answer(
    embedded_model: Path, number: signal.Signals
) -> None:
    with serve_streamed(embedded_model) as running:
        url = json.loads(running.read_until("}\n"))["url"]
        body = {"prompt": "Once", "n_predict": 200, "stream": True, "ignore_eos": True}
        request = urllib.request.Request(
            url + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert answer.read(20)
            started = time.monotonic()
            running.process.send_signal(number)
            assert running.wait() == 0
        assert time.monotonic() - started < 10
        assert running.errors().splitlines()[-1] == "stopped"


def cut_short(model: Path) -> None:
    os.truncate(model, model.stat().st_size // 2)


def replace_by_another(model: Path) -> None:
    model.with_name("other.gguf").replace(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "wanted"),
    [(cut_short, "it became shorter"), (replace_by_another, "another file has taken its place")],
)
def test_a_stream_under_way_ends_with_an_event_that_says_what_happened_to_the_file(
    embedded_model: Path, tmp_path: Path, harm: Callable[[Path], None], wanted: str
) -> None:
    model = tmp_path / "model.gguf"
    for path in (model, model.with_name("other.gguf")):
        path.write_bytes(embedded_model.read_bytes())
    body = {"prompt": "Once", "n_predict": 220, "stream": True, "ignore_eos": True}
    with serve_streamed(model) as running:
        document = json.loads(running.read_until("}\n"))
        assert document["cache_bytes"] > 0
        request = urllib.request.Request(
            document["url"] + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            received = answer.read(60)
            harm(model)
            with pytest.raises(http.client.IncompleteRead) as broken:
                received += answer.read()
            received += broken.value.partial
        assert running.wait() == 3
        errors = running.errors()
    events = [json.loads(line.removeprefix(b"data: ")) for line in received.splitlines() if line]
    assert "content" in events[0]
    assert wanted in events[-1]["error"]["message"]
    assert wanted in json.loads(errors.splitlines()[-1])["message"]
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_served_model_of_which_a_byte_differs_from_its_manifest_answers_nothing(
    embedded_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(embedded_model.read_bytes())
    write_json(manifest_path(model), make_manifest(model, experts=True))
    header = read_header(model)
    with model.open("r+b") as file:
        for tensor in header.tensors:
            if tensor.name.endswith("ffn_down_exps.weight"):
                # All experts of it, so whichever is chosen first.
                span = header.span(tensor)
                for expert in range(tensor.shape[-1]):
                    file.seek(span.offset + expert * (span.length // tensor.shape[-1]) + 5_000)
                    file.write(b"\x00\xff\x55")
    # With one conversation it fits whole into what others here are given. The first graph runs before it listens.
    with serve_streamed(model, "--check", "all", "--ram", "520MB") as running:
        assert running.wait() == 3
        errors = running.errors()
    assert "are not those recorded" in json.loads(errors.splitlines()[-1])["message"]


@pytest.mark.slow
def test_a_streaming_server_whose_worker_is_killed_is_one_sentence(embedded_model: Path) -> None:
    with serve_streamed(embedded_model, "--restarts", "0") as running:
        json.loads(running.read_until("}\n"))
        (worker,) = running.worker_pids()
        os.kill(worker, signal.SIGKILL)
        assert running.wait() == 3
        errors = running.errors()
    assert json.loads(errors.splitlines()[-1])["kind"] == "worker-crash"
