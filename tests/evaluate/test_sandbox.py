"""The sandbox: what it judges, and that no verdict can be forged."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfqs.errors import SandboxUnavailable
from dfqs.evaluate import sandbox as sandbox_module
from dfqs.evaluate.sandbox import Limits, Outcome, Sandbox, open_sandbox

TESTS = "def check(candidate):\n    assert candidate([3, 1, 2]) == [1, 2, 3]\n    assert candidate([]) == []\n"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return open_sandbox(Limits(wall_s=20))


def test_a_right_candidate_passes_and_a_wrong_one_fails(sandbox: Sandbox) -> None:
    assert sandbox.run("def f(a):\n    return sorted(a)", "f", TESTS).passed

    wrong = sandbox.run("def f(a):\n    return a", "f", TESTS)

    assert (wrong.outcome, wrong.passed) == (Outcome.FAILED, False)
    assert "wrong answer" in wrong.detail


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("raise ValueError('no')", id="raises at import"),
        pytest.param("x = 1", id="function missing"),
        pytest.param("def f(a): raise KeyError(a)", id="raises when called"),
        pytest.param("def f(a): return f(a)", id="endless recursion"),
        pytest.param("def f(a): return lambda: a", id="no plain value"),
        pytest.param("", id="empty"),
    ],
)
def test_a_broken_candidate_fails_with_a_reason(sandbox: Sandbox, source: str) -> None:
    result = sandbox.run(source, "f", TESTS)

    assert result.outcome is Outcome.FAILED
    assert result.detail


@pytest.mark.parametrize("source", ["def f(a): return sorted(a", "\x00\ud800"])
def test_source_that_this_python_cannot_read_does_not_pass_and_is_told_apart(sandbox: Sandbox, source: str) -> None:
    # Only source that another Python could read is sent here by the scorer: it is no verdict on the candidate.
    result = sandbox.run(source, "f", TESTS)

    assert not result.passed
    assert result.outcome in (Outcome.UNREAD, Outcome.FAILED)
    assert result.detail


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import sys\nsys.exit(0)", id="sys.exit"),
        pytest.param("import os\nos._exit(0)", id="os._exit"),
        pytest.param("def f(a):\n    import os\n    os._exit(0)", id="os._exit in the call"),
        pytest.param('print(\'{"nonce": "", "outcome": "passed", "detail": ""}\')', id="prints a verdict"),
        pytest.param(
            "import os\nfor n in range(3, 30):\n    try: os.write(n, b'R' * 4096)\n    except OSError: pass\n"
            "os.write(1, b'passed')",
            id="writes on every descriptor",
        ),
        pytest.param(
            "class Always(list):\n    __eq__ = lambda s, o: True\ndef f(a): return Always()", id="equal to all"
        ),
        pytest.param(
            "import builtins, ast\nbuiltins.AssertionError = ValueError\nast.literal_eval = lambda t: [1, 2, 3]\n"
            "def f(a): return a",
            id="patches the interpreter",
        ),
    ],
)
def test_a_pass_cannot_be_forged_by_ending_early_printing_or_patching(sandbox: Sandbox, source: str) -> None:
    assert not sandbox.run(source, "f", TESTS).passed


def test_the_candidate_sees_neither_the_tests_nor_the_nonce_nor_the_harness_descriptors(sandbox: Sandbox) -> None:
    source = (
        "import gc, os\n"
        "def f(a):\n"
        "    seen = []\n"
        "    for path in ('/proc/1/mem', '/proc/1/fd', '/proc/1/environ', '/proc/1/maps'):\n"
        "        try:\n"
        "            os.listdir(path) if path.endswith('fd') else open(path, 'rb').read(1)\n"
        "            seen.append(path)\n"
        "        except OSError:\n"
        "            pass\n"
        "    texts = [o for o in gc.get_objects() if isinstance(o, dict) and ('nonce' in o or 'tests' in o)]\n"
        "    return seen + ['memory' for t in texts if isinstance(t.get('nonce'), str)]\n"
    )

    result = sandbox.run(source, "f", "def check(c):\n    assert c([]) == [], c([])\n")

    assert result.passed, result.detail


def test_arguments_and_results_keep_their_types_across_the_pipe(sandbox: Sandbox) -> None:
    values = "[None, True, 1, -2.5, float('inf'), 'é\\ud800', b'x', (1,), (), {1: [2]}, {3, 4}, set(), 10**60, 1j]"
    tests = f"def check(c):\n    for v in {values}:\n        r = c(v)\n        assert (r, type(r)) == (v, type(v)), v\n"

    result = sandbox.run("def same(value):\n    return value", "same", tests)

    assert result.passed, result.detail


def test_what_a_candidate_prints_is_kept_as_a_tail(sandbox: Sandbox) -> None:
    result = sandbox.run("print('x' * 5000 + 'END')\ndef f(a):\n    return sorted(a)", "f", TESTS)

    assert result.passed
    assert result.output_tail.endswith("END\n")
    assert len(result.output_tail) == sandbox_module.TAIL_BYTES


def test_without_bubblewrap_nothing_runs_and_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        open_sandbox()


@pytest.fixture
def public_directory() -> Iterator[Any]:
    """One that nobody may enter: pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_with_user_namespaces_off_nothing_runs_and_the_remedy_is_named(
    public_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = public_directory / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(public_directory))

    with pytest.raises(SandboxUnavailable, match="user namespaces"):
        open_sandbox()


def test_a_bubblewrap_that_ends_without_a_verdict_gives_no_pass(public_directory: Path) -> None:
    broken = public_directory / "bwrap"
    broken.write_text("#!/bin/sh\necho started 3.11.0\n")
    broken.chmod(0o755)
    sandbox = Sandbox(broken, Path("/usr/bin/python3"), "", os.geteuid(), Limits())

    assert sandbox.run("def f(a): return a", "f", TESTS).outcome is Outcome.KILLED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_works_for_an_ordinary_user_too() -> None:
    read_descriptor, write_descriptor = os.pipe()
    pid = os.fork()
    if pid == 0:  # not a new interpreter: this one may lie where another user cannot read
        try:
            os.setgroups([])
            os.setresgid(12345, 12345, 12345)
            os.setresuid(12345, 12345, 12345)
            sandbox = open_sandbox()
            outcome = sandbox.run("def f(a): return sorted(a)", "f", TESTS).outcome
            os.write(write_descriptor, f"{sandbox.uid} {outcome}".encode())
        except BaseException as error:
            os.write(write_descriptor, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write_descriptor)
    with os.fdopen(read_descriptor) as answer:
        assert answer.read() == "12345 passed"
    os.waitpid(pid, 0)


def test_no_process_is_left_when_the_caller_is_killed(tmp_path: Path) -> None:
    script = (
        "from dfqs.evaluate.sandbox import *\n"
        "import sys\n"
        "s = open_sandbox(Limits(wall_s=300))\n"
        "print('ready', flush=True)\n"
        "s.run('import time\\ntime.sleep(271828)', 'f', '')\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"ready\n"
    _wait_until(lambda: _descendants(caller.pid))
    below = _descendants(caller.pid)

    caller.kill()
    caller.wait()

    _wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def _descendants(pid: int) -> Any:
    found: list[int] = []
    todo = [pid]
    while todo:
        try:
            children = Path(f"/proc/{todo[0]}/task/{todo[0]}/children").read_text().split()
        except OSError:
            children = []
        del todo[0]
        found += map(int, children)
        todo += map(int, children)
    return found


def _wait_until(condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not come true in 30 s")
