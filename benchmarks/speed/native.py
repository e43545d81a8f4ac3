"""What the rows that run a model share: the demonstration model, a text, the library that the peers were built with."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dfqs.embedded.build import cached_embedded_model
from dfqs.quantize.calibration import heldout_text, shipped_corpus
from speed.frame import Place, Sample

THREADS = "1"
"""Threads that wait for each other count as CPU time, beside other programs most of all."""
CONDITIONS = (
    "Demonstration model (llama, Q8_0, 162 M active parameters, vocabulary of 49,152), 1 thread; the tool, and dfqs on "
    "the library that lies beside the tool",
)


def model() -> Path:
    return cached_embedded_model()


def write_text(path: Path) -> Path:
    """Some thousand tokens: held-out text, then calibration text."""
    mixed = ["\n\n".join(stream.documents) for stream in shipped_corpus().streams if stream.documents]
    path.write_text("\n\n".join([heldout_text(), *mixed]))
    return path


def same_library(place: Place, tool: str) -> dict[str, str]:
    """What has dfqs run on the library beside the tool; nothing where there is none."""
    peer = place.peer(tool)
    library = peer.parent / "libllama.so" if peer is not None else None
    return {"DFQS_LLAMA_LIBRARY": str(library)} if library is not None and library.exists() else {}


def told(
    words: Sequence[str | Path], read: Callable[[Any], Sample], environment: Mapping[str, str] | None = None
) -> Callable[[], Sample]:
    """An arm whose process times its work by itself, model loaded and warm, and prints it as JSON."""

    def run() -> Sample:
        line, variables = [str(word) for word in words], {**os.environ, **(environment or {})}
        done = subprocess.run(line, capture_output=True, text=True, check=True, env=variables)
        return read(json.loads(done.stdout))

    return run
