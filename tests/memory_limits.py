"""A process of its own under a limit of memory, and how much it took: what a hostile input can cost."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
LIMIT_BYTES = 700 * MIB
"""What any input from outside may cost."""

# The launcher is small: a process that is started by a large one counts its starter's memory as its own peak.
_LAUNCHER = """
import json, resource, subprocess, sys
limit, report, timeout, *argv = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
code = subprocess.run(argv, timeout=float(timeout), check=False).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
with open(report, "w") as file:
    json.dump([code, peak], file)
"""


@dataclass(frozen=True, slots=True)
class Limited:
    """What became of a process under a limit."""

    returncode: int
    """Negative: the signal that ended it."""
    peak_bytes: int
    """The most memory (resident) that it, or one process that it waited for, had at once."""
    stdout: str
    stderr: str


def peak_under_limit(
    code_or_argv: str | Sequence[str | Path],
    limit_bytes: int = LIMIT_BYTES,
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120,
) -> Limited:
    """Run Python code (a string) or a program, and measure it.

    No process of it can have more than `limit_bytes` of memory of its own (RLIMIT_DATA; mapped files do not count): it
    gets a MemoryError, or dies. Test modules can be imported by the code. Raises AssertionError when it takes longer
    than `timeout_s`.
    """
    argv = [sys.executable, "-c", code_or_argv] if isinstance(code_or_argv, str) else [str(a) for a in code_or_argv]
    tests = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    # numpy's threads each reserve memory of their own.
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **(env or {})}
    read, write = os.pipe()
    with os.fdopen(read) as report:
        try:
            process = subprocess.run(
                [sys.executable, "-S", "-c", _LAUNCHER, str(limit_bytes), f"/dev/fd/{write}", str(timeout_s), *argv],
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                pass_fds=(write,),
                check=False,
            )
        finally:
            os.close(write)
        text = report.read()
    assert text, f"the process did not end in {timeout_s} s, or could not be started: {process.stderr[-2000:]}"
    returncode, peak_bytes = json.loads(text)
    return Limited(returncode, peak_bytes, process.stdout, process.stderr)
