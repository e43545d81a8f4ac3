"""Quantizations, measurements of importance and evaluations killed with SIGKILL, run again until they end, compared.

    python tests/kill_works.py [--rounds 20] [--first 0] [--seed 1] [--only NAME] [--model M]      (scripts/kill-works)

A round starts the command line itself, kills it after a random delay (up to three times), notes by its files how far it
was, and gives the same command until it ends well. Its outputs must be those of a run that nobody disturbed; of an
evaluation of a local model (`--model`, else one of random weights) the report, but for what was timed.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.embedded import cached_source
from evaluate_server import oracle, serve
from fixtures_moe import write_tiny_moe
from quantize_inputs import write_model

TEXT = Path(__file__).parent / "vectors" / "quantize" / "calibration.txt"
KILLS = 3
LOCAL_STAGES = "reasoning,code,tools,profile,context,boundary"
"""All that measure no time."""


@dataclass(frozen=True, slots=True)
class Work:
    """A kind of work: its command, for an output, and the files by which it can be told how far it is."""

    name: str
    command: Callable[[Path], Sequence[str]]
    outputs: Callable[[Path], Sequence[Path]]
    state: Callable[[Path], str]


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    # With a key that never comes it is the command line, and has a suite that takes seconds.
    command = [sys.executable, str(Path(__file__).with_name("killed_eval.py")), "never", "never", *arguments[1:]]
    if arguments[0] != "eval":
        command = [sys.executable, "-m", "dfqs.cli.main", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def quantize_state(out: Path) -> str:
    journal = out / "q.gguf.quantize-journal"
    if (out / "q.gguf").exists():
        return "named" if journal.exists() else "done"
    if not journal.exists():
        return "nothing"
    return "complete, not named" if b'"complete"' in journal.read_bytes() else "converting"


def imatrix_state(out: Path) -> str:
    journal = out / "i.gguf.imatrix-journal"
    if (out / "i.gguf").exists():
        return "named" if journal.exists() else "done"
    return "measuring" if journal.exists() else "nothing"


def eval_state(out: Path) -> str:
    results = out / "run-1" / "results.jsonl"
    if (out / "report.json").exists():
        return "done"
    return "measuring" if results.exists() and results.stat().st_size > 600 else "begun" if out.exists() else "nothing"


def local_state(out: Path) -> str:
    """The stage of the last result that was stored."""
    results = out / "run-1" / "results.jsonl"
    lines = results.read_bytes().splitlines() if results.exists() else []
    stages = [json.loads(line)["stage"] for line in lines if line.endswith(b"}")]
    return "done" if (out / "report.json").exists() else stages[-1] if stages else "nothing"


def works(model: Path, local: Path, url: str) -> tuple[Work, ...]:
    return (
        Work(
            "quantize",
            lambda out: ["quantize", str(model), str(out / "q.gguf"), "--class", "Q4_K-XL", "-t", "1"],
            lambda out: [out / "q.gguf", out / "q.gguf.manifest.json"],
            quantize_state,
        ),
        Work(
            "imatrix",
            lambda out: ["imatrix", str(model), "-o", str(out / "i.gguf"), "--corpus", str(TEXT), "-t", "1"],
            lambda out: [out / "i.gguf"],
            imatrix_state,
        ),
        Work(
            "eval",
            lambda out: ["eval", "--endpoint", url, "-o", str(out), "--suite", "quick", "--only", "reasoning,code"],
            lambda out: [out / "run-1" / "results.jsonl"],
            eval_state,
        ),
        Work(
            "eval-local",
            lambda out: [
                "eval",
                str(local),
                "-o",
                str(out),
                "--suite",
                "small",
                "--only",
                LOCAL_STAGES,
                "-t",
                "1",
            ],
            lambda out: [out / "report.json"],
            local_state,
        ),
    )


def digest(work: Work, out: Path) -> str:
    """Of what was made; of an evaluation the answers, or the report, without times."""
    if work.name == "eval-local":
        report = json.loads((out / "report.json").read_bytes())
        kept = {name: report[name] for name in ("metrics", "details", "reasons", "conditions", "artifact")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    if work.name == "eval":
        lines = (out / "run-1" / "results.jsonl").read_bytes().splitlines()
        answers = sorted(line.partition(b'"wall_s"')[0] for line in lines if b'"notes"' not in line)
        return hashlib.sha256(b"\n".join(answers)).hexdigest()
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in work.outputs(out)}, f"something was left: {names}"
    return hashlib.sha256(work.outputs(out)[0].read_bytes()).hexdigest()


def kill_round(work: Work, out: Path, rng: random.Random, whole_s: float) -> tuple[list[str], str]:
    """The states that the kills hit, and the digest of what came of it."""
    out.mkdir()
    hit: list[str] = []
    for _ in range(rng.randint(1, KILLS)):
        process = start(work.command(out))
        time.sleep(rng.uniform(0.2, 1.05) * whole_s)
        process.kill()
        process.communicate()
        hit.append(work.state(out))
    process = start(work.command(out))
    _, said = process.communicate()
    assert process.returncode == 0, (work.name, hit, said.decode())
    return hit, digest(work, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first round: the next piece of a longer run"
    )
    parser.add_argument("--only", choices=["quantize", "imatrix", "eval", "eval-local"], help="one kind of work")
    parser.add_argument("--model", type=Path, help="evaluated as the local one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, serve(oracle()) as endpoint:
        scratch = Path(name)
        local = options.model or scratch / "local.gguf"
        if options.model is None:
            write_tiny_moe(local, cached_source(), "qwen3moe")
        for work in works(write_model(scratch / "model.gguf"), local, endpoint.url):
            if options.only not in (None, work.name):
                continue
            (scratch / work.name).mkdir()
            began = time.monotonic()
            assert start(work.command(scratch / work.name)).wait() == 0, work.name
            whole_s, expected = time.monotonic() - began, digest(work, scratch / work.name)
            counts: Counter[str] = Counter()
            for number in range(options.first, options.first + options.rounds):
                rng = random.Random(f"{work.name}/{options.seed}/{number}")
                hit, found = kill_round(work, scratch / f"{work.name}-{number}", rng, whole_s)
                assert found == expected, f"{work.name}, round {number}: {hit}"
                counts.update(hit)
            states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
            print(
                f"{work.name}: {options.rounds} rounds, {sum(counts.values())} kills ({states}); all the same",
                flush=True,
            )


if __name__ == "__main__":
    main()
