"""Which targets answer live here: the demonstration model, asked through every tool that is found.

    scripts/live_targets [--path FOLDER] [--only pi,hermes] [--out live.json]

`dfqs serve` loads the model (for tools that want a longer context than it was trained for: a copy whose header says so,
which is labelled by its file's name and good for nothing but this). Each tool gets a configuration of its own in an
empty folder, and a witness in front of the server; it is live when the nonce of our question stood in a request that
the server got, and the tool printed exactly what the server answered that request with (`dfqs.targets.live`).
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

from dfqs.embedded import cached_embedded_model
from dfqs.errors import DfqsError
from dfqs.model.files import open_model
from dfqs.targets.catalogue import all_targets
from dfqs.targets.contract import Endpoint, Target
from dfqs.targets.hermes import LEAST_CONTEXT_TOKENS
from dfqs.targets.live import prove_live
from dfqs.targets.model import local_model
from dfqs.targets.serving import served

CONTEXT_TOKENS = 8192
LONG_CONTEXT_TOKENS = 65_536
LONG_NAME = "demonstration-64k-untrained.gguf"


def long_context_variant(source: Path, folder: Path) -> Path:
    """A copy whose header claims a context that the model was never trained for."""
    path = folder / LONG_NAME
    shutil.copyfile(source, path)
    entry = next(entry for entry in open_model(source).header.entries if entry.name.endswith(".context_length"))
    with path.open("r+b") as file:
        file.seek(entry.value_start)
        file.write(struct.pack("<I", LONG_CONTEXT_TOKENS))
    return path


def version_of(program: str) -> str:
    """What a tool calls itself."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, timeout=60, check=False, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return ((done.stdout or done.stderr).strip().splitlines() or ["unknown"])[0]


def askable() -> list[Target]:
    """Targets that can be asked one question without a terminal."""
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m", LONG_CONTEXT_TOKENS)
    return [target for target in all_targets() if target.ask(endpoint, "?", Path("/nowhere")) is not None]


def prove_all(targets: list[Target], path: Path, context_tokens: int) -> list[dict[str, object]]:
    """Ask through each, one server for all."""
    model = local_model(open_model(path), context_tokens=context_tokens)
    results: list[dict[str, object]] = []
    with served(path, port=0, context_tokens=context_tokens, api_key=None) as server:
        for target in targets:
            row: dict[str, object] = {"target": target.name, "context_tokens": context_tokens, "model": path.name}
            with tempfile.TemporaryDirectory() as folder:
                try:
                    proof = asdict(prove_live(target, model, server.endpoint, Path(folder)))
                    row |= {"version": version_of(target.programs[0]) if target.programs else None, **proof}
                except DfqsError as error:
                    row |= {"live": False, "reason": str(error)}
            results.append(row)
            print(f"{target.name}: {'live' if row['live'] else 'not live'}: {row['reason']}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", action="append", default=[], help="a folder with tools, before the search path")
    parser.add_argument("--only", default="", help="targets, with commas between")
    parser.add_argument("--out", type=Path, help="a file for the results as JSON")
    options = parser.parse_args()
    os.environ["PATH"] = os.pathsep.join([*options.path, os.environ["PATH"]])
    wanted = [target for target in askable() if not options.only or target.name in options.only.split(",")]
    model = cached_embedded_model()
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        usual = [target for target in wanted if target.name != "hermes"]
        if usual:
            results += prove_all(usual, model, CONTEXT_TOKENS)
        if len(usual) < len(wanted):
            assert LONG_CONTEXT_TOKENS >= LEAST_CONTEXT_TOKENS
            longer = [target for target in wanted if target not in usual]
            results += prove_all(longer, long_context_variant(model, Path(folder)), LONG_CONTEXT_TOKENS)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
