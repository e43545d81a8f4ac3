"""`dfqs serve` as a real process: what answers, who may ask, and how it ends."""

import gzip
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli_run import write_unknown_architecture

import runtime_session_jobs
from cli_processes import RunningDfqs, run_dfqs, wait_until_gone
from dfqs.cli.main import run
from dfqs.cli.serve import plan_serving
from dfqs.errors import NetworkError
from dfqs.gguf import GGMLType, TensorSource, read_header, string, write_gguf
from dfqs.runtime import Worker
from dfqs.runtime.checks import check_model
from dfqs.serving.addresses import check_address, is_loopback
from dfqs.serving.client import Client
from dfqs.serving.engine import ServerSettings
from runtime_functions import WORKER_ENV

PROMPTS = ("The capital of France is", "def add(a, b):\n", "Once upon a time, in a small town")


class Served:
    """A server under way, and the document it announced itself with."""

    def __init__(self, running: RunningDfqs) -> None:
        self.running = running
        self.document: dict[str, Any] = json.loads(running.read_until("}\n"))
        self.url: str = self.document["url"]

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, bytes, Any]:
        """Status, body and headers, as curl would see them."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers


def serve(path: Path, *arguments: str) -> RunningDfqs:
    return RunningDfqs("serve", path, "--port", "0", "--json", "--ctx", "512", "--threads", "1", *arguments)


@pytest.fixture(scope="module")
def served(embedded_model: Path) -> Iterator[Served]:
    with serve(embedded_model) as running:
        yield Served(running)


def test_it_says_where_it_is_once_it_is_healthy(served: Served, embedded_model: Path) -> None:
    assert served.document["schema"] == "dfqs.serve/1"
    assert served.document["api"] == f"{served.url}/v1"
    assert served.url.startswith("http://127.0.0.1:")
    assert served.ask("/health")[0] == 200


def test_what_likelihoods_of_prompts_take_is_planned_where_there_is_no_limit(embedded_model: Path) -> None:
    checked = check_model(embedded_model)
    settings = ServerSettings(embedded_model, "m", context_tokens=512)

    free, _, plan = plan_serving(checked, settings, None, None, use_tuning=False)
    kept, _, _ = plan_serving(checked, settings, None, "4GB", use_tuning=False)

    # A second copy of the weights, its context and a process; the server's page is not there twice.
    assert checked.file_bytes < free.likelihood_bytes < plan.total_bytes
    assert kept.likelihood_bytes == 0


def test_the_model_is_called_by_its_own_name(served: Served, embedded_model: Path) -> None:
    name = read_header(embedded_model).metadata["general.name"]
    with Client(served.url) as client:
        assert client.models() == (name,)
    assert served.document["model"] == name


def test_curl_gets_a_chat_completion(served: Served) -> None:
    request = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
    status, body, _ = served.ask("/v1/chat/completions", request)

    answer = json.loads(body)
    assert status == 200
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == 4


def test_our_client_understands_it_streamed_and_whole(served: Served) -> None:
    pieces: list[str] = []
    messages = [{"role": "user", "content": "Hello"}]
    with Client(served.url + "/v1") as client:
        client.check_health()
        whole = client.chat(messages, max_tokens=4, top_logprobs=2)
        streamed = client.chat(messages, max_tokens=4, on_text=pieces.append)
        tokens = client.tokenize("Hello")

    assert whole.text == streamed.text == "".join(pieces)
    assert (whole.finish_reason, whole.completion_tokens) == ("length", 4)
    assert whole.logprobs is not None and len(whole.logprobs[0].top) == 2
    assert streamed.completion_tokens == 4
    assert tokens


def test_the_page_at_the_root_is_the_web_interface(served: Served) -> None:
    status, body, headers = served.ask("/", headers={"Accept-Encoding": "gzip"})

    page = gzip.decompress(body).decode()
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/html")
    assert "<!doctype html>" in page.lower()
    script = re.search(r'import\("\.(/_app/[^"]+\.js)"\)', page)
    assert script is not None
    status, _, headers = served.ask(script[1], headers={"Accept-Encoding": "gzip"})
    assert (status, headers["Content-Type"].split(";")[0].partition("/")[2]) == (200, "javascript")


def test_a_page_of_another_site_may_not_read_answers_through_the_browser(served: Served) -> None:
    foreign = served.ask("/v1/models", headers={"Origin": "https://example.org"})[2]
    own = served.ask("/v1/models", headers={"Origin": served.url})[2]

    assert foreign["Access-Control-Allow-Origin"] is None
    assert own["Access-Control-Allow-Origin"] == served.url


@pytest.mark.parametrize("fixture", ["embedded_model", "tiny_deepseek4"])
def test_our_sessions_generate_exactly_what_llama_server_generates(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    """The oracle: template, tokens and greedy answers of llama.cpp's own server."""
    path: Path = request.getfixturevalue(fixture)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]
    with serve(path) as running, Worker(env=WORKER_ENV, threads=1) as worker:
        server = Served(running)
        for prompt in PROMPTS:
            settings = {"n_ctx": 512, "threads": 1}
            tokens, generated = worker.call(runtime_session_jobs.greedy, path, prompt, 24, settings)
            asked = {"prompt": tokens, "n_predict": 24, "temperature": 0, "return_tokens": True, "cache_prompt": False}
            theirs = json.loads(server.ask("/completion", asked)[1])["tokens"]
            assert tokens == json.loads(server.ask("/tokenize", {"content": prompt, "add_special": True})[1])["tokens"]
            assert generated[: len(theirs)] == theirs
            assert len(theirs) >= 20
        rendered, _ = worker.call(runtime_session_jobs.render, path, messages)
        assert rendered == json.loads(server.ask("/apply-template", {"messages": messages})[1])["prompt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly_even_while_it_answers(smollm2_gguf: Path, number: signal.Signals) -> None:
    with serve(smollm2_gguf, "--grace", "0.5") as running:
        served = Served(running)
        workers = running.worker_pids()
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as client:
            body = b'{"messages":[{"role":"user","content":"Count."}],"max_tokens":400,"stream":true}'
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            client.sendall(body)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
            running.process.send_signal(number)
            assert running.wait() == 0

        assert running.errors().splitlines()[-1] == "stopped"

    wait_until_gone(workers)
    with Client(served.url) as gone, pytest.raises(NetworkError, match="nothing answers"):
        gone.check_health()


def test_a_server_that_dies_is_one_sentence(tiny_moe: Path) -> None:
    with serve(tiny_moe, "--restarts", "0") as running:
        Served(running)
        (worker,) = running.worker_pids()
        os.kill(worker, signal.SIGKILL)
        assert running.wait() == 3
        errors = running.errors()

    failure = json.loads(errors.splitlines()[-1])
    assert failure["kind"] == "worker-crash"
    assert failure["message"].startswith(f"llama.cpp died with SIGKILL while serving {tiny_moe}")
    assert "Traceback" not in errors


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(smollm2_gguf: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_dfqs("serve", smollm2_gguf, "--port", str(port))

    assert done.returncode == 3
    assert f"port {port} on 127.0.0.1 is taken; choose another with --port, or 0 for any" in done.stderr


def test_a_model_that_cannot_be_served_is_one_sentence_with_llama_cpp_s_reason(tmp_path: Path) -> None:
    done = run_dfqs("serve", write_unknown_architecture(tmp_path / "odd.gguf"), "--port", "0")

    assert done.returncode == 3
    assert "could not start: " in done.stderr
    assert "unknown model architecture: 'nonsense'" in done.stderr
    assert "Traceback" not in done.stderr


def test_listening_beyond_this_machine_is_warned_about_and_can_ask_for_a_key(smollm2_gguf: Path) -> None:
    with serve(smollm2_gguf, "--host", "0.0.0.0", "--api-key", "secret") as running:
        served = Served(running)
        refused = served.ask("/v1/models", {})[0]
        request = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        unknown = served.ask("/v1/chat/completions", request)[0]
        known = served.ask("/v1/chat/completions", request, {"Authorization": "Bearer secret"})[0]
        # Slots show what others ask; beyond loopback they are closed.
        slots = served.ask("/slots", headers={"Authorization": "Bearer secret"})[0]
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        errors = running.errors()

    assert (refused, unknown, known, slots) == (401, 401, 200, 501)
    assert "warning: listening on 0.0.0.0: whoever reaches this machine can use the model" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "0.0.0.0 is reached from other machines, so a key is needed"),
        (("--host", "::"), "so a key is needed: --api-key KEY (or DFQS_API_KEY); --without-key serves whoever comes"),
        (("--host", "0.0.0.0", "--force"), "so a key is needed"),
        (("--host", "0.0.0.0", "--api-key", ""), "the API key is empty"),
        (("--api-key", "two words"), "or has a space"),
    ],
)
def test_nobody_serves_the_world_by_oversight(
    options: tuple[str, ...], message: str, smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(smollm2_gguf), "--port", "0", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_names_and_pages_of_strangers_are_refused_and_listed_ones_are_not(served: Served) -> None:
    request = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}

    rebound = served.ask("/v1/models", headers={"Host": "evil.example"})
    foreign = served.ask("/v1/chat/completions", request, {"Origin": "https://evil.example"})
    plain = served.ask("/v1/chat/completions", request, {"Content-Type": "text/plain"})

    assert (rebound[0], foreign[0], plain[0]) == (403, 403, 415)
    assert b"--allow-host" in rebound[1] and b"--allow-origin" in foreign[1]
    assert foreign[2]["Access-Control-Allow-Origin"] is None
    # Small models take a tool that they are offered for a question.
    assert served.ask("/tools")[:2] == (200, b"[]")


def test_a_model_without_a_template_completes_and_does_not_converse_in_any_verb(tiny_moe: Path, tmp_path: Path) -> None:
    without = tmp_path / "without.gguf"
    without.write_bytes(tiny_moe.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_nothing_", 1))
    with serve(without, "--allow-host", "models.lan") as running:
        served = Served(running)
        request = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        status, body, _ = served.ask("/v1/chat/completions", request, {"Host": "models.lan:80"})
        completed = served.ask("/v1/completions", {"prompt": "Hello", "max_tokens": 1})[0]
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        errors = running.errors()

    assert (status, completed, served.document["chat"]) == (400, 200, False)
    assert "this model has no chat template, so it cannot converse" in json.loads(body)["error"]["message"]
    assert "warning: this model has no chat template" in errors
    plain = run_dfqs("run", without, "-p", "Hello", "-n", "2", "--ctx", "128", "--json")
    assert (plain.returncode, json.loads(plain.stdout)["settings"]["chat_template"]) == (0, False)
    assert json.loads(plain.stdout)["finish_reason"] in ("stop", "length")
    assert "this model has no chat template; the prompt is continued as plain text" in plain.stderr
    for arguments in (("run", without, "-p", "Hello", "--system", "Be brief."), ("chat", without)):
        done = run_dfqs(*arguments, stdin="Hello\n")
        assert (done.returncode, done.stdout) == (3, "")
        assert "has no chat template, so it cannot" in done.stderr


def test_a_template_without_measure_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    path = tmp_path / "hangs.gguf"
    tensor = TensorSource("token_embd.weight", (32,), GGMLType.F32, lambda: iter([bytes(128)]))
    write_gguf(path, [string("general.architecture", "llama"), string("tokenizer.chat_template", template)], [tensor])

    done = run_dfqs("serve", path, "--port", "0", "--ctx", "512")

    assert done.returncode == 3
    assert "dfqs: the model's chat template takes more than 5 s of CPU time; no honest one does" in done.stderr


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.1.2.3", True), ("0.0.0.0", False), ("::", False)],
)
def test_only_loopback_counts_as_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(NetworkError, match=r"cannot listen on 192\.0\.2\.1 port 0"):
        check_address("192.0.2.1", 0)


def test_a_prompt_outlives_a_stop_and_a_crash_and_is_answered_to_the_last_digit_as_from_its_beginning(
    tmp_path: Path, tiny_moe: Path
) -> None:
    asked = {"prompt": [20 + (13 * i * i + 7 * i) % 3900 for i in range(560)], "n_predict": 6, "temperature": 0}
    asked |= {"n_probs": 4, "return_tokens": True, "ignore_eos": True}
    answers = []
    crashed: Any = None
    for turn in range(2):
        with serve(tiny_moe, "--ctx", "640", "--prompt-cache", str(tmp_path / "kept")) as running:
            served = Served(running)
            status, body, _ = served.ask("/completion", asked)
            assert status == 200, body
            # By nobody but the server itself.
            assert served.ask("/slots/0?action=erase", {})[0] == 403
            if turn == 1:
                (worker,) = running.worker_pids()
                os.kill(worker, signal.SIGKILL)
                while served.ask("/health")[0] == 200:
                    time.sleep(0.01)
                crashed = json.loads(served.ask("/completion", asked)[1])
            running.process.send_signal(signal.SIGTERM)
            assert running.wait() == 0, running.errors()
        answers.append((served.document["restored_tokens"], json.loads(body)))

    (nothing, cold), (restored, warm) = answers
    assert (nothing, cold["timings"]["cache_n"]) == (0, 0)
    assert (restored, warm["timings"]["cache_n"], warm["timings"]["prompt_n"]) == (512, 512, 48)
    assert (crashed["timings"]["cache_n"], crashed["timings"]["prompt_n"]) == (512, 48)
    for again in (warm, crashed):
        assert again["tokens"] == cold["tokens"]
        assert again["completion_probabilities"] == cold["completion_probabilities"]


def test_the_thoughts_of_earlier_turns_reach_the_prompt_and_anthropic_s_form_is_answered(
    tmp_path: Path, tiny_moe: Path
) -> None:
    template = tmp_path / "thinks.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    user = {"role": "user", "content": "Hello"}
    turns = [user, {"role": "assistant", "content": "Yes.", "reasoning_content": "Why not?"}, user]
    with serve(tiny_moe, "--chat-template", str(template), "--deterministic", "--parallel", "4") as running:
        served = Served(running)
        rendered = json.loads(served.ask("/apply-template", {"messages": turns})[1])["prompt"]
        asked = {"messages": [user], "max_tokens": 3, "model": "any"}
        answers = [served.ask("/v1/messages", asked) for _ in range(2)]
        # Warm, and with what would make it go on from another's: the same, of chance as well.
        drawn = [
            json.loads(served.ask("/v1/chat/completions", {**asked, "temperature": 1.5, **more})[1])["choices"]
            for more in ({}, {"seed": -1, "cache_prompt": True, "id_slot": 0})
        ]
        clock = served.ask("/completion", {"prompt": "x", "t_max_predict_ms": 5})[0]
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        errors = running.errors()

    assert "<Why not?>Yes." in rendered
    assert [status for status, _, _ in answers] == [200, 200]
    first, second = (json.loads(body) for _, body, _ in answers)
    assert (first["type"], first["role"], first["content"]) == ("message", "assistant", second["content"])
    assert drawn[0] == drawn[1]
    assert clock == 400
    assert served.document["deterministic"] is True and served.document["parallel"] == 1
    assert "--deterministic computes one request at a time" in errors
