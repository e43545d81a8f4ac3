"""An OpenAI-compatible server in this process whose answers a test decides: a real socket, no model."""

import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqs.evaluate.prompts import read_code_set, read_gym_set, read_profile_set, read_reasoning_set, read_tool_set
from dfqs.evaluate.tools import tool_prompt

PROFILE_ORACLES = Path(__file__).parent / "data" / "profile_oracles.jsonl"
SOLUTIONS = Path(__file__).parent / "data" / "code_solutions.jsonl"


@dataclass
class Reply:
    """What to answer: text with a finish reason, or raw bytes with a status and a content type."""

    text: str = ""
    finish_reason: str | None = "stop"
    raw: bytes | None = None
    content_type: str = "text/event-stream"
    status: int = 200
    prompt_tokens: int | None = None
    endless: bool = False


Answer = Callable[[str], Reply]


@dataclass
class Endpoint:
    url: str = ""
    prompts: list[str] = field(default_factory=list)


@contextmanager
def serve(answer: Answer) -> Iterator[Any]:
    """Runs the server while the block lasts; `prompts` fills with what was asked."""
    endpoint = Endpoint()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": "fake"}]}).encode() if self.path == "/v1/models" else b"{}"
            self._send(200, "application/json", body)

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self._send(404, "text/plain", b"no")
                return
            prompt = request["messages"][0]["content"]
            endpoint.prompts.append(prompt)
            reply = answer(prompt)
            if reply.raw is not None:
                self._send(reply.status, reply.content_type, reply.raw)
            elif reply.endless:
                self._stream_for_ever()
            else:
                self._send(200, "text/event-stream", _events(reply, prompt))

        def _send(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream_for_ever(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(_event({"choices": [{"delta": {"content": "and so on " * 10}}]}))
            except OSError:
                self.close_connection = True

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # clients are killed here

    server = Server(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


def oracle() -> Answer:
    """Answers everything right."""
    reasoning, code, gym = read_reasoning_set(), read_code_set(), read_gym_set()
    tools, profile = read_tool_set(), read_profile_set()
    written = {row["id"]: row["text"] for row in map(json.loads, PROFILE_ORACLES.read_text().splitlines())}
    bodies = {row["id"]: row["body"] for row in map(json.loads, SOLUTIONS.read_text().splitlines())}
    known = {reasoning.prompt(item.question): f"Answer: {item.answer}" for item in reasoning.items}
    known |= {gym.prompt(item.question): f"Answer: {item.answer}" for item in gym.items}
    known |= {tool_prompt(tools, item): json.dumps(item.call) if item.call else "Yes." for item in tools.items}
    known |= {profile.prompt(item.prompt): written[item.id] for item in profile.items}
    for item in code.items:
        known[code.prompt(item.prompt)] = f"```python\n{item.prompt}{bodies[item.id]}```"

    def answer(prompt: str) -> Reply:
        return Reply(known[prompt] if prompt in known else looked_up(prompt))

    return answer


def looked_up(prompt: str) -> str:
    """What a document says about what its question asks."""
    asked = prompt.rpartition("\n\n")[2]
    sang = re.search(r"say that the (.*) sang\?", asked)
    if sang:
        return f"{prompt.count(f'The {sang[1]} sang.')} times."
    name = re.search(r"What is the (code|key|value) of (.*)\? Reply", asked)
    if not name:
        return "Hello."
    of = name[2]
    while copied := re.search(rf"\n{re.escape(of)} has the same value as (\w+)\.", prompt):
        of = copied[1]
    found = re.search(rf"The {name[1]} of {re.escape(of)} is (\d+)", prompt)
    return f"The {name[1]} is {found[1]}." if found else "Hello."


def _events(reply: Reply, prompt: str) -> bytes:
    tokens = reply.prompt_tokens if reply.prompt_tokens is not None else len(prompt) // 4
    events: list[Any] = [{"choices": [{"delta": {"content": reply.text}}]}]
    if reply.finish_reason is not None:
        events.append({"choices": [{"delta": {}, "finish_reason": reply.finish_reason}]})
    events.append({"choices": [], "usage": {"prompt_tokens": tokens, "completion_tokens": 5}})
    return b"".join(map(_event, events)) + b"data: [DONE]\n\n"


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"
