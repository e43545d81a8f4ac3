"""Merges killed with SIGKILL, resumed, and checked: rounds for the tests, and the full run for docs/shards.md.

    python tests/kill_rounds.py [--rounds 12] [--timed 60]      (scripts/kill-merges)

A round starts a merge in its own process (`killed_merge.py`), kills it before a chosen I/O operation, notes the state
in which its journal is, resumes (in one round of three the resumed merge is killed too), and compares every tensor
with what it was. Timed rounds kill the command line itself after a random delay, wherever it is; a kill before the
first write or after the last does not count.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dfqs.gguf import GGMLType
from dfqs.gguf.file import GGUFFile
from dfqs.inplace.journal import journal_path
from dfqs.shards import merge, plan_merge
from dfqs.storage.disk import probe_insert_unit
from killed_merge import read_state
from shard_inputs import Tensor, array_entry, string_entry, text, u32_entry, write_shards

MODES = ("in-place", "in-place, middle stays", "consume", "consume by deletion")
CHILD = Path(__file__).with_name("killed_merge.py")
LONGEST_S = 0.12
"""After its first write, a timed merge of this size is done by then, more often than not."""
JOURNAL_STATES = ("begun", "inserted", "undoing", "ready", "moving", "sealed")


def tensors(scale: int) -> list[Tensor]:
    found: list[Tensor] = [("token_embd.weight", (64, 300 * scale), GGMLType.Q8_0)]
    for layer in range(4):
        found.append((f"blk.{layer}.attn_norm.weight", (64,), GGMLType.F32))
        found.append((f"blk.{layer}.ffn_up_exps.weight", (64, 200 * scale, 6), GGMLType.Q8_0))
    return found


def make_shards(folder: Path, mode: str, scale: int = 1) -> list[Path]:
    entries = [
        string_entry("general.architecture", "llama"),
        u32_entry("llama.block_count", 4),
        array_entry("tokenizer.ggml.tokens", 8, [text(f"token {number}") for number in range(3000)]),
    ]
    all_tensors = tensors(scale)
    cuts = (3, 7) if "middle" in mode else (5, 7)
    return write_shards(
        folder, entries, [all_tensors[: cuts[0]], all_tensors[cuts[0] : cuts[1]], all_tensors[cuts[1] :]]
    )


def content_sha256(path: Path) -> str:
    """Over the sorted lines name, type, shape, SHA-256 of the tensor's bytes."""
    with GGUFFile(path) as model:
        lines = sorted(
            f"{t.name},{t.type.name},{list(t.shape)},{hashlib.sha256(model.read_tensor(t.name)).hexdigest()}"
            for t in model.header.tensors
        )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def spawn(first: Path, out: Path, mode: str, kill_at: int | None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(CHILD),
        str(first),
        str(out),
        mode,
        str("never" if kill_at is None else kill_at),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def states_of(scratch: Path, mode: str) -> list[str | None]:
    """The journal's state before each operation of an undisturbed merge."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    done = spawn(make_shards(folder, mode)[0], folder / "out.gguf", mode, None)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder)
    found: list[str | None] = json.loads(done.stdout)
    return found


def kill_round(
    scratch: Path, mode: str, kill_at: int, generator: random.Random, then_at: int | None = None
) -> list[str]:
    """One merge, killed at least once, resumed and checked; returns the states that the kills hit.

    Args:
        then_at: kill what resumes before this operation; by default one time in three, before one of the first dozen.
    """
    folder = Path(tempfile.mkdtemp(dir=scratch))
    shards = make_shards(folder, mode)
    expected = expected_sha256(scratch, mode)
    out = folder / "out.gguf"
    hit: list[str] = []
    kills: list[int | None] = [kill_at]
    if then_at is not None or generator.random() < 0.33:
        kills.append(then_at or generator.randrange(1, 12))
    while True:
        killed = spawn(shards[0], out, mode, kills.pop(0) if kills else None)
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        state = read_state(out)
        if state is not None:
            hit.append(state)
        elif not out.exists():
            hit.append("none")
    assert content_sha256(out) == expected, f"{mode}, killed at operation {kill_at}"
    assert [path.name for path in folder.iterdir()] == ["out.gguf"]
    shutil.rmtree(folder)
    return hit


_EXPECTED: dict[str, str] = {}


def expected_sha256(scratch: Path, mode: str) -> str:
    if mode not in _EXPECTED:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        shards = make_shards(folder, mode)
        merge(plan_merge(shards[0]), folder / "plain.gguf")
        _EXPECTED[mode] = content_sha256(folder / "plain.gguf")
        shutil.rmtree(folder)
    return _EXPECTED[mode]


def stratified_rounds(scratch: Path, mode: str, rounds: int, seed: int) -> Counter[str]:
    """`rounds` kills in every state that the mode goes through."""
    generator = random.Random(f"{mode}/{seed}")
    states = states_of(scratch, mode)
    counts: Counter[str] = Counter()
    for state in sorted({state for state in states if state is not None}):
        places = [index for index, found in enumerate(states) if found == state]
        for _ in range(rounds):
            counts.update(kill_round(scratch, mode, generator.choice(places), generator))
        if state == "inserted":
            # Only a resumed merge undoes.
            for _ in range(rounds):
                counts.update(kill_round(scratch, mode, generator.choice(places), generator, generator.choice((7, 8))))
    return counts


def timed_round(scratch: Path, options: Sequence[str], generator: random.Random, longest_s: float) -> str | None:
    """Kill the command line some time after its first write; the state it was in, or None when it was done already."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    shards = make_shards(folder, "timed", scale=60)
    expected = _expected_timed(scratch)
    out = folder / "out.gguf"
    command = [sys.executable, "-m", "dfqs.cli.main", "merge", str(shards[0]), "-o", str(out), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not journal_path(out).exists() and not any(folder.glob(".out*.partial")):
            time.sleep(0.001)
        time.sleep(generator.uniform(0, longest_s))
        process.kill()
    state = read_state(out)
    if state is None and any(folder.glob(".out*.partial")):
        state = "temporary file"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or (state is None and out.exists()), done.stderr
    assert content_sha256(out) == expected
    assert not any(folder.glob(".*")), "something half-written was left"
    shutil.rmtree(folder)
    return state


def _expected_timed(scratch: Path) -> str:
    if "timed" not in _EXPECTED:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        shards = make_shards(folder, "timed", scale=60)
        merge(plan_merge(shards[0]), folder / "plain.gguf")
        _EXPECTED["timed"] = content_sha256(folder / "plain.gguf")
        shutil.rmtree(folder)
    return _EXPECTED["timed"]


def table(rows: dict[str, Counter[str]], columns: Sequence[str]) -> str:
    lines = ["| mode | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for mode, counts in rows.items():
        lines.append(
            f"| {mode} | " + " | ".join(str(counts[column]) if counts[column] else "-" for column in columns) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill merges with SIGKILL, resume them, compare every tensor.")
    parser.add_argument("--rounds", type=int, default=12, help="kills in every journal state of every mode")
    parser.add_argument("--timed", type=int, default=60, help="kills of the command line after a random delay, a mode")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="directory on the file system to try (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        modes = [mode for mode in MODES if probe_insert_unit(scratch) or not mode.startswith("in-place")]
        rows = {mode: stratified_rounds(scratch, mode, options.rounds, options.seed) for mode in modes}
        print(table(rows, JOURNAL_STATES))
        generator = random.Random(options.seed)
        timed: dict[str, Counter[str]] = {}
        for mode, flags in (("plain", []), ("--in-place", ["--in-place"]), ("--consume", ["--consume"])):
            found = [
                timed_round(scratch, [*flags, "--window", "1MiB"], generator, LONGEST_S) for _ in range(options.timed)
            ]
            timed[mode] = Counter(state or "done already" for state in found)
        print("\n" + table(timed, ("temporary file", *JOURNAL_STATES, "done already")))
        print("\nafter every round: every tensor right, nothing left but the output")


if __name__ == "__main__":
    main()
