"""What the kernel offers besides files and network: ways out, and memory that no limit of a process counts."""

import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dfqs.evaluate.sandbox import Limits, Outcome, Sandbox, open_sandbox
from dfqs.evaluate.seccomp import ARCHITECTURES, filter_program
from dfqs.evaluate.syscalls import ALLOWED, ARGUMENT_RULES

CONTAINED = "def check(candidate):\n    answer = candidate()\n    assert answer == 'contained', answer\n"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return open_sandbox(Limits(wall_s=20))


def attack(sandbox: Sandbox, body: str) -> Any:
    """Runs `body` as the function's body; it returns 'contained' where the attack was refused."""
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return sandbox.run(
        f"import ctypes, os, struct, sys\nlibc = ctypes.CDLL(None, use_errno=True)\ndef attack():\n{indented}",
        "attack",
        CONTAINED,
    )


def test_empty_files_by_the_hundred_thousand_are_stopped(sandbox: Sandbox) -> None:
    # 490,000 of them, half a gigabyte of kernel memory, came into being in 9 s under the size limit alone.
    result = attack(
        sandbox,
        "os.fork()\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    os.close(os.open(f'/tmp/{os.getpid()}-{number}', os.O_CREAT | os.O_WRONLY))",
    )

    assert (result.outcome, result.detail) == (Outcome.FILE_LIMIT, f"more than {sandbox.limits.tmpfs_files} files")


def test_extended_attributes_that_no_size_limit_counts_are_refused(sandbox: Sandbox) -> None:
    # 1.2 GB of kernel memory in 8 s, beside a 16 MiB /tmp.
    result = attack(
        sandbox,
        "open('/tmp/x', 'w').close()\n"
        "link = os.open('/tmp/x', os.O_RDONLY)\n"
        "for target in ('/tmp/x', link):\n"
        "    try:\n        os.setxattr(target, 'user.a', b'x' * 60000)\n        return 'stored'\n"
        "    except PermissionError:\n        pass\n"
        "return 'contained'",
    )

    assert result.passed, result


@pytest.mark.parametrize(
    "call",
    [
        # A user has 128 of them on the whole machine: the desktop outside would have none left.
        pytest.param("libc.inotify_init1(0)", id="inotify"),
        pytest.param("libc.fanotify_init(0x200, 0)", id="fanotify"),
        pytest.param("libc.syscall(ADD_KEY, b'user', b'k', b'x', 1, -3)", id="keyring"),
        pytest.param("libc.syscall(CLONE3, struct.pack('11Q', 1 << 28, 0, 0, 0, 17, *[0] * 6), 88)", id="clone3"),
        pytest.param("libc.syscall(CLONE, (1 << 28) | 17, 0, 0, 0, 0)", id="clone into a user namespace"),
        pytest.param("libc.memfd_create(b'program', 0)", id="memfd"),
        pytest.param("libc.unshare(1 << 17)", id="mount namespace"),
    ],
)
def test_what_reaches_beyond_the_process_is_refused(sandbox: Sandbox, call: str) -> None:
    numbers = {"x86_64": (248, 435, 56), "aarch64": (217, 435, 220)}[os.uname().machine]
    body = f"ADD_KEY, CLONE3, CLONE = {numbers}\nanswer = {call}\nif answer == 0:\n    os._exit(0)\n"

    result = attack(sandbox, body + "return 'contained' if answer == -1 else answer")

    assert result.passed, result


@pytest.mark.parametrize(
    "body",
    [
        # 65,536 on the whole machine: a database beside this would start no more.
        pytest.param("context = ctypes.c_ulong(0)\nanswer = libc.syscall(AIO, 1000, ctypes.byref(context))", id="aio"),
        pytest.param("answer = libc.syscall(428, -100, b'/', 0)", id="open_tree"),
        pytest.param("answer = libc.syscall(467, -100, b'/', 0, 0, 0)", id="open_tree_attr"),
        pytest.param("answer = libc.syscall(600)", id="a call of a kernel to come"),
        # A gigabyte of locks in some seconds.
        pytest.param("import fcntl\nfcntl.lockf(os.open('/tmp/x', 66), fcntl.LOCK_EX, 1, 5)\nanswer = 0", id="locks"),
        pytest.param("import fcntl\nfcntl.fcntl(os.pipe()[0], 1031, 1 << 20)\nanswer = 0", id="pipe size"),
        pytest.param(
            "import socket\none, other = socket.socketpair()\n"
            "one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)\nanswer = 0",
            id="socket buffers",
        ),
        pytest.param("answer = libc.mmap(None, 1 << 21, 3, 0x40022, -1, 0)", id="huge pages"),
        pytest.param("answer = libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p()))", id="timers"),
        pytest.param(
            "libc.prctl.restype = ctypes.c_int\nanswer = libc.prctl(22, 2, 0, 0, 0)", id="a filter of its own"
        ),
        pytest.param("answer = libc.sync_file_range(0, 0, 0, 0)", id="sync_file_range"),
    ],
)
def test_what_is_shared_by_the_machine_or_counted_by_no_limit_is_refused(sandbox: Sandbox, body: str) -> None:
    aio = {"x86_64": 206, "aarch64": 0}[os.uname().machine]
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    attempt = f"AIO = {aio}\ntry:\n{indented}except OSError:\n    answer = -1\n"

    result = attack(sandbox, attempt + "return 'contained' if answer == -1 else answer")

    assert result.passed, result


def test_socket_pairs_and_pipes_together_hold_little(sandbox: Sandbox) -> None:
    # Kernel memory beside the address space: at most open files x what one of them buffers.
    result = attack(
        sandbox,
        """
import socket
held, kept = 0, []
try:
    while True:
        ends = socket.socketpair()
        kept.append(ends)
        for end in ends:
            end.setblocking(False)
            try:
                while True:
                    held += end.send(bytes(65536))
            except BlockingIOError:
                pass
except OSError as error:
    full = error.errno
return 'contained' if full == 24 and held < 32 << 20 else (full, held)
""",
    )

    assert result.passed, result


def test_ordinary_programs_work_under_the_filter(sandbox: Sandbox) -> None:
    source = """
import asyncio, os, pathlib, random, shutil, sqlite3, subprocess, tempfile, threading, time
def f():
    found = []
    found.append(subprocess.run(['/usr/bin/sort'], input=b'b\\na\\n', capture_output=True).stdout)
    thread = threading.Thread(target=lambda: found.append('thread'))
    thread.start()
    thread.join()
    async def later():
        await asyncio.sleep(0.01)
        return await asyncio.to_thread(abs, -1)
    found.append(asyncio.run(later()))
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name, 'a')
        path.write_text('x')
        shutil.copytree(name, name + '2')
        shutil.rmtree(name + '2')
        path.chmod(0o600)
        os.utime(path)
        found.append(path.rename(path.with_name('b')).read_text())
    found.append(sqlite3.connect(':memory:').execute('select 1').fetchone()[0])
    child = os.fork()
    if child == 0:
        os._exit(7)
    found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return found
"""
    tests = "def check(c):\n    assert c() == [b'a\\nb\\n', 'thread', 1, 'x', 1, 7], c()\n"

    result = sandbox.run(source.replace("\\\\n", "\\n"), "f", tests)

    assert result.passed, result


def test_a_socket_pair_cannot_be_turned_to_a_server_outside(sandbox: Sandbox) -> None:
    # socket() is refused, socketpair() is not: its ends can be sent to any address that exists in their namespace.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract, tempfile.TemporaryDirectory() as directory:
        abstract.bind(f"\0dfqs-test-{os.getpid()}")
        Path(directory).chmod(0o755)
        named = Path(directory, "socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.bind(str(named))
            named.chmod(0o777)
            result = attack(
                sandbox,
                f"import socket\n"
                f"one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
                f"for address in ({abstract.getsockname()!r}, {str(named)!r}):\n"
                "    try:\n        one.sendto(b'x', address)\n        return address\n"
                "    except (ConnectionError, FileNotFoundError):\n        pass\n"
                "return 'contained'",
            )

    assert result.passed, result


def test_links_lead_nowhere(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    tmp_path.chmod(0o755)
    result = attack(
        sandbox,
        f"""
seen = []
targets = ['/etc/shadow', {str(secret)!r}, '../../../../../..' + {str(secret)!r}, '/proc/1/root/etc', '/proc/1/cwd',
           '/proc/self/root/etc/shadow', '/proc/self/cwd/../etc/shadow']
for number, target in enumerate(targets):
    os.symlink(target, f'/tmp/{{number}}')
    try:
        os.listdir(f'/tmp/{{number}}') if os.path.isdir(f'/tmp/{{number}}') else open(f'/tmp/{{number}}').close()
        seen.append(target)
    except OSError:
        pass
for number in range(3, 64):
    try:
        os.open('..', os.O_RDONLY, dir_fd=number)
        seen.append(number)
    except OSError:
        pass
return seen or 'contained'
""",
    )

    assert result.passed, result


def test_a_setuid_program_gains_nothing(sandbox: Sandbox) -> None:
    # The bit's effect, not its presence: /usr/bin/su and its kind are there, on a file system without setuid.
    result = attack(
        sandbox,
        """
places = [line.split() for line in open('/proc/self/mountinfo')]
allowed = [place[4] for place in places if 'nosuid' not in place[5]]
os.chmod(os.open('/tmp/x', os.O_CREAT | os.O_WRONLY), 0o6755)
return allowed or 'contained'
""",
    )

    assert result.passed, result


def test_bytes_that_are_no_text_are_kept_as_text_and_cut(sandbox: Sandbox) -> None:
    result = attack(sandbox, "for number in (1, 2):\n    os.write(number, b'\\xff\\xfe' * 4000)\nreturn 'contained'")

    assert result.passed
    result.output_tail.encode()


def test_what_an_error_says_is_safe_to_store_and_to_print(sandbox: Sandbox) -> None:
    # Half a character made results that no later call of the command could read; the escape reached the terminal.
    result = sandbox.run("def f():\n    raise ValueError('\\ud800\\x1b[31m\\n')", "f", CONTAINED)

    assert result.detail == "ValueError: \\ud800\\x1b[31m\\n"


ALLOWED_ANSWER, NO_PERMISSION, UNKNOWN, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_answers_as_its_table_says(machine: Any) -> None:
    column = list(ARCHITECTURES).index(machine)
    numbers = {name: pair[column] for name, pair in ALLOWED.items() if pair[column] is not None}
    free = {number for name, number in numbers.items() if name not in ARGUMENT_RULES}

    for number in set(range(600)) - set(numbers.values()):
        assert _filtered(machine, number) == (UNKNOWN if number >= 424 else NO_PERMISSION), number
    assert {_filtered(machine, number) for number in free} == {ALLOWED_ANSWER}
    assert _filtered(machine, 0x40000000 | 1) == UNKNOWN
    assert _filtered(machine, 0, architecture=0x40000003) == KILL


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "place", "allowed", "refused"),
    [
        ("prlimit64", 0, [0], [1, 2, 0xFFFFFFFF]),
        ("clone", 0, [17, 0x3D0F00, 0x4111], [0x10000011, 0x20000, 0x40000011, 0x80000000 | 0x20000000]),
        ("mmap", 3, [0x22, 0x2, 0x20022], [0x40022, 0x4C0022]),
        ("madvise", 2, [4, 8, 13], [12]),
        ("fcntl", 1, [0, 1, 2, 3, 4, 1030], [6, 7, 37, 38, 1024, 1026, 1031]),
        ("ioctl", 1, [0x5401, 0x5421], [0x5412, 0x541C, 0]),
        ("prctl", 0, [4, 15], [22, 8, 35, 67]),
        ("socketpair", 0, [1], [0, 2, 16, 38, 40]),
    ],
)
def test_a_call_with_a_rule_is_allowed_with_the_arguments_that_the_rule_allows(
    machine: Any, name: str, place: int, allowed: Any, refused: Any
) -> None:
    number = ALLOWED[name][list(ARCHITECTURES).index(machine)]

    # The kernel looks at the lower half only; what stands above must make no difference.
    for above in (0, 1 << 32):
        assert {_filtered(machine, number, {place: above | value}) for value in allowed} == {ALLOWED_ANSWER}
        assert {_filtered(machine, number, {place: above | value}) for value in refused} == {NO_PERMISSION}
    assert set(ARGUMENT_RULES) == {"prlimit64", "clone", "mmap", "madvise", "fcntl", "ioctl", "prctl", "socketpair"}


def _filtered(machine: str, number: int | None, arguments: Any = None, architecture: int | None = None) -> Any:
    """What the kernel would do: classic BPF on `struct seccomp_data`, the instructions that the filter uses."""
    architecture = ARCHITECTURES[machine] if architecture is None else architecture
    values = [(arguments or {}).get(place, 0) for place in range(6)]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *values)
    program = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    place, loaded = 0, 0
    while True:
        code, yes, no, value = program[place]
        place += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return value
        else:
            place += yes if {0x15: loaded == value, 0x35: loaded >= value, 0x45: loaded & value != 0}[code] else no
