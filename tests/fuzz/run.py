"""The fuzzing loop. `make fuzz` gives each target an equal share of FUZZ_MINUTES, and keeps what it finds as seeds.

A case is decided by the target's name, the seed and its number alone, so a find comes again.
"""

import argparse
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fuzz.oracle import Find, bounded_memory, judged
from fuzz.targets import TARGETS, Target

SEEDS = Path(__file__).parent / "seeds"
MINIMISING_S = 20.0


def seeds_of(name: str) -> list[tuple[str, bytes]]:
    """(file name, document) of every find that was kept for a target."""
    folder = SEEDS / name
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())] if folder.is_dir() else []


def try_document(target: Target, data: bytes, work: Path) -> Find | None:
    """What is wrong with what comes of a document; None for nothing."""
    scratch = work / "case"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        with judged(scratch):
            target.read(data, scratch)
    except Find as find:
        return find
    return None


def make_cases(target: Target, seed: int, base: bytes) -> Iterator[bytes]:
    """Mutations without end, of the sound document and now and then of an old find."""
    starts = [base] * 3 + [data for _, data in seeds_of(target.name)][:3]
    number = 0
    while True:
        rng = random.Random(f"{target.name} {seed} {number}")
        start = rng.choice(starts)
        try:
            yield target.mutate(rng, start)
        except (ValueError, IndexError, KeyError, OverflowError, MemoryError):
            # An old find need not have the form that the mutations know.
            yield target.mutate(rng, base)
        number += 1


def fuzz(
    target: Target, work: Path, *, seed: int = 0, cases: int = sys.maxsize, seconds: float = 1e9
) -> tuple[int, dict[str, bytes]]:
    """Run cases until their number or the time is reached.

    Returns:
        How many were run, and the first document of each thing found.
    """
    finds: dict[str, bytes] = {}
    done, until = 0, time.monotonic() + seconds
    base = target.base(work)
    # Were it refused, its mutations would be too, and nothing behind the first check be tried.
    (work / "sound").mkdir()
    target.read(target.sealed(base), work / "sound")
    with bounded_memory():
        for data in make_cases(target, seed, base):
            if done >= cases or time.monotonic() > until:
                return done, finds
            done += 1
            find = try_document(target, data, work)
            if find is not None:
                finds.setdefault(str(find).split(": ")[0], data)
    raise AssertionError("cases without end ended")


def minimise(target: Target, what: str, data: bytes, work: Path) -> bytes:
    """The smallest document found in `MINIMISING_S` that still does the same."""
    until = time.monotonic() + MINIMISING_S
    step = len(data) // 2
    while step:
        at = 0
        while at < len(data) and time.monotonic() < until:
            shorter = data[:at] + data[at + step :]
            find = try_document(target, shorter, work)
            if find is not None and str(find).split(": ")[0] == what:
                data = shorter
            else:
                at += step
        step //= 2
    return data


def main() -> int:
    """Exit code 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("FUZZ_MINUTES", "10")))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    names = options.targets
    found = 0
    with tempfile.TemporaryDirectory(prefix="dfqs-fuzz-") as folder:
        os.environ["DFQS_CACHE"] = f"{folder}/cache"
        for name in names:
            target, work = TARGETS[name], Path(folder) / name
            work.mkdir()
            share = options.minutes * 60 / len(names)
            done, finds = fuzz(target, work, seed=options.seed, seconds=share)
            print(f"{name}: {done:,} cases, {len(finds)} finds (seed {options.seed})", flush=True)
            for what, data in finds.items():
                small = minimise(target, what, data, work)
                path = SEEDS / name / hashlib.sha256(small).hexdigest()[:12]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(small)
                print(f"  {what}\n  {path}", flush=True)
            found += len(finds)
            shutil.rmtree(work)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
