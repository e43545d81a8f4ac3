"""Runs hidden tests against a candidate, inside the sandbox. Not imported: its text is handed to the sandbox's Python.

Two processes, so that a candidate cannot award itself a pass. This one is process 1 of its own process namespace (the
others cannot kill or trace it) and holds the tests and the nonce. It forks the candidate *before* it reads either, so
they are in no memory that the candidate has; the two speak over pipes in Python literals: arguments go over, results
come back, and the comparison happens here. It imports nothing from where the candidate can write. Standard library
only; any Python from 3.9.
"""

import __future__

import ast
import ctypes
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import types
from typing import Any, NoReturn

REPLY_LIMIT_BYTES = 1 << 20
POLL_MS = 20
MAXIMUM_DETAIL = 300
SCRATCH = "/tmp"


class CandidateError(Exception):
    """The candidate raised, died or answered with something that is no plain value."""

    def __init__(self, outcome: str, detail: str) -> None:
        self.outcome = outcome
        super().__init__(detail)


def encode(value: Any) -> str:
    """A Python literal that `ast.literal_eval` reads back as an equal plain value.

    Subclasses (OrderedDict, namedtuple, bool of numpy) become the plain type. Raises TypeError for all other types.
    """
    if value is None or isinstance(value, (bool, str, bytes)):
        return repr(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        if math.isnan(value):
            raise TypeError("a result that is not a number")
        return repr(float(value)) if math.isfinite(value) else "1e999" if value > 0 else "-1e999"
    if isinstance(value, complex):
        return repr(complex(value))
    if isinstance(value, list):
        return "[" + ", ".join(map(encode, value)) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(encode(item) + ", " for item in value) + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{encode(key)}: {encode(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(map(encode, value)) + "}" if value else "set()"
    raise TypeError(f"a result of type {type(value).__name__}")


def limit_resources(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        # At the soft processor limit the kernel says why (SIGXCPU); at the hard one it only kills.
        hard = value + 1 if name == "RLIMIT_CPU" else value
        resource.setrlimit(getattr(resource, name), (value, hard))


def send(descriptor: int, kind: bytes, text: str) -> None:
    payload = kind + text.encode("utf-8", "surrogatepass")
    data = struct.pack("!I", len(payload)) + payload
    while data:
        data = data[os.write(descriptor, data) :]


# ---- the candidate's side


def read_exactly(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = os.read(descriptor, count - len(data))
        if not part:
            os._exit(0)
        data += part
    return data


class Unread(Exception):
    """This Python cannot read the source."""


def define_candidate(source: str, entry_point: str, namespace: dict[str, Any]) -> None:
    """Run a module statement by statement. What stands behind the function that is asked for may fail: examples of its
    use raise on purpose, ask for input, or end the program."""
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise Unread(f"SyntaxError: {error}") from None
    flags = 0
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                flags |= getattr(getattr(__future__, alias.name, None), "compiler_flag", 0)
            continue
        code = compile(ast.Module([node], []), "<candidate>", "exec", flags, True)
        try:
            exec(code, namespace)
        except MemoryError:
            raise
        except BaseException:
            if entry_point not in namespace:
                raise


def serve_candidate(requests: int, replies: int) -> NoReturn:
    """Define the candidate, then answer calls until the pipe closes."""
    # As a module is found under its name: dataclasses look there for their annotations.
    module = sys.modules["candidate"] = types.ModuleType("candidate")
    namespace = module.__dict__
    while True:
        (length,) = struct.unpack("!I", read_exactly(requests, 4))
        request = read_exactly(requests, length)
        kind, text = request[:1], request[1:].decode("utf-8", "surrogatepass")
        try:
            if kind == b"D":
                name, source = ast.literal_eval(text)
                define_candidate(source, name, namespace)
                answer = "None"
            else:
                name, arguments, keywords = ast.literal_eval(text)
                answer = encode(namespace[name](*arguments, **keywords))
        except MemoryError:
            send(replies, b"M", "out of memory")
        except Unread as error:
            send(replies, b"U", str(error)[:MAXIMUM_DETAIL])
        except BaseException as error:
            send(replies, b"E", f"{type(error).__name__}: {error}"[:MAXIMUM_DETAIL])
        else:
            send(replies, b"R", answer)


# ---- the tests' side


class Candidate:
    """A function that lives in the other process."""

    def __init__(self, pid: int, requests: int, replies: int, scratch_files: int) -> None:
        self.pid = pid
        self.requests = requests
        self.replies = replies
        self.scratch_files = scratch_files
        self.entry_point = ""
        self.poll = select.poll()
        self.poll.register(replies, select.POLLIN)

    def define(self, source: str, entry_point: str) -> None:
        self.entry_point = entry_point
        self.ask(b"D", encode((entry_point, source)))

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        answer = self.ask(b"C", encode((self.entry_point, arguments, keywords)))
        try:
            return ast.literal_eval(answer)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            raise CandidateError("failed", "its answer is no plain value") from None

    def ask(self, kind: bytes, text: str) -> str:
        try:
            send(self.requests, kind, text)
        except BrokenPipeError:
            raise self.death() from None
        (length,) = struct.unpack("!I", self.read(4))
        if not 1 <= length <= REPLY_LIMIT_BYTES:
            raise CandidateError("failed", f"an answer of {length} bytes")
        reply = self.read(length)
        answer = reply[1:].decode("utf-8", "surrogatepass")
        if reply[:1] == b"R":
            return answer
        raise CandidateError({b"M": "memory", b"U": "unread"}.get(reply[:1], "failed"), answer)

    def read(self, count: int) -> bytes:
        """Waits for bytes or for the candidate's death: its children may hold the pipe open after it."""
        data = b""
        while len(data) < count:
            self.look_at_scratch()
            if self.poll.poll(POLL_MS):
                part = os.read(self.replies, count - len(data))
                if not part:
                    raise self.death()
                data += part
            elif self.reap():
                raise self.death()
        return data

    def look_at_scratch(self) -> None:
        """Empty files take a kilobyte of kernel memory each, which the size limit of the file system does not count."""
        scratch = os.statvfs(SCRATCH)
        if scratch.f_files - scratch.f_ffree > self.scratch_files:
            raise CandidateError("file-limit", f"more than {self.scratch_files} files")

    def reap(self) -> bool:
        # WNOWAIT leaves the status for death() to read.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def death(self) -> CandidateError:
        _, status = os.waitpid(self.pid, 0)
        if not os.WIFSIGNALED(status):
            return CandidateError("failed", f"it exited (status {os.WEXITSTATUS(status)}) before the tests were done")
        number = os.WTERMSIG(status)
        outcome = {signal.SIGXCPU: "timeout", signal.SIGXFSZ: "file-limit"}.get(signal.Signals(number), "failed")
        return CandidateError(outcome, f"it died by {signal.Signals(number).name}")


def run_tests(job: dict[str, Any], candidate: Candidate) -> tuple[str, str]:
    """Outcome and one line of detail. `prelude` defines what the tests call besides the candidate."""
    try:
        candidate.define(job["source"], job["entry_point"])
        namespace: dict[str, Any] = {"__name__": "tests"}
        for part in ("prelude", "tests"):
            try:
                code = compile(job[part], f"<{part}>", "exec")
            except SyntaxError as error:
                return "unread", f"the {part} of the problem: {error}"
            exec(code, namespace)
        namespace[job["entry_point"]] = candidate
        namespace["check"](candidate)
    except CandidateError as error:
        return error.outcome, str(error)
    except AssertionError as error:
        return "failed", f"wrong answer {error}".strip()
    except Exception as error:
        # The tests met a value they cannot work with: None + 1 and the like.
        return "failed", f"wrong answer: {type(error).__name__}: {error}"
    return "passed", ""


def hide_from_siblings() -> None:
    """Not dumpable: /proc/1/fd and /proc/1/mem are then closed to processes of the same uid."""
    if ctypes.CDLL(None, use_errno=True).prctl(4, 0, 0, 0, 0) != 0:
        os._exit(3)


def main() -> NoReturn:
    # The current directory is the candidate's to write: a `random.py` there would be imported by the tests, here.
    sys.path[:] = [entry for entry in sys.path if entry]
    limits = json.loads(sys.argv[1])
    limit_resources(limits["each"])
    hide_from_siblings()
    # Of the signals that the candidate may send here these are the ones that Python answers; the kernel drops the rest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    requests_out, requests_in = os.pipe()
    replies_out, replies_in = os.pipe()
    pid = os.fork()
    if pid == 0:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        for descriptor in (requests_in, replies_out, null):
            os.close(descriptor)
        os.setsid()
        sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace")  # noqa: SIM115
        # Only now: on older kernels the limit counts all of the uid's processes, and the harness must not fail by it.
        limit_resources(limits["candidate"])
        serve_candidate(requests_out, replies_in)
    os.close(requests_out)
    os.close(replies_in)
    os.write(1, f"started {'.'.join(map(str, sys.version_info[:3]))}\n".encode())
    job = json.load(sys.stdin)
    outcome, detail = run_tests(job, Candidate(pid, requests_in, replies_out, limits["scratch_files"]))
    verdict = json.dumps({"nonce": job["nonce"], "outcome": outcome, "detail": detail[:MAXIMUM_DETAIL]})
    os.write(1, verdict.encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
