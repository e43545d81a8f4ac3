"""Loading the native library: only in a worker process, and only when it is a build that we know.

The library is the shared object of the `xllamacpp` wheel (llama.cpp b11549) unless another was chosen
(`dfqs.runtime.choice`), which passes the same guards. A C assert inside it kills the process it is in, so
`load_library` refuses anywhere but in a worker.
"""

import ctypes
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

from dfqs.errors import RuntimeFailure, printable
from dfqs.processors import default_threads
from dfqs.runtime import abi
from dfqs.runtime.builds import BUILDS, WHEEL, Build, known_build
from dfqs.runtime.choice import LIBRARY_VARIABLE, PACKAGE, PINNED_VERSION, find_library
from dfqs.runtime.stop import StopFlag

_LEVEL_DEBUG, _LEVEL_ERROR, _LEVEL_CONTINUE = 1, 4, 5
_LOG_LINES = 4000
_STDERR = 2

_allowed = False


class NativeLog(threading.local):
    """The last lines that llama.cpp logged (debug left out), kept in memory and copied to the process's stderr.

    Each thread has lines of its own: llama.cpp says what a call did in the thread that called, so that two that make
    contexts at once do not read each other's.
    """

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=_LOG_LINES)
        self._count = 0
        self._level = 0

    def write(self, level: int, text: bytes | None) -> None:
        """Take one message as the C callback gives it. Never raises: the caller is C."""
        try:
            continues = level == _LEVEL_CONTINUE
            self._level = self._level if continues else level
            if self._level == _LEVEL_DEBUG or not text:
                return
            self._append(text.decode("utf-8", "replace"), continues)
            os.write(_STDERR, text)
        except Exception:
            return

    def _append(self, text: str, continues: bool) -> None:
        if continues and self._lines:
            level, line = self._lines[-1]
            self._lines[-1] = (level, line + text)
        else:
            self._lines.append((self._level, text))
            self._count += 1

    def mark(self) -> int:
        """A position of this thread's lines to read from later with `since`."""
        return self._count

    def since(self, mark: int = 0) -> list[str]:
        """Lines that this thread logged after `mark`, as far as they are still kept."""
        return [line.rstrip("\n") for _, line in self._recent(mark)]

    def errors_since(self, mark: int = 0) -> list[str]:
        """Lines of level error that this thread logged after `mark`, safe to print."""
        return [printable(line.strip(), 300) for level, line in self._recent(mark) if level == _LEVEL_ERROR]

    def _recent(self, mark: int) -> list[tuple[int, str]]:
        wanted = min(self._count - mark, len(self._lines))
        return list(self._lines)[len(self._lines) - wanted :]


class Library(ctypes.CDLL):
    """The loaded library: its C functions as attributes, with their signatures, and its log."""

    log: NativeLog
    stop: StopFlag
    threads: int
    omp_wait_policy: str
    path: Path
    build: Build
    _log_callback: Any


def allow_loading() -> None:
    """Say that this process is a worker. Called once, by `dfqs.runtime.worker_process`."""
    global _allowed
    _allowed = True


def load_library(stop: StopFlag | None = None) -> Library:
    """Load, guard and initialize the library, with its log captured and `stop` at hand for its contexts.

    Raises:
        RuntimeFailure: this process is no worker, the library cannot be loaded, or a guard fails.
    """
    library = bind_library(find_library())
    library.log = NativeLog()
    library.stop = stop or StopFlag()
    library.threads, library.omp_wait_policy = default_threads(), os.environ.get("OMP_WAIT_POLICY", "default")
    library._log_callback = abi.LOG_CALLBACK(lambda level, text, _data: library.log.write(level, text))
    library.llama_log_set(library._log_callback, None)
    if not library.ggml_backend_reg_count():
        # A build whose kernels come as libraries of their own, of which it takes the best for this processor.
        library.ggml_backend_load_all_from_path(os.fsencode(library.path.parent))
        if not library.ggml_backend_reg_count():
            raise RuntimeFailure(f"{library.path} has no kernels: no libggml-cpu*.so beside it runs on this processor")
    library.llama_backend_init()
    return library


def bind_library(path: Path) -> Library:
    """The guarded library at `path` without its log: what is safe beside the wheel's own module, which uses the same.

    Raises:
        RuntimeFailure: this process is no worker, the library cannot be loaded, or a guard fails.
    """
    if not _allowed:
        raise RuntimeFailure(
            "llama.cpp is loaded in a dfqs worker process only (a C assert would end this one); use dfqs.runtime.Worker"
        )
    try:
        library = Library(str(path))
    except OSError as error:
        hint = "" if _has_openmp() else "; install the system's libgomp1"
        raise RuntimeFailure(f"llama.cpp could not be loaded from {path}: {error}{hint}") from None
    library.path = path
    library.build = bind(library)
    check_layout(library, library.build)
    return library


def _has_openmp() -> bool:
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        return False
    return True


def bind(library: ctypes.CDLL) -> Build:
    """Find out which build a library is, and give its functions their signatures.

    Raises:
        RuntimeFailure: a function is missing, or it is no build that we know.
    """
    for name, (result, arguments) in abi.SIGNATURES.items():
        _signed(library, name, result, arguments)
    versions: tuple[bytes, bytes] = library.llama_version(), library.ggml_version()
    build = known_build(*versions)
    if build is None:
        known = ", ".join(f"{build.release} ({build.llama_version.decode()})" for build in BUILDS)
        _refuse(f"it is llama {versions[0]!r} with ggml {versions[1]!r}, and known are {known}")
    if build is not WHEEL:
        parameters = build.context_params
        _signed(library, "llama_context_default_params", parameters, [])
        _signed(library, "llama_init_from_model", ctypes.c_void_p, [ctypes.c_void_p, parameters])
    return build


def check_layout(library: ctypes.CDLL, build: Build) -> None:
    """Refuse a library whose structures are not those that `abi` has for its build.

    Raises:
        RuntimeFailure: a size or a default is not what the build has.
    """
    for structure, size in abi.SIZES.items():
        if ctypes.sizeof(structure) != size:
            _refuse(f"{structure.__name__} is {ctypes.sizeof(structure)} bytes here, not {size}")
    for (structure, field), offset in abi.OFFSETS.items():
        if getattr(structure, field).offset != offset:
            _refuse(f"{structure.__name__}.{field} is at {getattr(structure, field).offset} here, not {offset}")
    versions = (library.llama_version(), library.ggml_version())
    if versions != (build.llama_version, build.ggml_version):
        _refuse(f"it is llama {versions[0]!r} with ggml {versions[1]!r}, and not {build.release}")
    overhead = library.ggml_tensor_overhead()
    if overhead != abi.SIZES[abi.Tensor] + abi.TENSOR_OBJECT_BYTES:
        _refuse(f"ggml_tensor_overhead() is {overhead}")
    model, context = library.llama_model_default_params(), library.llama_context_default_params()
    seen = {
        "n_gpu_layers": (model.n_gpu_layers, -1),
        "load_mode": (model.load_mode, abi.LOAD_MODES["auto"]),
        "vocab_only": (model.vocab_only, False),
        "no_alloc": (model.no_alloc, False),
        "n_ctx": (context.n_ctx, 512),
        "n_batch": (context.n_batch, 2048),
        "n_ubatch": (context.n_ubatch, 512),
        "flash_attn_type": (context.flash_attn_type, abi.FLASH_ATTENTION["auto"]),
        "type_k": (context.type_k, abi.CACHE_TYPES["f16"]),
        "type_v": (context.type_v, abi.CACHE_TYPES["f16"]),
        "swa_full": (context.swa_full, True),
        "n_samplers": (context.n_samplers, 0),
    }
    for name, (value, expected) in seen.items():
        if value != expected:
            _refuse(f"its default {name} is {value}, not {expected}")


def _signed(library: ctypes.CDLL, name: str, result: Any, arguments: list[Any]) -> None:
    try:
        function = getattr(library, name)
    except AttributeError:
        _refuse(f"it does not export {name}")
    function.restype, function.argtypes = result, arguments


def _refuse(reason: str) -> NoReturn:
    raise RuntimeFailure(
        f"this llama.cpp library is not the build dfqs knows ({PACKAGE} {PINNED_VERSION}): {reason}; "
        f"reinstall {PACKAGE}, or unset {LIBRARY_VARIABLE} and run 'dfqs runtime use wheel'"
    )
