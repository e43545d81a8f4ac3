"""`dfqs serve` under load: none lost, none mixed up, how long answers take, and what a kill in the middle does.

Each request has a nonce, in its prompt and in a grammar that lets the model say that nonce and nothing else: whoever
gets another's answer gets another nonce. Every second request is streamed.

    python benchmarks/serving.py MODEL [--clients 8] [--requests 50] [--parallel 4] [--kill] [--deterministic]
"""

import argparse
import contextlib
import http.client
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ANSWER_S = 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    kind: str
    """`right`, `wrong` (another's answer, or none of ours), `error` (the server said that there is none), `lost`
    (neither an answer nor a word)."""
    began_s: float
    took_s: float
    first_s: float | None
    """Until the first piece of a stream."""
    detail: str = ""


def ask(url: str, nonce: str, streamed: bool) -> tuple[str, str, float | None]:
    """Kind, detail and the time to the first piece of one request's answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=ANSWER_S)
    body = {
        "messages": [{"role": "user", "content": f"Repeat this word: {nonce}"}],
        "grammar": f'root ::= "{nonce}"',
        "max_tokens": 64,
        "temperature": 0,
        "stream": streamed,
    }
    started, first = time.monotonic(), None
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            said = json.loads(response.read())["error"]["message"]
            return "error", f"{response.status} {said[:100]}", None
        if not streamed:
            text = json.loads(response.read())["choices"][0]["message"]["content"]
            return ("right" if text == nonce else "wrong"), text, None
        text, done = "", False
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                done = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return "error", f"in the stream: {event['error']['message'][:100]}", first
            first = first or time.monotonic() - started
            text += event["choices"][0]["delta"].get("content") or ""
        return ("right" if text == nonce and done else "wrong"), text, first
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return "lost", repr(error)[:100], first
    finally:
        connection.close()


def load(url: str, clients: int, requests: int, killed: threading.Event | None = None) -> list[Outcome]:
    """Ask `clients` x `requests` times; `killed` is set when half of them are answered."""
    outcomes: list[Outcome] = []
    lock, half = threading.Lock(), clients * requests // 2

    def run(client: int) -> None:
        for number in range(requests):
            nonce = f"n{client}x{number}x{secrets.token_hex(3)}"
            began = time.monotonic()
            kind, detail, first = ask(url, nonce, streamed=number % 2 == 1)
            with lock:
                outcomes.append(Outcome(kind, began, time.monotonic() - began, first, detail))
                if killed is not None and len(outcomes) == half:
                    killed.set()

    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@contextlib.contextmanager
def served(model: Path, *options: str) -> Iterator[tuple[str, int]]:
    """A server's address and process."""
    command = [sys.executable, "-m", "dfqs", "serve", str(model), "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line == "}\n":
                break
        yield json.loads(text)["url"], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def workers_of(pid: int) -> list[int]:
    """Worker processes of a server."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"worker_process" in Path(f"/proc/{child}/cmdline").read_bytes()]


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process took, which others on the machine disturb little."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_when(event: threading.Event, pid: int) -> threading.Thread:
    """Kill a server's worker with SIGKILL once `event` is set."""

    def run() -> None:
        event.wait()
        for worker in workers_of(pid):
            os.kill(worker, signal.SIGKILL)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def percentiles(values: list[float]) -> dict[str, float | None]:
    """p50, p95 and p99 in seconds; null for fewer than two."""
    if len(values) < 2:
        return {"p50": None, "p95": None, "p99": None}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p95": round(cuts[94], 3), "p99": round(cuts[98], 3)}


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """What is printed."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    wall = max(o.began_s + o.took_s for o in outcomes) - min(o.began_s for o in outcomes)
    return {
        "requests": len(outcomes),
        **{kind: kinds[kind] for kind in ("right", "wrong", "error", "lost")},
        "wall_s": round(wall, 2),
        "answer_s": percentiles([o.took_s for o in outcomes if o.kind == "right"]),
        "first_piece_s": percentiles([o.first_s for o in outcomes if o.kind == "right" and o.first_s is not None]),
        "others": Counter(o.detail for o in outcomes if o.kind != "right").most_common(5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--kill", action="store_true", help="kill the worker with SIGKILL when half are answered")
    parser.add_argument("--deterministic", action="store_true")
    given = parser.parse_args()
    options = ["--deterministic"] if given.deterministic else ["--parallel", str(given.parallel)]
    with served(given.model, "--ctx", "512", *options) as (url, pid):
        ask(url, "warm", streamed=False)
        killed = threading.Event() if given.kill else None
        if killed is not None:
            kill_when(killed, pid)
        (worker,) = workers_of(pid)
        before = cpu_s(worker)
        found = summary(load(url, given.clients, given.requests, killed))
        if killed is None:
            found["worker_cpu_s"] = round(cpu_s(worker) - before, 1)
    print(json.dumps({"load": [round(each, 2) for each in os.getloadavg()], "options": options, **found}, indent=1))
    if found["wrong"] or found["lost"] or (found["error"] and not given.kill):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
