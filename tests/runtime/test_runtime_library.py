"""The guards around the native library: where it may be loaded, and which."""

import ctypes
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import runtime_functions
from dfqs import processors
from dfqs.errors import RuntimeFailure, UsageError
from dfqs.runtime import Worker, abi, choice, library
from dfqs.runtime.builds import WHEEL
from dfqs.runtime.library import NativeLog, check_layout
from dfqs.runtime.omp_policy import LoadSample, settle_wait_policy
from runtime_functions import WORKER_ENV


def test_the_caller_s_process_never_loads_the_library() -> None:
    with pytest.raises(RuntimeFailure, match="in a dfqs worker process only"):
        library.load_library()
    with Worker(env=WORKER_ENV) as worker:
        worker.call(runtime_functions.load_library)
        assert "xllamacpp" in Path(f"/proc/{worker.pid}/maps").read_text()

    assert "xllamacpp" not in Path("/proc/self/maps").read_text()


def test_another_version_of_the_wheel_is_refused_with_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "2027.1.1")

    with pytest.raises(RuntimeFailure, match=r"xllamacpp 2027\.1\.1 .* pip install xllamacpp==2026\.10\.11549"):
        choice.find_library()


def test_a_missing_wheel_is_said_with_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)

    with pytest.raises(RuntimeFailure, match="not installed; run: pip install"):
        choice.find_library()


def test_a_library_named_by_the_environment_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DFQS_LLAMA_LIBRARY", str(tmp_path / "libllama.so"))

    with pytest.raises(UsageError, match=r"names no file: .*libllama\.so"):
        choice.find_library()


def test_a_record_says_when_another_build_stood_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choice.runtime_name() == "xllamacpp 2026.10.11549"
    assert choice.runtime_and_release() == "llama.cpp b11549 (xllamacpp 2026.10.11549)"

    (tmp_path / "libllama.so").write_bytes(b"a build")
    monkeypatch.setenv("DFQS_LLAMA_LIBRARY", str(tmp_path / "libllama.so"))
    assert choice.runtime_name() == f"own build, sha256 {hashlib.sha256(b'a build').hexdigest()[:12]}"


@pytest.mark.parametrize("other", ["not a library", "libm"])
def test_a_file_that_is_not_that_library_is_refused_and_not_called(other: str, tmp_path: Path) -> None:
    path = tmp_path / "libllama.so"
    if other == "libm":
        path = next(Path("/lib/x86_64-linux-gnu").glob("libm.so.6"), path)
    if not path.exists():
        path.write_bytes(b"not a library")

    with (
        Worker(env={**WORKER_ENV, "DFQS_LLAMA_LIBRARY": str(path)}) as worker,
        pytest.raises(RuntimeFailure, match=r"could not be loaded|does not export"),
    ):
        worker.call(runtime_functions.load_library)


def fake_library(**changes: Any) -> Any:
    """Functions that answer as the pinned library does, but for `changes`."""
    model, context = abi.ModelParams(), abi.ContextParams()
    model.n_gpu_layers, model.load_mode = -1, -1
    context.n_ctx, context.n_batch, context.n_ubatch = 512, 2048, 512
    context.flash_attn_type, context.type_k, context.type_v, context.swa_full = -1, 1, 1, True
    answers: dict[str, Any] = {"llama": b"0.6.0-dev", "ggml": b"0.26.0", "overhead": 368}
    for name, value in changes.items():
        if name in answers:
            answers[name] = value
        else:
            setattr(model if hasattr(model, name) else context, name, value)
    return SimpleNamespace(
        llama_version=lambda: answers["llama"],
        ggml_version=lambda: answers["ggml"],
        ggml_tensor_overhead=lambda: answers["overhead"],
        llama_model_default_params=lambda: model,
        llama_context_default_params=lambda: context,
    )


def test_the_pinned_layout_passes_its_own_guards() -> None:
    check_layout(fake_library(), WHEEL)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("llama", b"0.7.0"),
        ("ggml", b"0.27.0"),
        ("overhead", 360),
        ("n_gpu_layers", 0),
        ("no_alloc", True),
        ("n_ctx", 0),
        ("n_batch", 512),
        ("flash_attn_type", 0),
        ("type_k", 0),
        ("swa_full", False),
        ("n_samplers", 1),
    ],
)
def test_a_structure_that_has_shifted_is_noticed_by_its_defaults(change: str, value: Any) -> None:
    with pytest.raises(RuntimeFailure, match="not the build dfqs knows"):
        check_layout(fake_library(**{change: value}), WHEEL)


def test_structures_have_the_sizes_and_offsets_of_the_pinned_header() -> None:
    assert {structure.__name__: ctypes.sizeof(structure) for structure in abi.SIZES} == {
        "Tensor": 336,
        "ModelParams": 80,
        "ContextParams": 168,
        "ContextParamsV050": 160,
        "Batch": 56,
    }
    assert abi.ContextParams.cb_eval.offset == 88
    assert abi.ContextParams.type_k.offset == 104
    assert abi.ContextParams.samplers.offset == 144


def test_threads_are_counted_by_core_and_only_on_cpus_that_we_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu, siblings in enumerate(["0,4", "1,5", "2,6", "3,7"] * 2):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/core_cpus_list").write_text(siblings + "\n")
    monkeypatch.setattr(processors, "_CPU_DIRECTORY", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 4, 1, 6})
    assert processors.default_threads() == 3

    # Without a topology (some containers), every CPU counts.
    monkeypatch.setattr(processors, "_CPU_DIRECTORY", tmp_path / "nothing")
    assert processors.default_threads() == 4


def test_every_door_takes_one_thread_a_core_of_those_that_taskset_left() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"""
import os
os.sched_setaffinity(0, {{{one}}})
import runtime_functions
from dfqs import processors
from dfqs.processors import default_threads
from dfqs.planning.settings import default_settings
from dfqs.runtime import Worker
from dfqs.storage.linux import usable_cpus
with Worker(env=runtime_functions.WORKER_ENV) as worker:
    settings = default_settings()
    found = {{default_threads(), usable_cpus(), settings.threads, settings.threads_batch}}
    print(found | {{*worker.call(runtime_functions.count_threads)}})
"""
    environment = {**os.environ, **WORKER_ENV}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert said.stdout == "{1}\n"


def test_a_worker_starts_without_what_computes_or_checks_records() -> None:
    unseen = ("numpy", "psutil", "pydantic", "dfqs.records", "dfqs.hardware")
    code = (
        f"import sys, dfqs.runtime.worker_process; print([name for name in {unseen!r} if name in sys.modules]);"
        f"import dfqs.quantize.execute; print([name for name in {unseen[1:]!r} if name in sys.modules])"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout == "[]\n[]\n"


class TestNativeLog:
    def test_a_continued_line_is_joined_and_debug_is_left_out(self) -> None:
        log = NativeLog()
        for level, text in (
            (2, b"load"),
            (5, b"ing"),
            (5, b"...\n"),
            (1, b"noise\n"),
            (5, b"more noise\n"),
            (4, b"no\n"),
        ):
            log.write(level, text)

        assert log.since() == ["loading...", "no"]
        assert log.errors_since() == ["no"]

    def test_a_mark_keeps_earlier_errors_out_of_a_later_reason(self) -> None:
        log = NativeLog()
        log.write(4, b"old\n")
        mark = log.mark()
        log.write(4, b"new \x1b[31m\n")

        assert log.errors_since(mark) == ["new \\x1b[31m"]

    @pytest.mark.thorough
    @given(st.lists(st.tuples(st.integers(-5, 9), st.none() | st.binary(max_size=40)), max_size=60))
    def test_nothing_that_c_says_raises_into_c(self, messages: list[tuple[int, bytes | None]]) -> None:
        log = NativeLog()
        for level, text in messages:
            log.write(level, text)

        assert len(log.since()) <= len(messages)


class TestWaitPolicy:
    @pytest.fixture(autouse=True)
    def clean_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_WAIT_POLICY", "")
        monkeypatch.delenv("OMP_WAIT_POLICY")
        monkeypatch.setenv("GOMP_SPINCOUNT", "")
        monkeypatch.delenv("GOMP_SPINCOUNT")

    @pytest.mark.parametrize(
        ("free", "expected"), [(2.0, "bounded"), (1.75, "bounded"), (1.0, "passive"), (0.1, "passive")]
    )
    def test_threads_do_not_spin_beside_other_work(
        self, free: float, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dfqs.runtime.omp_policy.free_cpus", lambda _since: free)

        assert settle_wait_policy(None, 2, LoadSample()) == expected

    def test_one_thread_of_two_cpus_may_spin_beside_one_busy_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dfqs.runtime.omp_policy.free_cpus", lambda _since: 1.0)

        assert settle_wait_policy(None, 1, LoadSample()) == "bounded"

    def test_the_user_s_own_environment_stands(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")

        assert settle_wait_policy(None, 2, LoadSample()) == "active"

    def test_free_cpus_are_counted_without_our_own_share(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # 2 CPUs for 1 s: idle for 1.2 s, we ran for 0.5 s, so others took 0.3 s and left 1.7.
        samples = iter([LoadSample(at_s=11.0, idle_s=101.2, own_s=5.5)])
        monkeypatch.setattr("dfqs.runtime.omp_policy.LoadSample", lambda: next(samples))
        monkeypatch.setattr("time.monotonic", lambda: 11.0)
        from dfqs.runtime.omp_policy import free_cpus

        assert free_cpus(LoadSample(at_s=10.0, idle_s=100.0, own_s=5.0)) == pytest.approx(1.7)
