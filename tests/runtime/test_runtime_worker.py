"""The worker process: what crosses the boundary, and who survives whose death."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import runtime_functions
from dfqs.errors import FormatError, RuntimeFailure, UsageError, WorkerCrash
from dfqs.runtime import Worker
from dfqs.runtime import worker as worker_module
from dfqs.runtime.worker_context import WorkerContext
from runtime_functions import WORKER_ENV

DEADLINE_S = 60.0


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(env=WORKER_ENV) as started:
        yield started


def interrupt_self(_event: object) -> None:
    """As the terminal does on Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def exists(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_a_call_returns_its_value_and_state_is_kept_between_calls(worker: Worker) -> None:
    assert worker.call(runtime_functions.double, 20, plus=2) == 42
    assert worker.call(runtime_functions.remember, 1) == [1]
    assert worker.call(runtime_functions.remember, 2) == [1, 2]


def test_a_job_s_arguments_and_its_result_keep_their_types(worker: Worker) -> None:
    """mypy is the other half: it knows the result, and an ignore that it does not need is an error to it."""
    doubled: int = worker.call(runtime_functions.double, 20, plus=2)

    assert doubled == 42
    with pytest.raises(TypeError):
        worker.call(runtime_functions.double, "20")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        worker.call(runtime_functions.double, 20, minus=2)  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        worker.call("double", 20)  # type: ignore[arg-type]


def test_events_come_in_order_and_before_the_result(worker: Worker) -> None:
    seen: list[object] = []

    result = worker.reporting(seen.append).call(runtime_functions.emit_each, list(range(500)))

    assert (result, seen) == ("done", list(range(500)))


def test_messages_larger_than_a_pipe_arrive_whole_in_both_directions(worker: Worker) -> None:
    assert len(worker.call(runtime_functions.return_bytes, 5_000_000)) == 5_000_000
    assert worker.call(runtime_functions.emit_each, [bytes(3_000_000)]) == "done"


def test_a_dfqs_error_crosses_the_boundary_as_itself_with_its_fields(worker: Worker) -> None:
    with pytest.raises(FormatError, match="cut short") as caught:
        worker.call(runtime_functions.raise_format_error)

    assert (caught.value.path, caught.value.offset) == ("model.gguf", 12)


def test_a_bug_in_a_job_keeps_the_worker_s_traceback(worker: Worker) -> None:
    with pytest.raises(ValueError, match="a bug in a job") as caught:
        worker.call(runtime_functions.raise_value_error)

    assert "raise_value_error" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("job", ["raise_unpicklable", "return_unpicklable"])
def test_what_cannot_be_sent_is_an_error_and_not_a_hang(worker: Worker, job: str) -> None:
    with pytest.raises(RuntimeFailure):
        worker.call(getattr(runtime_functions, job))

    assert worker.call(runtime_functions.double, 1) == 2


def test_native_output_can_corrupt_neither_the_protocol_nor_the_terminal(
    worker: Worker, capfd: pytest.CaptureFixture[str]
) -> None:
    assert worker.call(runtime_functions.scribble) == "intact"
    worker.close()

    assert capfd.readouterr() == ("", "")
    assert worker.log_lines == ("to stdout \\x1b[31mred\\x07", "\ufffd\ufffd to stderr", "printed", "complained")


def test_a_c_assert_kills_the_worker_and_not_the_caller(worker: Worker) -> None:
    with pytest.raises(WorkerCrash, match=r"llama\.cpp died with SIGABRT while quantizing") as caught:
        worker.reporting(doing="quantizing").call(runtime_functions.fail_c_assert)

    assert any(
        "GGML_ASSERT(start % type_traits[type].blck_size == 0) failed" in line for line in caught.value.log_lines
    )


def test_the_last_words_of_a_dead_worker_are_safe_to_print(worker: Worker) -> None:
    with pytest.raises(WorkerCrash) as caught:
        worker.call(runtime_functions.scribble_and_die)

    assert caught.value.log_lines == ("last words \\x1b]0;title\\x07",)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_death_by_a_signal_from_outside_is_reported_by_its_name(worker: Worker, number: signal.Signals) -> None:
    with pytest.raises(WorkerCrash, match=f"died with {number.name} while running announce_and_wait"):
        worker.reporting(lambda pid: os.kill(pid, number)).call(runtime_functions.announce_and_wait)


def test_a_worker_that_died_between_calls_is_reported_by_the_next(worker: Worker) -> None:
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not exists(pid))

    with pytest.raises(WorkerCrash, match="SIGKILL"):
        worker.call(runtime_functions.double, 1)
    with pytest.raises(RuntimeFailure, match="not running"):
        worker.call(runtime_functions.double, 1)


def test_ctrl_c_stops_the_call_and_leaves_the_worker_usable(worker: Worker) -> None:
    worker.call(runtime_functions.remember, 7)

    with pytest.raises(KeyboardInterrupt):
        worker.reporting(interrupt_self).call(runtime_functions.announce_and_wait)

    assert worker.call(runtime_functions.remember, 8) == [7, 8]


def test_ctrl_c_stops_a_graph_that_is_being_computed(worker: Worker, smollm2_gguf: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        worker.reporting(interrupt_self).call(runtime_functions.decode_forever, smollm2_gguf)

    assert worker.call(runtime_functions.double, 2) == 4


def test_a_stop_that_comes_after_its_call_does_not_end_the_next_one(worker: Worker) -> None:
    worker.call(runtime_functions.double, 1)
    worker._sender.send(("stop", worker._calls))

    assert worker.call(runtime_functions.emit_each, [1, 2, 3]) == "done"


def test_an_exception_in_on_event_stops_the_call_and_comes_out(worker: Worker) -> None:
    def refuse(_event: object) -> None:
        raise BrokenPipeError("the reader of stdout went away")

    with pytest.raises(BrokenPipeError):
        worker.reporting(refuse).call(runtime_functions.announce_and_wait)

    assert worker.call(runtime_functions.double, 3) == 6


def test_a_call_deaf_to_ctrl_c_is_ended_with_its_process(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "STOP_GRACE_S", 0.1)
    pid = worker.pid

    with pytest.raises(KeyboardInterrupt):
        worker.reporting(interrupt_self).call(runtime_functions.announce_and_sleep)

    assert not exists(pid)
    with pytest.raises(RuntimeFailure, match="not running"):
        worker.call(runtime_functions.double, 1)


def test_sigterm_lets_a_job_put_its_things_away(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(WorkerCrash, match="exit code 143"):
        worker.reporting(lambda pid: os.kill(pid, signal.SIGTERM)).call(
            runtime_functions.announce_and_clean_up, tmp_path / "trace"
        )

    assert (tmp_path / "trace").read_text() == "cleaned up"


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_worker_dies_with_its_caller_even_in_the_middle_of_a_call(in_thread: bool) -> None:
    script = f"""
import sys, threading
sys.path.append({WORKER_ENV["PYTHONPATH"]!r})
import runtime_functions
from dfqs.runtime import Worker
def main():
    with Worker(env={WORKER_ENV!r}) as worker:
        worker.reporting(lambda pid: print(pid, flush=True)).call(runtime_functions.announce_and_sleep)
if {in_thread}:
    thread = threading.Thread(target=main); thread.start(); thread.join()
else:
    main()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        assert exists(pid)
        caller.kill()

    wait_until(lambda: not exists(pid))


def test_a_worker_outlives_the_thread_that_started_it() -> None:
    started: list[Worker] = []
    thread = threading.Thread(target=lambda: started.append(Worker(env=WORKER_ENV).__enter__()))
    thread.start()
    thread.join()

    with started[0] as same:
        # A parent-death signal bound to the ended thread would have come by now.
        assert same.call(runtime_functions.double, 4) == 8


def test_nothing_is_left_of_a_worker_no_process_no_descriptor() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(3):
        with Worker(env=WORKER_ENV) as worker:
            pid = worker.pid
            worker.call(runtime_functions.double, 1)
        assert not exists(pid)

    assert descriptors() == before


def test_a_module_in_the_current_directory_is_not_run_in_place_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pickle", "struct", "dfqs", "runtime_functions"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('somebody else')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    with Worker(env=WORKER_ENV) as worker:
        assert worker.call(runtime_functions.double, 5) == 10


def test_environment_and_wait_policy_reach_the_worker_before_the_library_loads() -> None:
    with Worker(env={**WORKER_ENV, "DFQS_TEST": "here"}, omp_wait_policy="passive") as worker:
        assert worker.call(runtime_functions.read_environment, "DFQS_TEST") == "here"
        assert worker.call(runtime_functions.load_library) == "passive"
        assert worker.call(runtime_functions.read_environment, "OMP_WAIT_POLICY") == "passive"


def test_an_unknown_wait_policy_is_refused_before_a_process_is_started() -> None:
    with pytest.raises(UsageError, match="'sometimes' is no way to wait"):
        Worker(omp_wait_policy="sometimes")


def test_a_function_that_a_worker_cannot_import_is_refused_by_its_caller(worker: Worker) -> None:
    def local(context: WorkerContext) -> None:
        """Found in no module by its name."""

    for job in (local, lambda context: None):
        with pytest.raises(TypeError, match="no function of a module"):
            worker.call(job)
    assert worker.call(runtime_functions.double, 5) == 10


def test_jobs_are_imported_by_their_callers_without_the_native_library() -> None:
    jobs = "dfqs.evaluate.jobs, dfqs.evaluate.speed, dfqs.quantize.execute, dfqs.quantize.imatrix, "
    jobs += "dfqs.quantize.perplexity, dfqs.routing.load, dfqs.routing.pressure, dfqs.runtime.conversation, "
    jobs += "dfqs.runtime.memory, dfqs.serving.server"
    script = f"import {jobs}, sys; maps = open('/proc/self/maps').read()\n"
    script += "print('xllamacpp' in sys.modules or 'xllamacpp' in maps or 'libgomp' in maps)"

    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


def test_arguments_that_import_what_is_being_loaded_do_not_get_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two modules that import each other, as a package's do.
    (tmp_path / "first_half.py").write_text("import time\ntime.sleep(0.4)\nimport second_half\nsecond_half.Argument\n")
    (tmp_path / "second_half.py").write_text(
        "import time\ntime.sleep(0.1)\nimport first_half\nclass Argument(int):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    argument = importlib.import_module("first_half").second_half.Argument(7)

    with Worker(1, env={"PYTHONPATH": f"{WORKER_ENV['PYTHONPATH']}:{tmp_path}"}, ready_for="first_half") as worker:
        assert worker.call(runtime_functions.double, argument) == 14
