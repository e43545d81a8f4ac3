"""Which targets answer live here: the demonstration model, asked through every tool that is found.

    scripts/live_targets [--path FOLDER] [--only pi,hermes,page] [--out live.json] [--captures FOLDER]

`dfqs serve` loads the model (for tools that want a longer context than it was trained for: a copy whose header says so,
which is labelled by its file's name and good for nothing but this). Each tool gets a configuration of its own in an
empty folder, and a witness in front of the server; it is live when the nonce of our question stood in a request that
the server got, and the tool printed exactly what the server answered that request with (`dfqs.targets.live`). The same
holds for what the OpenAI client can ask for, the harnesses and the web page (`live_clients.py`).
"""

import argparse
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from live_clients import CASES, TOOLS, prove_case

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
TOOLS_TEMPLATE = Path(__file__).with_name("tools_template.jinja")
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


def prove_all(
    targets: list[Target],
    path: Path,
    context_tokens: int,
    cases: Sequence[str] = (),
    captures: Path | None = None,
    chat_template: Path | None = None,
) -> list[dict[str, object]]:
    """Ask through each, and each case of `live_clients`; one server for all."""
    model = local_model(open_model(path), context_tokens=context_tokens)
    results: list[dict[str, object]] = []
    serving = served(path, port=0, context_tokens=context_tokens, api_key=None, chat_template=chat_template)
    with serving as server:
        for target in targets:
            row: dict[str, object] = {"target": target.name, "context_tokens": context_tokens, "model": path.name}
            with tempfile.TemporaryDirectory() as folder:
                try:
                    proof = asdict(prove_live(target, model, server.endpoint, Path(folder)))
                    row |= {"version": version_of(target.programs[0]) if target.programs else None, **proof}
                except DfqsError as error:
                    row |= {"live": False, "reason": str(error)}
            results.append(row)
            tell(row)
        for name in cases:
            with tempfile.TemporaryDirectory() as folder:
                found = prove_case(name, server.endpoint.root, server.endpoint.model, Path(folder), captures)
            results.append(found)
            tell(found)
    return results


def tell(row: dict[str, object]) -> None:
    """One line a proof."""
    print(f"{row['target']}: {'live' if row['live'] else 'not live'}: {row['reason']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", action="append", default=[], help="a folder with tools, before the search path")
    parser.add_argument("--only", default="", help="targets and first words of cases, with commas between")
    parser.add_argument("--captures", type=Path, help="a folder for pictures of the page")
    parser.add_argument("--out", type=Path, help="a file for the results as JSON")
    options = parser.parse_args()
    os.environ["PATH"] = os.pathsep.join([*options.path, os.environ["PATH"]])
    only = tuple(options.only.split(",")) if options.only else ()
    wanted = [target for target in askable() if not only or target.name in only]
    cases = [name for name in CASES if not only or name.startswith(only)]
    model = cached_embedded_model()
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        usual = [target for target in wanted if target.name != "hermes"]
        if usual or cases:
            plain = [name for name in cases if name != TOOLS]
            results += prove_all(usual, model, CONTEXT_TOKENS, plain, options.captures)
        if TOOLS in cases:
            results += prove_all([], model, CONTEXT_TOKENS, [TOOLS], chat_template=TOOLS_TEMPLATE)
        if len(usual) < len(wanted):
            assert LONG_CONTEXT_TOKENS >= LEAST_CONTEXT_TOKENS
            longer = [target for target in wanted if target not in usual]
            results += prove_all(longer, long_context_variant(model, Path(folder)), LONG_CONTEXT_TOKENS)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
