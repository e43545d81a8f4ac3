"""Record what llama-quantize and llama-imatrix make of the model in tests/quantize_inputs.py.

    python tests/vectors/quantize/record.py path/to/llama-quantize path/to/llama-imatrix

The tools are of llama.cpp b11549 (the sources of xllamacpp 2026.10.11549), built like the wheel: `cmake
-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON`. Other CPU flags may move last bits.

Writes beside itself: llama_quantize.json (SHA-256 of every tensor, by class) and llama_imatrix.gguf (the real tool's
file for that model and calibration.txt).
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from dfqs.gguf.file import GGUFFile  # noqa: E402
from dfqs.model.classes import CLASSES  # noqa: E402
from dfqs.quantize.imatrix_file import write_imatrix  # noqa: E402
from quantize_inputs import peer_command, peer_imatrix_command, vector_imatrix, write_model  # noqa: E402


def tensor_hashes(path: Path) -> dict[str, list[str]]:
    """Name -> [type, SHA-256]."""
    with GGUFFile(path) as file:
        return {
            t.name: [t.type.name, hashlib.sha256(file.read_tensor(t.name)).hexdigest()] for t in file.header.tensors
        }


def main(quantize_tool: str, imatrix_tool: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = write_model(directory / "model.gguf")
        write_imatrix(directory / "vector.imatrix.gguf", vector_imatrix())
        recorded: dict[str, object] = {"input_sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
        for class_name in CLASSES:
            out = directory / f"{class_name}.gguf"
            command = peer_command(quantize_tool, model, directory / "vector.imatrix.gguf", out, class_name)
            subprocess.run(command, check=True, capture_output=True)
            arguments = [part.replace(str(directory) + "/", "") for part in command[1:]]
            recorded[class_name] = {"arguments": arguments, "tensors": tensor_hashes(out)}
        (HERE / "llama_quantize.json").write_text(json.dumps(recorded, indent=1) + "\n")
        out = directory / "llama_imatrix.gguf"
        command = peer_imatrix_command(imatrix_tool, model, HERE / "calibration.txt", out)
        subprocess.run(command, check=True, capture_output=True, cwd=HERE)
        (HERE / "llama_imatrix.gguf").write_bytes(out.read_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:3])
