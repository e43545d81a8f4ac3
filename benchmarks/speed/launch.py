"""Runs commands for `speed.frame` out of a small process: memory of a child counts from what its parent had.

A line of JSON comes in for each, `[words, environment, file for errors]`; wall seconds, CPU seconds, memory at its peak
in bytes and the exit code go out. Started with `python -I -S`.
"""

import json
import os
import sys
import time


def main() -> None:
    for line in sys.stdin:
        words, environment, errors = json.loads(line)
        quiet = os.open(os.devnull, os.O_WRONLY)
        written = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        started = time.perf_counter()
        pid = os.posix_spawnp(
            words[0],
            words,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, quiet, 1), (os.POSIX_SPAWN_DUP2, written, 2)],
        )
        _, status, usage = os.wait4(pid, 0)
        wall_s = time.perf_counter() - started
        os.close(quiet)
        os.close(written)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps([wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, code]), flush=True)


if __name__ == "__main__":
    main()
