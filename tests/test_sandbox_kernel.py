"""What the kernel offers besides files and network: ways out, and memory that no limit of a process counts."""

import os
import socket
import struct
import tempfile
from pathlib import Path

import pytest

from dfqs.evaluate.sandbox import Limits, Outcome, Sandbox, open_sandbox
from dfqs.evaluate.seccomp import ARCHITECTURES, REFUSED, SET_LIMITS, filter_program

CONTAINED = "def check(candidate):\n    answer = candidate()\n    assert answer == 'contained', answer\n"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return open_sandbox(Limits(wall_s=20))


def attack(sandbox: Sandbox, body: str):
    """Runs `body` as the function's body; it returns 'contained' where the attack was refused."""
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return sandbox.run(
        f"import ctypes, os, struct, sys\nlibc = ctypes.CDLL(None, use_errno=True)\ndef attack():\n{indented}",
        "attack",
        CONTAINED,
    )


def test_empty_files_by_the_hundred_thousand_are_stopped(sandbox):
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


def test_extended_attributes_that_no_size_limit_counts_are_refused(sandbox):
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
def test_what_reaches_beyond_the_process_is_refused(sandbox, call):
    numbers = {"x86_64": (248, 435, 56), "aarch64": (217, 435, 220)}[os.uname().machine]
    body = f"ADD_KEY, CLONE3, CLONE = {numbers}\nanswer = {call}\nif answer == 0:\n    os._exit(0)\n"

    result = attack(sandbox, body + "return 'contained' if answer == -1 else answer")

    assert result.passed, result


def test_a_socket_pair_cannot_be_turned_to_a_server_outside(sandbox):
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


def test_links_lead_nowhere(sandbox, tmp_path):
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


def test_a_setuid_program_gains_nothing(sandbox):
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


def test_bytes_that_are_no_text_are_kept_as_text_and_cut(sandbox):
    result = attack(sandbox, "for number in (1, 2):\n    os.write(number, b'\\xff\\xfe' * 4000)\nreturn 'contained'")

    assert result.passed
    result.output_tail.encode()


def test_what_an_error_says_is_safe_to_store_and_to_print(sandbox):
    # Half a character made results that no later call of the command could read; the escape reached the terminal.
    result = sandbox.run("def f():\n    raise ValueError('\\ud800\\x1b[31m\\n')", "f", CONTAINED)

    assert result.detail == "ValueError: \\ud800\\x1b[31m\\n"


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_answers_as_its_table_says(machine):
    column = list(ARCHITECTURES).index(machine)
    refused = {pair[column] for pair in REFUSED.values()}
    allowed, no_permission, unknown, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000

    for number in range(500):
        expected = no_permission if number in refused else allowed
        assert _filtered(machine, number) == expected, number
    assert _filtered(machine, SET_LIMITS[column], first_argument=1) == no_permission
    assert _filtered(machine, 0x40000000 | 29) == unknown
    assert _filtered(machine, 0, architecture=0x40000003) == kill


def _filtered(machine, number, first_argument=0, architecture=None):
    """What the kernel would do: classic BPF on `struct seccomp_data`, the instructions that the filter uses."""
    architecture = ARCHITECTURES[machine] if architecture is None else architecture
    data = struct.pack("<IIQQ", number, architecture, 0, first_argument)
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
            place += yes if {0x15: loaded == value, 0x35: loaded >= value}[code] else no
