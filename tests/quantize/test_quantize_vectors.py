"""The same bytes as llama-quantize: against hashes recorded from the real tool, and live where it is at hand.

`tests/vectors/quantize/record.py` says how the tool was built and run. The wheel's kernels choose their loops by CPU
feature at compile time, so the recorded hashes hold on any machine that can run the wheel.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqs.gguf.file import GGUFFile
from dfqs.model.classes import CLASSES
from dfqs.quantize.imatrix_file import write_imatrix
from dfqs.quantize.quantize import quantize
from dfqs.runtime import Worker
from quantize_inputs import peer_command, vector_imatrix, write_model

RECORDED = json.loads((Path(__file__).parents[1] / "vectors" / "quantize" / "llama_quantize.json").read_text())
PEER = os.environ.get("DFQS_LLAMA_QUANTIZE")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for all: the tables of the IQ1 types take seconds to build."""
    with Worker(threads=2) as worker:
        yield worker


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("vectors")
    imatrix = directory / "vector.imatrix.gguf"
    write_imatrix(imatrix, vector_imatrix())
    return write_model(directory / "model.gguf"), imatrix


def tensor_hashes(path: Path) -> dict[str, list[str]]:
    with GGUFFile(path) as file:
        return {
            t.name: [t.type.name, hashlib.sha256(file.read_tensor(t.name)).hexdigest()] for t in file.header.tensors
        }


def test_the_input_is_the_one_that_the_vectors_were_recorded_for(inputs: tuple[Path, Path]) -> None:
    assert hashlib.sha256(inputs[0].read_bytes()).hexdigest() == RECORDED["input_sha256"]


@pytest.mark.parametrize("class_name", CLASSES)
def test_tensors_are_byte_identical_to_llama_quantize(
    class_name: str, inputs: tuple[Path, Path], worker: Worker, tmp_path: Path
) -> None:
    model, imatrix = inputs
    out = tmp_path / "out.gguf"

    quantize(model, out, CLASSES[class_name], imatrix=imatrix, worker=worker)

    assert tensor_hashes(out) == RECORDED[class_name]["tensors"]


@pytest.mark.skipif(PEER is None, reason="DFQS_LLAMA_QUANTIZE does not name the tool")
@pytest.mark.parametrize("class_name", ["IQ1_S-XL", "Q2_K-XL"])
def test_the_real_tool_still_makes_what_was_recorded(
    class_name: str, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    assert PEER is not None
    out = tmp_path / "out.gguf"

    subprocess.run(peer_command(PEER, *inputs, out, class_name), check=True, capture_output=True)

    assert tensor_hashes(out) == RECORDED[class_name]["tensors"]
