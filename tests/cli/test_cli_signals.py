"""Each signal that ends the process cleans up and says its own code and word; what the caller ignored stays ignored."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cli_processes
from dfqs.inplace import is_unfinished
from inplace_cases import assert_tensors, make_shards

WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated (SIGTERM)",
    signal.SIGHUP: "hung up (SIGHUP",
    signal.SIGQUIT: "quit (SIGQUIT)",
}
# A merge that stops before its end and waits there.
WAITING = """
import sys, time
from dfqs.cli.signals import take_signals
import dfqs.shards.plain_merge, dfqs.inplace.mover
def wait(*arguments):
    print("copying", flush=True)
    # In pieces: a signal between Python's look for one and the system call would not end a long sleep.
    for _ in range(6000):
        time.sleep(0.01)
sys.modules["dfqs.storage.copying"].start_writeback = wait
sys.modules["dfqs.storage.copying"].CHUNK_BYTES = 1000
sys.modules["dfqs.inplace.mover"].Mover._commit = wait
from dfqs.__main__ import main
main()
"""


@pytest.fixture(name="shards")
def shards_fixture(tmp_path: Path) -> list[Path]:
    return make_shards(tmp_path / "in")


def merging(shards: list[Path], *options: str, **settings: object) -> "subprocess.Popen[str]":
    """A merge that is in the middle."""
    command = [sys.executable, "-c", WAITING, "merge", str(shards[0]), "-o", str(shards[0].parent / "out.gguf")]
    process: subprocess.Popen[str] = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,  # type: ignore[call-overload]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "copying\n"
    return process


@pytest.mark.parametrize("number", WORDS)
def test_signal_in_a_plain_merge_leaves_nothing_and_says_which_it_was(
    number: signal.Signals, shards: list[Path]
) -> None:
    process = merging(shards)
    assert list(shards[0].parent.glob(".out.gguf.*"))

    process.send_signal(number)
    _, said = process.communicate(timeout=30)

    assert process.returncode == 128 + number
    assert said.startswith(f"dfqs: {WORDS[number]}") and "nothing half-written" in said
    assert sorted(path.name for path in shards[0].parent.iterdir()) == [path.name for path in shards]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_second_signal_does_not_stop_the_tidying_up_after_the_first(number: signal.Signals, shards: list[Path]) -> None:
    process = merging(shards)

    # As the kernel and a shell do together when a connection drops.
    for _ in range(5):
        process.send_signal(number)
    process.communicate(timeout=30)

    assert process.returncode == 128 + number
    assert sorted(path.name for path in shards[0].parent.iterdir()) == [path.name for path in shards]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_in_a_merge_that_uses_shards_up_says_how_to_go_on(number: signal.Signals, shards: list[Path]) -> None:
    process = merging(shards, "--consume")

    process.send_signal(number)
    _, said = process.communicate(timeout=30)

    assert process.returncode == 128 + number
    assert f"{WORDS[number]}" in said and "nothing is lost. The same command goes on" in said
    assert is_unfinished(shards[0].parent / "out.gguf")
    done = cli_processes.run_dfqs("merge", shards[0], "-o", shards[0].parent / "out.gguf", "--consume")
    assert done.returncode == 0
    assert_tensors(shards[0].parent / "out.gguf")


def ignoring(number: signal.Signals) -> Callable[[], None]:
    def ignore() -> None:
        signal.signal(number, signal.SIG_IGN)

    return ignore


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_signal_that_the_caller_ignored_stays_ignored(number: signal.Signals, shards: list[Path]) -> None:
    # nohup; a background job of a script.
    process = merging(shards, preexec_fn=ignoring(number))

    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_terminal_that_is_closed_leaves_nothing_behind(shards: list[Path]) -> None:
    ours, side = pty.openpty()
    command = [sys.executable, "-c", WAITING, "merge", str(shards[0]), "-o", str(shards[0].parent / "out.gguf")]
    settings = {"stdin": side, "stdout": side, "stderr": side, "start_new_session": True}
    process = subprocess.Popen(["setsid", "-c", "-w", *command], **settings)  # type: ignore[call-overload]
    os.close(side)
    seen = b""
    while b"copying" not in seen:
        seen += os.read(ours, 4096)

    os.close(ours)

    process.wait(30)
    deadline = time.monotonic() + 30
    while list(shards[0].parent.glob(".out.gguf.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sorted(path.name for path in shards[0].parent.iterdir()) == [path.name for path in shards]


@pytest.mark.parametrize("number", WORDS)
def test_signal_while_the_command_line_loads_is_one_sentence(number: signal.Signals) -> None:
    code = f"""if True:
        import os, sys
        from dfqs.__main__ import main
        class Signalling:
            def find_spec(self, name, path, target=None):
                if name == "typer":
                    os.kill(os.getpid(), {int(number)})
        sys.meta_path.insert(0, Signalling())
        sys.argv[1:] = ["inspect", "nothing.gguf"]
        main()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 128 + number
    assert done.stderr.startswith(f"dfqs: {WORDS[number]}")
    assert done.stderr.endswith("before anything was done\n") and done.stderr.count("\n") == 1


def test_children_of_tests_begin_with_signals_that_work_though_these_were_ignored() -> None:
    code = """if True:
        import signal, subprocess, sys
        import cli_processes
        show = "import signal; print([signal.getsignal(n) == signal.SIG_IGN for n in (1, 2, 3, 15)])"
        print(subprocess.run([sys.executable, "-c", show], capture_output=True, text=True).stdout, end="")
    """

    def ignore_all() -> None:
        for number in WORDS:
            signal.signal(number, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=ignore_all,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )

    assert done.stdout == "[False, False, False, False]\n"
