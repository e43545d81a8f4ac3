"""Live is what a question proves that was followed to the server and back: no exit code, no printed word alone."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.serving.client import Client
from dfqs.serving.witness import Witness
from dfqs.targets.catalogue import find_target
from dfqs.targets.contract import Endpoint, LocalModel
from dfqs.targets.live import prove_live
from dfqs.targets.serving import served
from evaluate_server import Reply, serve

MODEL = LocalModel((Path("/models/m.gguf"),), 1, "fake", "fake", "llama", 65_536)
READ = """
import json, os, pathlib, sys, urllib.request
config = json.loads((pathlib.Path(os.environ["PI_CODING_AGENT_DIR"]) / "models.json").read_text())
provider = config["providers"][sys.argv[sys.argv.index("--provider") + 1]]
model = provider["models"][0]["id"]
assert model == sys.argv[sys.argv.index("--model") + 1]
"""
ASK = """
question = os.environ.get("QUESTION") or sys.argv[-1]
body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}]}).encode()
request = urllib.request.Request(provider["baseUrl"] + "/chat/completions", body, {"Content-Type": "application/json"})
lines = urllib.request.urlopen(request).read().decode().splitlines()
events = [json.loads(line[5:]) for line in lines if line.startswith("data:") and "[DONE]" not in line]
text = "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"])
"""


@pytest.fixture
def pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is called pi; a test decides what it does."""
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    (tmp_path / "work").mkdir()
    return folder / "pi"


def write(path: Path, body: str) -> None:
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("body", "live", "reason"),
    [
        (READ + ASK + "print(text)", True, "what was printed is what it answered"),
        (READ + ASK + "print('\\x1b[1m' + text + '\\x1b[0m\\n')\nsys.exit(5)", True, "what it answered"),
        (READ + ASK + "print(text, 'and more')", False, "what was printed is not what the server answered"),
        (READ + ASK, False, "what was printed is not what the server answered"),
        (READ + "print('Hello there')", False, "no request that the server got had the nonce in it"),
        (READ + "os.environ['QUESTION'] = 'hi'" + ASK + "print(text)", False, "no request that the server got"),
        ("import sys\nprint('broken', file=sys.stderr)", False, "it says: broken"),
    ],
)
def test_only_the_servers_own_answer_to_our_own_question_is_live(
    body: str, live: bool, reason: str, pi: Path, tmp_path: Path
) -> None:
    write(pi, body)
    with serve(lambda _: Reply("Hello there")) as server:
        endpoint = Endpoint(f"{server.url}/v1", "fake", 65_536)
        proof = prove_live(find_target("pi"), MODEL, endpoint, tmp_path / "work")

    assert (proof.live, reason in proof.reason) == (live, True), proof
    assert (proof.prompt_bytes > 0) == ("nonce" not in proof.reason or live or "what was printed" in proof.reason)


def test_a_server_that_is_down_proves_nothing_whatever_the_exit_code(pi: Path, tmp_path: Path) -> None:
    write(
        pi,
        READ + "try:\n    " + ASK.strip().replace("\n", "\n    ") + "\nexcept OSError:\n    print('API call failed')",
    )
    proof = prove_live(find_target("pi"), MODEL, Endpoint("http://127.0.0.1:9/v1", "fake", 65_536), tmp_path / "work")

    assert (proof.live, proof.exit_code) == (False, 0)
    assert "gave no text" in proof.reason


def test_a_tool_that_does_not_end_is_stopped(pi: Path, tmp_path: Path) -> None:
    write(pi, "import time\ntime.sleep(60)")
    with serve(lambda _: Reply("Hello")) as server:
        endpoint = Endpoint(f"{server.url}/v1", "fake", 65_536)
        proof = prove_live(find_target("pi"), MODEL, endpoint, tmp_path / "work", longest_s=0.5)

    assert not proof.live and "did not end" in proof.reason


def test_what_is_not_here_or_cannot_be_asked_is_said(pi: Path, tmp_path: Path) -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", "fake", 65_536)
    with pytest.raises(UsageError, match="pi is not installed"):
        prove_live(find_target("pi"), MODEL, endpoint, tmp_path / "work")
    with pytest.raises(UsageError, match="no way to ask"):
        prove_live(find_target("jan"), MODEL, endpoint, tmp_path / "work")


def test_a_witness_passes_on_what_it_remembers() -> None:
    with (
        serve(lambda _: Reply("one two", prompt_tokens=7)) as server,
        Witness(server.url) as witness,
        Client(witness.url) as client,
    ):
        assert client.models() == ("fake",)
        completion = client.chat([{"role": "user", "content": "what?"}], max_tokens=5, on_text=lambda _: None)

    assert completion.text == "one two"
    assert [(each.method, each.path, each.status) for each in witness.seen] == [
        ("GET", "/v1/models", 200),
        ("POST", "/v1/chat/completions", 200),
    ]
    assert witness.seen[1].asks("what?") and not witness.seen[1].asks("why?")
    assert witness.seen[1].answer() == "one two"
    assert replace(witness.seen[1], response=b"{").answer() is None


def test_a_server_that_does_not_come_up_is_not_waited_for(tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    with (
        pytest.raises(RuntimeFailure, match="ended with exit code 2 before it answered"),
        served(missing, port=0, context_tokens=None, api_key=None),
    ):
        raise AssertionError("it answered")
