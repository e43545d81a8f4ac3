"""More than one question: what the OpenAI client can ask for, the harnesses, and the web page, each followed to the
server and back.

Every case gets a witness in front of the server and a nonce. It is live when the nonce stood in a request that the
server got, and what the tool shows is what the server answered that request with.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.serving.witness import Witness, Witnessed
from dfqs.targets.catalogue import find_target
from dfqs.targets.contract import Endpoint, LocalModel
from dfqs.targets.look import read_site

LONGEST_S = 600.0
ANSWER_S = 120.0
_STEADY_MS = 2000
_ANY_MODEL = LocalModel((Path("/any.gguf"),), 1, "any", "any", "llama", 8192)
_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "The time in a place.",
        "parameters": {"type": "object", "properties": {"place": {"enum": ["Oslo", "Lima"]}}, "required": ["place"]},
    },
}
_TASK = """
task: nonce_task
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/items.jsonl}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "yes"
output_type: generate_until
generation_kwargs: {{until: [], max_gen_toks: 24, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
_OPENAI = """
import json, os, secrets, sys
from openai import OpenAI
client, what, question = OpenAI(), sys.argv[1], sys.argv[2]
messages = [{"role": "user", "content": question}]
given = {"model": os.environ["MODEL"], "max_tokens": 96, "temperature": 0}
def ask(**more):
    return client.chat.completions.create(messages=messages, **given, **more)
if what == "stream":
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(stream=True) if chunk.choices]
    print(json.dumps({"shown": ["".join(pieces)], "good": len(pieces) > 2}))
if what == "schema":
    form = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": json.loads(sys.argv[3])}}
    said = ask(response_format=form).choices[0].message.content
    found = json.loads(said)
    good = found["colour"] in ("red", "green") and 0 <= found["count"] <= 9
    print(json.dumps({"shown": [said], "good": good}))
if what == "logprobs":
    choice = ask(logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    joined = b"".join(bytes(token.bytes) for token in tokens).decode("utf-8", "replace")
    good = all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)
    good = good and joined.startswith(choice.message.content)
    print(json.dumps({"shown": [choice.message.content], "good": good}))
if what == "tools":
    tool, code = json.loads(sys.argv[3]), secrets.token_hex(3)
    message = ask(tools=[tool], tool_choice="required", parallel_tool_calls=False).choices[0].message
    (call,) = message.tool_calls
    found = json.loads(call.function.arguments)
    good = call.function.name == tool["function"]["name"] and found["place"] in ("Oslo", "Lima")
    result = {"role": "tool", "tool_call_id": call.id, "content": f"It is 05:17. The code is {code}."}
    messages += [message.model_dump(exclude_none=True), result]
    answer = ask(tools=[tool], tool_choice="none").choices[0].message.content
    print(json.dumps({"shown": [call.function.arguments, answer], "good": good and code in answer}))
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a tool made of the answers."""

    texts: tuple[str, ...]
    """That it shows, in the order of the requests with the nonce."""
    good: bool = True
    """They are of the form that was asked for."""
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a tool finds the server, and what it asks."""

    url: str
    """Of the witness, without /v1."""
    model: str
    nonce: str
    folder: Path
    captures: Path | None
    """Where pictures of pages go."""
    seen: list[Witnessed]
    """By the witness, whole answers only."""

    @property
    def question(self) -> str:
        return f"Please say {self.nonce} once."

    def run(self, words: Sequence[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
        """A program in the folder, which is its home."""
        known = {**os.environ, "HOME": str(self.folder), "OPENAI_API_KEY": "none", **environment}
        return subprocess.run(
            words,
            cwd=self.folder,
            env=known,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )


def _openai(what: str, *more: str) -> Callable[[Setting], Shown]:
    def ask(setting: Setting) -> Shown:
        environment = {"OPENAI_BASE_URL": f"{setting.url}/v1", "MODEL": setting.model}
        done = setting.run(["python", "-c", _OPENAI, what, setting.question, *more], environment)
        return _read_shown(done)

    return ask


def _read_shown(done: "subprocess.CompletedProcess[str]") -> Shown:
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])
        return Shown(tuple(found["shown"]), bool(found["good"]), _last_line(done))
    except (IndexError, KeyError, ValueError):
        return Shown((), False, _last_line(done))


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    return (done.stderr.strip().splitlines() or [""])[-1]


def _lm_eval(setting: Setting) -> Shown:
    """A task with data of our own, by generated answers. (By likelihoods: tests/evaluate/test_harness_openai_door.py,
    which makes the tokenizer that the harness wants to count with.)"""
    (setting.folder / "items.jsonl").write_text(json.dumps({"question": setting.question}) + "\n")
    (setting.folder / "task.yaml").write_text(_TASK.format(folder=setting.folder))
    settings = {"model": setting.model, "base_url": f"{setting.url}/v1/chat/completions", "tokenizer_backend": None}
    words = ["lm_eval", "run", "--model", "local-chat-completions", "--model_args", json.dumps(settings)]
    words += ["--tasks", "nonce_task", "--include_path", str(setting.folder), "--apply_chat_template"]
    words += ["--log_samples", "--output_path", str(setting.folder / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(setting.folder / "hf")}
    done = setting.run(words, offline)
    found = [*setting.folder.glob("out/**/samples_*.jsonl")]
    if not found:
        return Shown((), False, _last_line(done))
    (sample,) = map(json.loads, found[0].read_text().splitlines())
    return Shown((sample["resps"][0][0],))


def _inspect(setting: Setting) -> Shown:
    """A task of one sample, by Inspect's provider for compatible endpoints."""
    (setting.folder / "nonce_task.py").write_text(
        textwrap.dedent(f"""
            from inspect_ai import Task, task
            from inspect_ai.dataset import Sample
            from inspect_ai.scorer import includes
            from inspect_ai.solver import generate

            @task
            def nonce_task():
                sample = Sample(input={setting.question!r}, target={setting.nonce!r})
                return Task(dataset=[sample], solver=[generate(max_tokens=24)], scorer=includes())
            """)
    )
    words = ["inspect", "eval", "nonce_task.py", "--model", f"openai-api/dfqs/{setting.model}", "--display", "none"]
    words += ["--log-dir", "logs", "--log-format", "json"]
    done = setting.run(words, {"DFQS_BASE_URL": f"{setting.url}/v1", "DFQS_API_KEY": "none"})
    found = [*setting.folder.glob("logs/*.json")]
    if not found:
        return Shown((), False, _last_line(done))
    log = json.loads(found[0].read_text())
    return Shown((log["samples"][0]["output"]["choices"][0]["message"]["content"],), log["status"] == "success")


def _page(width: int, height: int, how: str) -> Callable[[Setting], Shown]:
    """The web page in a headless Chromium: a message typed, sent and answered."""

    def ask(setting: Setting) -> Shown:
        with _browser_page(width, height) as page:
            page.goto(setting.url)
            page.wait_for_selector("textarea")
            # Typed key by key: what is filled in from outside shows nothing of a page's own handlers.
            page.click("textarea")
            page.keyboard.type(setting.question)
            if how == "Enter":
                page.locator("textarea").press("Enter")
            else:
                page.get_by_role("button", name="Send").click()
            _wait_for_answer(setting, page)
            answer = page.get_by_role("group", name="Assistant message").last
            if setting.captures is not None:
                page.screenshot(path=setting.captures / f"page-{width}-{how}.png")
            wide = page.evaluate("document.documentElement.scrollWidth") > width
            return Shown((answer.inner_text(),), not wide, "the page is wider than its window" if wide else "")

    return ask


def _open_webui(setting: Setting) -> Shown:
    """Open WebUI's own server and page, started in the folder, with what its target tells it of the endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = Endpoint(f"{setting.url}/v1", setting.model, 8192)
    told = find_target("open-webui").render(_ANY_MODEL, read_site(()), endpoint).use[0].environment
    # Without accounts, downloads, and questions of its own about the conversation.
    quiet = dict.fromkeys(("TITLE", "TAGS", "FOLLOW_UP", "AUTOCOMPLETE"), "false")
    quiet = {f"ENABLE_{name}_GENERATION": value for name, value in quiet.items()}
    own = {"WEBUI_AUTH": "false", "OFFLINE_MODE": "true", "RAG_EMBEDDING_ENGINE": "openai", "HF_HUB_OFFLINE": "1"}
    own |= {"DATA_DIR": str(setting.folder), "HOME": str(setting.folder)}
    words = ["open-webui", "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, **told, **quiet, **own}
    process = subprocess.Popen(
        words, cwd=setting.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        with _browser_page(1280, 900) as page:
            page.goto(f"http://127.0.0.1:{port}")
            page.get_by_role("button", name="Okay, Let's Go!").click()
            page.click("#chat-input")
            page.keyboard.type(setting.question)
            page.keyboard.press("Enter")
            _wait_for_answer(setting, page)
            if setting.captures is not None:
                page.screenshot(path=setting.captures / "open-webui.png")
            return Shown((page.locator(".chat-assistant").last.inner_text(),))
    finally:
        process.terminate()
        process.wait()


def _wait_for_answer(setting: Setting, page: Any) -> None:
    """Until the server's answer is whole, and the page has had the time to show it."""
    deadline = time.monotonic() + ANSWER_S
    while not any(each.asks(setting.nonce) for each in setting.seen if each.method == "POST"):
        if time.monotonic() > deadline:
            if setting.captures is not None:
                page.screenshot(path=setting.captures / "not-answered.png")
            left = page.evaluate("document.querySelector('textarea')?.value")
            raise TimeoutError(f"no message was answered; what is left to be sent: {left!r}")
        page.wait_for_timeout(500)
    page.wait_for_timeout(_STEADY_MS)


def _wait_for(url: str) -> None:
    """Until something answers there."""
    deadline = time.monotonic() + LONGEST_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


@contextmanager
def _browser_page(width: int, height: int) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("DFQS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


TOOLS = "openai: tools"
"""Asked of a server with a template that writes tools (`--chat-template`); the model's own does not."""
# (On a phone's width the page takes Enter for a new line; only the button sends.)
CASES: dict[str, Callable[[Setting], Shown]] = {
    "openai: stream": _openai("stream"),
    "openai: JSON schema": _openai("schema", json.dumps(_SCHEMA)),
    "openai: logprobs": _openai("logprobs"),
    TOOLS: _openai("tools", json.dumps(_TOOL)),
    "lm-eval: generated answers": _lm_eval,
    "inspect-ai": _inspect,
    "open-webui": _open_webui,
    "page, 1280 wide, Enter": _page(1280, 900, "Enter"),
    "page, 1280 wide, button": _page(1280, 900, "button"),
    "page, 390 wide, button": _page(390, 844, "button"),
}


def prove_case(name: str, root: str, model: str, folder: Path, captures: Path | None) -> dict[str, object]:
    """One case, from its question to what came of it.

    Args:
        root: address of the server, without /v1.
    """
    nonce = f"nonce-{secrets.token_hex(4)}"
    on_a_page = name.startswith(("page", "open-webui"))
    # Pages set no limit of their own, and a small model need not come to an end.
    with Witness(root, most_tokens=48 if on_a_page else None) as witness:
        setting = Setting(witness.url, model, nonce, folder, captures, witness.seen)
        try:
            shown = CASES[name](setting)
        except subprocess.TimeoutExpired:
            shown = Shown((), False, f"it did not end within {LONGEST_S:.0f} s")
        except Exception as error:  # a browser's or a tool's own
            shown = Shown((), False, f"{type(error).__name__}: {error}".splitlines()[0])
    asked = [each for each in witness.seen if each.method == "POST" and each.asks(nonce)]
    answered = [text for each in asked if (text := answer_of(each)) is not None]
    same = bool(shown.texts) and len(shown.texts) <= len(answered)
    for text, answer in zip(shown.texts, answered, strict=False):
        same = same and (
            _stands_in(answer, text) if name.startswith(("page", "open-webui")) else text.strip() == answer.strip()
        )
    live = same and shown.good
    reason = "the nonce stood in the request that the server got, and what is shown is what it answered"
    if not asked:
        reason = "no request that the server got had the nonce in it"
    elif not same:
        reason = "what is shown is not what the server answered"
    elif not shown.good:
        reason = "what is shown is not of the form that was asked for"
    if not live and shown.complaint:
        reason += f"; it says: {shown.complaint[:200]}"
    return {
        "target": name,
        "live": live,
        "reason": reason,
        "nonce": nonce,
        "printed": list(shown.texts),
        "answered": answered,
        "requests": len(witness.seen),
        "prompt_bytes": max((len(each.request) for each in asked), default=0),
    }


def answer_of(seen: Witnessed) -> str | None:
    """What the server answered: a text, or the arguments of a call."""
    try:
        choice = json.loads(seen.response)["choices"][0]
        if calls := choice.get("message", {}).get("tool_calls"):
            return str(calls[0]["function"]["arguments"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        pass
    return seen.answer()


def _stands_in(answered: str, shown: str) -> bool:
    """Whether a page shows an answer, word for word; how lines are broken, and what stands below it, is the page's."""
    return " ".join(answered.split()) in " ".join(shown.split())
