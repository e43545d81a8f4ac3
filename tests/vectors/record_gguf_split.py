"""Record what llama-gguf-split makes of the inputs in tests/shard_inputs.py.

    python tests/vectors/record_gguf_split.py path/to/llama-gguf-split

Writes tests/vectors/gguf_split.json: SHA-256 of every input and of every output. tests/README.md says how the tool is
built and from what.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import shard_cases
from shard_inputs import sha256


def run(tool: str, *arguments: str) -> None:
    subprocess.run([tool, *arguments], check=True, capture_output=True)


def record(tool: str, directory: Path) -> dict[str, object]:
    splits: dict[str, object] = {}
    for name, case in shard_cases.SPLITS.items():
        folder = directory / "split" / name
        folder.mkdir(parents=True)
        model = case.write(folder / "model.gguf")
        run(tool, "--split", *case.peer_options, str(model), str(folder / "shard"))
        shards = sorted(folder.glob("shard-*.gguf"))
        run(tool, "--merge", str(shards[0]), str(folder / "merged.gguf"))
        splits[name] = {
            "input": sha256(model),
            "options": list(case.peer_options),
            "shards": [sha256(path) for path in shards],
            "merged": sha256(folder / "merged.gguf"),
        }
    merges: dict[str, object] = {}
    for name, write in shard_cases.FOREIGN_SHARDS.items():
        folder = directory / "merge" / name
        shards = write(folder)
        run(tool, "--merge", str(shards[0]), str(folder / "merged.gguf"))
        merges[name] = {"shards": [sha256(path) for path in shards], "merged": sha256(folder / "merged.gguf")}
    version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stderr.splitlines()
    return {"tool": "llama-gguf-split", "built_from": shard_cases.PEER_SOURCE, "version": version, "splits": splits,
            "merges": merges}  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        result = record(sys.argv[1], Path(scratch))
    target = Path(__file__).with_name("gguf_split.json")
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {target}")
