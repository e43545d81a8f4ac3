"""Runs generated Python where it can do no harm, and says how it ended.

The walls, outermost first: an unprivileged uid (root becomes nobody), bubblewrap (own user, process, network, mount and
IPC namespaces, a read-only Python without /etc, a size-limited /tmp, an empty environment, no capabilities), a
system-call filter, resource limits set inside, and from outside a wall clock and an output cap. Generated code never
runs without all of them; where one is missing, `open_sandbox` says which and how to get it.
"""

import json
import os
import platform
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from dfqs.errors import SandboxUnavailable, printable
from dfqs.evaluate.seccomp import ARCHITECTURES, filter_program

NOBODY = 65534
TAIL_BYTES = 2000
DETAIL_CHARACTERS = 400
VERDICT_LIMIT_BYTES = 64 << 10
STARTED = b"started "
HARNESS = Path(__file__).with_name("harness.py").read_text()
"""Read once: an evaluation can take days, and another version installed meanwhile must not judge the rest of it."""
PACKAGE = Path(__file__).resolve().parents[1]
PACKAGES = ("python3*/site-packages", "python3*/dist-packages")
"""Where packages lie below a `lib` directory."""


class Outcome(StrEnum):
    """How a candidate ended. Only PASSED counts as right."""

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output-limit"
    FILE_LIMIT = "file-limit"
    KILLED = "killed"
    UNREAD = "unread"
    """The sandbox's Python is too old for the source or for the problem: no verdict on either."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one candidate may take. Memory altogether: `processes * address_space_bytes + tmpfs_bytes`."""

    wall_s: float = 10.0
    cpu_s: int = 8
    processes: int = 4
    """Threads count as processes; the candidate itself is one."""
    address_space_bytes: int = 256 << 20
    tmpfs_bytes: int = 16 << 20
    tmpfs_files: int = 4096
    """Looked at every 20 ms: the file system itself has no such limit that bubblewrap could set."""
    file_bytes: int = 8 << 20
    open_files: int = 64
    pending_signals: int = 64
    output_bytes: int = 64 << 10


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """One candidate's end: `detail` is one line, `output_tail` the last of what it printed."""

    outcome: Outcome
    detail: str
    output_tail: str
    wall_s: float

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASSED


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox that has been tried and works. Make it with `open_sandbox`."""

    bubblewrap: Path
    interpreter: Path
    python_version: str
    uid: int
    """The uid that bubblewrap runs as."""
    limits: Limits

    def run(self, source: str, entry_point: str, tests: str, prelude: str = "") -> SandboxResult:
        """Run `tests` (Python that defines `check(candidate)`) against function `entry_point` of `source`.

        Args:
            source: the generated code, a whole module.
            entry_point: name of the function under test.
            tests: trusted; the candidate never sees it. Arguments and results must be plain values.
            prelude: trusted definitions that the tests use besides the candidate.

        Raises:
            SandboxUnavailable: the sandbox itself failed; nothing was run.
        """
        return self._run(source, entry_point, tests, prelude)[0]

    def _run(self, source: str, entry_point: str, tests: str, prelude: str) -> tuple[SandboxResult, str]:
        """The result, and the version of the Python that ran."""
        nonce = secrets.token_hex(16)
        job = {"nonce": nonce, "source": source, "entry_point": entry_point, "tests": tests, "prelude": prelude}
        run = _Run(self, json.dumps(job).encode())
        if not run.stdout.startswith(STARTED):
            raise SandboxUnavailable(f"bubblewrap did not start: {_text(run.stderr).strip() or run.status}")
        version = _text(run.stdout[len(STARTED) :].partition(b"\n")[0])
        return SandboxResult(*_judge(run, nonce), _text(run.stderr), run.wall_s), version

    def command(self, filter_descriptor: int) -> list[str]:
        """The whole command line, for `docs/sandbox.md` and for whoever wants to check it."""
        limits = self.limits
        each = {
            "RLIMIT_AS": limits.address_space_bytes,
            "RLIMIT_CPU": limits.cpu_s,
            "RLIMIT_FSIZE": limits.file_bytes,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            # A user has so many on the whole machine.
            "RLIMIT_SIGPENDING": limits.pending_signals,
            "RLIMIT_MSGQUEUE": 0,
        }
        inside = {
            "each": each,
            "candidate": {"RLIMIT_NPROC": limits.processes},
            "scratch_files": limits.tmpfs_files,
        }
        return [
            str(self.bubblewrap),
            *("--unshare-all", "--unshare-user", "--disable-userns", "--new-session", "--die-with-parent"),
            *("--as-pid-1", "--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY)),
            *("--hostname", "sandbox", "--seccomp", str(filter_descriptor)),
            *_system_binds(self.interpreter),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--size", str(limits.tmpfs_bytes), "--tmpfs", "/tmp"),
            # bubblewrap's own root and /dev are memory without a size limit.
            *("--remount-ro", "/dev", "--remount-ro", "/"),
            *("--chdir", "/tmp", "--clearenv"),
            *("--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp", "--setenv", "LANG", "C.UTF-8"),
            # Sets have the same order every time. Not -E or -I: those ignore it.
            *("--setenv", "PYTHONHASHSEED", "0"),
            *("--", str(self.interpreter), "-s", "-B", "-c", HARNESS, json.dumps(inside)),
        ]


def open_sandbox(limits: Limits | None = None) -> Sandbox:
    """Find bubblewrap and a Python, and try them on a candidate that must pass and one that must not.

    Raises:
        SandboxUnavailable: with the reason and the remedy.
    """
    if platform.system() != "Linux" or platform.machine() not in ARCHITECTURES:
        raise SandboxUnavailable(
            f"the sandbox needs Linux on {' or '.join(ARCHITECTURES)}; this is {platform.system()} on "
            f"{platform.machine()}. Generated code is not run without it."
        )
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxUnavailable(
            "bubblewrap is not installed, and generated code is not run without it: apt-get install bubblewrap"
        )
    uid = os.geteuid() or NOBODY
    reasons = []
    for interpreter in _interpreters():
        sandbox = Sandbox(Path(found), interpreter, "", uid, limits or Limits())
        try:
            version = _tried_version(sandbox)
        except SandboxUnavailable as error:
            reasons.append(str(error))
            continue
        return Sandbox(Path(found), interpreter, version, uid, limits or Limits())
    why = "; ".join(dict.fromkeys(reasons)) or "no Python that an unprivileged user may run"
    raise SandboxUnavailable(
        f"{why}. Generated code is not run without a sandbox: needed are bubblewrap 0.8 or newer and user namespaces "
        "(sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0; in a container, "
        "--security-opt seccomp=unconfined)"
    )


def _interpreters() -> list[Path]:
    """The system's own first: every uid may read it, and it holds no packages of ours."""
    candidates = [Path("/usr/bin/python3"), Path("/usr/local/bin/python3"), Path(sys.executable)]
    return list(dict.fromkeys(path.resolve() for path in candidates if os.access(path, os.X_OK)))


def _tried_version(sandbox: Sandbox) -> str:
    """The interpreter's version, after a pass and a failure were told apart."""
    answer = "def check(candidate):\n    assert candidate() == 4\n"
    passed, version = sandbox._run("def four():\n    return 4\n", "four", answer, "")
    refused, _ = sandbox._run("def four():\n    pass\n", "four", answer, "")
    if not passed.passed or refused.outcome is not Outcome.FAILED:
        raise SandboxUnavailable(f"it judged a right answer {passed.outcome} and a wrong one {refused.outcome}")
    return version


def _system_binds(interpreter: Path) -> list[str]:
    """What Python needs to start, the links or directories beside it, and the loader's cache.

    Nothing that was installed for it: the hidden tests lie in this package, and what happens to be there would decide
    what passes.
    """
    parts = ["/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo"]
    prefix = interpreter.parent.parent
    if prefix != Path("/usr"):
        parts += [str(prefix / "bin"), str(prefix / "lib"), str(prefix / "lib64")]
    arguments: list[str] = []
    for path in map(Path, [*parts, "/bin", "/lib", "/lib32", "/lib64"]):
        if path.is_symlink():
            # Bound, it would show a second time what is hidden where it points.
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for hidden in _hidden_directories([Path(part) for part in parts]):
        arguments += ["--tmpfs", str(hidden), "--remount-ro", str(hidden)]
    return arguments


def _hidden_directories(parts: list[Path]) -> list[Path]:
    """Directories of installed packages below `parts`, and this package wherever it lies below them."""
    found = {path.resolve() for part in parts for pattern in PACKAGES for path in part.glob(pattern) if path.is_dir()}
    # A shorter path first: what lies below a hidden one is not there to be hidden.
    chosen: list[Path] = []
    for path in sorted({*found, PACKAGE}):
        visible = any(path.is_relative_to(part.resolve()) for part in parts if part.exists())
        if visible and not any(path.is_relative_to(other) for other in chosen):
            chosen.append(path)
    return chosen


class _Run:
    """One run of bubblewrap: feeds it, reads it within the limits, ends it."""

    def __init__(self, sandbox: Sandbox, request: bytes) -> None:
        limits = sandbox.limits
        self.stdout = b""
        self.stderr = b""
        self.output_bytes = 0
        self.flooded = False
        self.timed_out = False
        started = time.monotonic()
        process = _start(sandbox)
        try:
            self._exchange(process, request, started + limits.wall_s, limits.output_bytes)
        finally:
            # Kills bubblewrap; --die-with-parent then takes process 1 of the namespace, and the kernel all the rest.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            self.status = f"exit status {process.wait()}"
            for stream in _streams(process).values():
                stream.close()
        self.wall_s = time.monotonic() - started

    def _exchange(self, process: "subprocess.Popen[bytes]", request: bytes, deadline: float, output_limit: int) -> None:
        streams = _streams(process)
        with selectors.DefaultSelector() as selector:
            for name, stream in streams.items():
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_WRITE if name == "in" else selectors.EVENT_READ, name)
            while "out" in (key.data for key in selector.get_map().values()):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    self.timed_out = True
                    return
                for key, _ in selector.select(remaining):
                    if key.data == "in":
                        request = self._feed(key.fd, request)
                        if not request:
                            selector.unregister(key.fileobj)
                            streams["in"].close()
                    else:
                        part = os.read(key.fd, 65536)
                        if not part:
                            selector.unregister(key.fileobj)
                        elif key.data == "out":
                            self.stdout = (self.stdout + part)[:VERDICT_LIMIT_BYTES]
                        else:
                            self._keep(part)
                if self.output_bytes > output_limit:
                    self.flooded = True
                    return
        while (part := _read_ready(streams["err"].fileno())) and self.output_bytes <= output_limit:
            self._keep(part)

    def _keep(self, part: bytes) -> None:
        self.output_bytes += len(part)
        self.stderr = (self.stderr + part)[-TAIL_BYTES:]

    @staticmethod
    def _feed(descriptor: int, request: bytes) -> bytes:
        try:
            return request[os.write(descriptor, request) :]
        except BrokenPipeError:
            return b""


def _streams(process: "subprocess.Popen[bytes]") -> dict[str, IO[bytes]]:
    assert process.stdin and process.stdout and process.stderr
    return {"in": process.stdin, "out": process.stdout, "err": process.stderr}


def _start(sandbox: Sandbox) -> "subprocess.Popen[bytes]":
    drop: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryFile() as program:
        program.write(filter_program(platform.machine()))
        program.seek(0)
        try:
            return subprocess.Popen(
                sandbox.command(program.fileno()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(program.fileno(),),
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
                **drop,
            )
        except OSError as error:
            raise SandboxUnavailable(f"bubblewrap could not be started: {error}") from None


def _read_ready(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b""


def _judge(run: _Run, nonce: str) -> tuple[Outcome, str]:
    """Outcome and detail; a pass needs the harness's own word, with the nonce that only it has."""
    if run.flooded:
        return Outcome.OUTPUT_LIMIT, "printed more than the output limit"
    if run.timed_out:
        return Outcome.TIMEOUT, "still running at the wall-clock limit"
    for line in run.stdout.splitlines()[1:]:
        try:
            verdict = json.loads(line)
            if secrets.compare_digest(str(verdict["nonce"]), nonce):
                return Outcome(verdict["outcome"]), printable(str(verdict["detail"]), DETAIL_CHARACTERS)
        except (ValueError, TypeError, KeyError):
            continue
    return Outcome.KILLED, f"the tests ended without a verdict ({run.status})"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
