"""What a loaded llama.cpp can use of a processor, and what of this machine's it leaves unused."""

from dataclasses import dataclass

from dfqs.hardware import read_machine
from dfqs.runtime.builds import known_build
from dfqs.runtime.worker_context import WorkerContext

_FEATURES = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
}
"""llama.cpp's names -> those of /proc/cpuinfo, for what it has kernels of its own for."""


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """A library, as it describes itself when it is loaded."""

    library: str
    release: str
    llama_version: str
    ggml_version: str
    features: tuple[str, ...]
    """That this build uses, by the processor's names where they are known."""
    unused: tuple[str, ...]
    """That this machine has, that llama.cpp has kernels for, and that this build leaves unused."""
    openmp: bool
    """Threads come from OpenMP; otherwise the library has its own."""


def describe_runtime(worker: WorkerContext) -> RuntimeFacts:
    """In a worker: load the library and ask it."""
    library = worker.library
    versions: tuple[bytes, bytes] = library.llama_version(), library.ggml_version()
    build = known_build(*versions)
    said = parse_features(library.llama_print_system_info().decode("utf-8", "replace"))
    used = tuple(_FEATURES.get(name, name.lower()) for name in said)
    has = read_machine().cpu_flags
    kernels = set(_FEATURES.values())
    return RuntimeFacts(
        library=str(library.path),
        release=build.release if build else "llama.cpp",
        llama_version=versions[0].decode(),
        ggml_version=versions[1].decode(),
        features=tuple(name for name in used if name in kernels),
        unused=tuple(flag for flag in has if flag in kernels and flag not in used),
        openmp="OPENMP" in said,
    )


def parse_features(text: str) -> tuple[str, ...]:
    """Names that `llama_print_system_info` gives a number other than 0: `CPU : SSE3 = 1 | AVX = 1 | ...`."""
    found = []
    for part in text.split("|"):
        name, _, value = part.rpartition(":")[2].partition("=")
        if value.strip().isdigit() and int(value):
            found.append(name.strip())
    return tuple(found)
