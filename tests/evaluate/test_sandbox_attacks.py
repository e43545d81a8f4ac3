"""Attacks on the sandbox. Each runs what a hostile candidate could and checks that nothing outside noticed."""

import http.server
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfqs.evaluate.sandbox import Limits, Outcome, Sandbox, open_sandbox

REPORT = "def check(candidate):\n    answer = candidate()\n    assert answer == 'contained', answer\n"
MIB = 1 << 20


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return open_sandbox(Limits(wall_s=20))


def limited(sandbox: Sandbox, **limits: Any) -> Sandbox:
    return replace(sandbox, limits=replace(sandbox.limits, **limits))


def attack(sandbox: Sandbox, body: str) -> Any:
    """Runs `body` as the function's body; it returns 'contained' where the attack was refused."""
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return sandbox.run(f"import os, sys, time\ndef attack():\n{indented}", "attack", REPORT)


def test_a_fork_bomb_stops_at_the_process_limit(sandbox: Sandbox) -> None:
    result = attack(
        sandbox,
        """
made = 0
try:
    while made < 500:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except BlockingIOError:
    pass
return 'contained' if 0 < made < 8 else made
""",
    )

    assert result.passed, result


def test_a_fork_bomb_that_never_stops_ends_at_the_wall_clock(sandbox: Sandbox) -> None:
    result = limited(sandbox, wall_s=2).run(
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "f", ""
    )

    assert result.outcome is Outcome.TIMEOUT


def test_memory_of_one_process_is_bounded(sandbox: Sandbox) -> None:
    result = sandbox.run("def attack():\n    return len(bytearray(1 << 33))", "attack", REPORT)

    assert result.outcome is Outcome.MEMORY


def test_memory_of_several_processes_at_the_limit_is_bounded_together(sandbox: Sandbox) -> None:
    # Each child takes what it gets and keeps it; together they stay under processes x limit.
    result = attack(
        sandbox,
        """
reads, writes = os.pipe()
children = 0
for _ in range(50):
    try:
        pid = os.fork()
    except BlockingIOError:
        continue
    if pid == 0:
        kept, total = [], 0
        try:
            while total < 4096:
                kept.append(b'x' * (8 << 20))
                total += 8
        except MemoryError:
            pass
        os.write(writes, bytes([total // 8]))
        time.sleep(60)
        os._exit(0)
    children += 1
taken = sum(8 * os.read(reads, 1)[0] for _ in range(children))
return 'contained' if 0 < taken <= 4 * 256 else taken
""",
    )

    assert result.passed, result


@pytest.mark.parametrize(
    "call",
    [
        "os.memfd_create('hidden')",
        "ctypes.CDLL(None, use_errno=True).shmget(0, 1 << 20, 0o1600)",
        "ctypes.CDLL(None, use_errno=True).syscall(425, 1, 0)",
    ],
    ids=["memfd", "System V shared memory", "io_uring"],
)
def test_memory_that_no_address_space_limit_counts_is_refused(sandbox: Sandbox, call: str) -> None:
    body = f"import ctypes\ntry:\n    answer = {call}\nexcept OSError:\n    answer = -1\n"

    result = attack(sandbox, body + "return 'contained' if answer == -1 else answer")

    assert result.passed, result


def test_a_full_disk_is_only_the_sandbox_s_own(sandbox: Sandbox) -> None:
    # Names of its own: other tests write to /tmp at the same time.
    result = attack(
        sandbox,
        """
written = 0
try:
    for number in range(1000):
        with open(f'/tmp/filled-by-a-test-{number}', 'wb') as file:
            for _ in range(7):
                written += file.write(bytes(1 << 20))
except OSError as error:
    full = error.errno
return 'contained' if full == 28 and written <= 16 << 20 else (full, written)
""",
    )

    assert result.passed, result
    assert not list(Path("/tmp").glob("filled-by-a-test-*"))


def test_one_huge_file_is_refused(sandbox: Sandbox) -> None:
    result = attack(
        sandbox,
        "try:\n    os.truncate(os.open('/tmp/f', os.O_CREAT | os.O_RDWR), 1 << 40)\n"
        "except OSError:\n    return 'contained'",
    )

    assert result.passed or result.outcome is Outcome.FILE_LIMIT, result


def test_nothing_but_tmp_can_be_written(sandbox: Sandbox) -> None:
    result = attack(
        sandbox,
        """
wrote = []
places = '/ /dev /dev/shm /usr /usr/lib /etc /proc /proc/sys/kernel /bin /var /home /run'
for path in places.split():
    try:
        with open(path + '/intruder', 'w') as file:
            file.write('x')
        wrote.append(path)
    except OSError:
        pass
return wrote or 'contained'
""",
    )

    assert result.passed, result


def test_the_checkout_cannot_be_read_or_written(sandbox: Sandbox) -> None:
    checkout = Path(__file__).resolve().parents[2]
    target = checkout / "intruder"
    result = attack(
        sandbox,
        f"try:\n    open({str(target)!r}, 'w')\n    return 'wrote'\nexcept OSError:\n    pass\n"
        f"return 'contained' if not os.path.exists({str(checkout)!r}) else 'seen'",
    )

    assert result.passed, result
    assert not target.exists()


def test_passwords_and_home_directories_are_not_there(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    paths = ["/etc/shadow", "/etc/passwd", "/root", "/home", str(Path.home()), str(secret), "/var", "/sys", "/run"]
    result = attack(sandbox, f"return [p for p in {paths!r} if os.path.exists(p)] or 'contained'")

    assert result.passed, result


def test_the_environment_carries_no_secrets(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = attack(
        sandbox,
        "texts = str(dict(os.environ))\n"
        "for name in os.listdir('/proc'):\n"
        "    if name.isdigit():\n"
        "        try:\n"
        "            texts += open(f'/proc/{name}/environ').read()\n"
        "        except OSError:\n"
        "            pass\n"
        "return texts if 'hf_secret' in texts or 'HF_TOKEN' in texts else 'contained'",
    )

    assert result.passed, result


def test_a_server_on_this_machine_is_out_of_reach(sandbox: Sandbox) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    port = server.server_address[1]
    try:
        result = attack(
            sandbox,
            f"import socket\n"
            f"try:\n    socket.create_connection(('127.0.0.1', {port}), timeout=2)\n    return 'connected'\n"
            f"except OSError:\n    pass\n"
            "interfaces = os.listdir('/sys/class/net') if os.path.exists('/sys/class/net') else []\n"
            "return 'contained' if not interfaces else interfaces",
        )
    finally:
        server.shutdown()
        server.server_close()

    assert result.passed, result


def test_sockets_that_no_network_namespace_separates_are_refused(sandbox: Sandbox) -> None:
    result = attack(
        sandbox,
        "import socket\n"
        "made = []\n"
        "for family in (socket.AF_VSOCK, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_INET6):\n"
        "    try:\n        socket.socket(family, socket.SOCK_STREAM)\n        made.append(int(family))\n"
        "    except OSError:\n        pass\n"
        "return made or 'contained'",
    )

    assert result.passed, result


def test_endless_output_is_cut_off(sandbox: Sandbox) -> None:
    result = sandbox.run("while True:\n    print('x' * 1000)", "f", "")

    assert result.outcome is Outcome.OUTPUT_LIMIT
    assert len(result.output_tail) <= 2000
    assert result.wall_s < sandbox.limits.wall_s


def test_sleeping_for_ever_ends_at_the_wall_clock(sandbox: Sandbox) -> None:
    result = limited(sandbox, wall_s=1.5).run("import time\ntime.sleep(10**6)", "f", "")

    assert result.outcome is Outcome.TIMEOUT


def test_a_busy_loop_ends_at_the_processor_limit(sandbox: Sandbox) -> None:
    result = limited(sandbox, cpu_s=1).run("while True: pass", "f", "")

    assert (result.outcome, result.detail) == (Outcome.TIMEOUT, "it died by SIGXCPU")


def test_a_daemon_does_not_outlive_its_run(sandbox: Sandbox) -> None:
    # It holds every pipe it was given; the run must end all the same, and the daemon with it.
    result = attack(
        sandbox,
        """
daemon = os.fork()
if daemon == 0:
    os.setsid()
    os.execv('/usr/bin/sleep', ['sleep', '314159'])
while b'314159' not in open(f'/proc/{daemon}/cmdline', 'rb').read():
    time.sleep(0.01)
return 'contained'
""",
    )

    assert result.passed, result
    _until(lambda: not any(line == b"sleep\x00314159\x00" for line in _command_lines()))


def test_killing_its_parent_and_everything_else_gains_nothing(sandbox: Sandbox) -> None:
    bystander = os.fork()
    if bystander == 0:
        time.sleep(600)
        os._exit(0)
    try:
        result = attack(
            sandbox,
            f"import signal\nfor pid in (1, os.getppid(), {os.getpid()}, {bystander}):\n"
            "    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGTERM):\n"
            "        try:\n            os.kill(pid, number)\n        except OSError:\n            pass\n"
            "os.kill(-1, signal.SIGTERM)\n"
            "return 'contained'",
        )
        assert os.waitpid(bystander, os.WNOHANG) == (0, 0)
    finally:
        os.kill(bystander, 9)
        os.waitpid(bystander, 0)

    assert result.passed or result.outcome in (Outcome.FAILED, Outcome.KILLED), result


def test_other_processes_are_neither_seen_nor_traced(sandbox: Sandbox) -> None:
    result = attack(
        sandbox,
        f"import ctypes\n"
        f"seen = [p for p in os.listdir('/proc') if p.isdigit()]\n"
        f"libc = ctypes.CDLL(None, use_errno=True)\n"
        f"traced = [pid for pid in (1, os.getppid(), {os.getpid()}) if libc.ptrace(16, pid, 0, 0) == 0]\n"
        "return 'contained' if len(seen) <= 3 and not traced else (seen, traced)",
    )

    assert result.passed, result


def test_no_way_back_to_privileges(sandbox: Sandbox) -> None:
    result = attack(
        sandbox,
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "gained = []\n"
        "for name, call in (('setuid', lambda: libc.setuid(0)), ('userns', lambda: libc.unshare(0x10000000)),\n"
        "                   ('mount', lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)),\n"
        "                   ('chroot', lambda: libc.chroot(b'/tmp'))):\n"
        "    if call() == 0:\n        gained.append(name)\n"
        "status = open('/proc/self/status').read()\n"
        "for line in ('CapEff:\\t0000000000000000', 'NoNewPrivs:\\t1', 'Seccomp:\\t2'):\n"
        "    if line not in status:\n        gained.append(line)\n"
        "return gained or 'contained'",
    )

    assert result.passed, result


def test_limits_cannot_be_raised_from_inside(sandbox: Sandbox) -> None:
    result = attack(
        sandbox,
        "import resource\n"
        "raised = []\n"
        "for name in ('RLIMIT_NPROC', 'RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_FSIZE', 'RLIMIT_NOFILE'):\n"
        "    try:\n"
        "        resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "        raised.append(name)\n"
        "    except (ValueError, OSError):\n        pass\n"
        "return raised or 'contained'",
    )

    assert result.passed, result


def test_deeply_nested_and_huge_answers_do_not_break_the_harness(sandbox: Sandbox) -> None:
    for source in (
        "def attack():\n    a = []\n    for _ in range(90000): a = [a]\n    return a",
        "def attack(): return 'x' * (3 << 20)",
    ):
        assert sandbox.run(source, "attack", REPORT).outcome is Outcome.FAILED


def _command_lines() -> Iterator[Any]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            continue


def _until(condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not come true in 30 s")
