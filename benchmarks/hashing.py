"""Hashing of a model against hashlib alone on the same bytes: throughput, and CPU time for each byte hashed.

Run: python benchmarks/hashing.py MODEL [--rounds 5]

Rounds are interleaved, with a second run of the control; the file is read once before, so that all runs find it in the
page cache. `per core` compares CPU seconds for each gigabyte that went through SHA-256 (with both hashes, every byte of
a tensor goes through twice); below 1.15 is within 15 % of the hashing library.
"""

import argparse
import hashlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from dfqs.gguf import read_header
from dfqs.integrity import hash_model


def hash_alone(path: Path) -> None:
    """hashlib over the file in one thread, through one buffer."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(4 << 20))
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            digest.update(buffer[:got])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    path: Path = options.model
    size = path.stat().st_size
    tensors = sum(t.length for t in read_header(path).tensors)
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "hashlib alone": (lambda: hash_alone(path), size),
        "hashlib again (control)": (lambda: hash_alone(path), size),
        "content_sha256": (lambda: hash_model(path, file=False), tensors),
        "content and file": (lambda: hash_model(path), size + tensors),
    }
    hash_alone(path)
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, (call, _hashed) in runs.items():
            started, before = time.perf_counter(), time.process_time()
            call()
            cpu[name].append(time.process_time() - before)
            wall[name].append(time.perf_counter() - started)
    base = statistics.median(cpu["hashlib alone"]) / size
    print(f"{path.name}: {size / 1e9:.2f} GB, {len(os.sched_getaffinity(0))} cores, {options.rounds} rounds, medians\n")
    print("| run | wall s (min-max) | GB/s of file | CPU s per GB hashed | per core against hashlib |")
    print("|---|---|---|---|---|")
    for name, (_, hashed) in runs.items():
        seconds, used = statistics.median(wall[name]), statistics.median(cpu[name])
        span = f"{min(wall[name]):.2f}-{max(wall[name]):.2f}"
        row = f"| {name} | {seconds:.2f} ({span}) | {size / seconds / 1e9:.2f} | {used / hashed * 1e9:.2f} "
        print(f"{row}| {used / hashed / base:.2f} |")


if __name__ == "__main__":
    main()
