"""Merging two shards (1.4 + 0.28 GB, 129,280 tokens): cat, cat again as a control, dfqs, and llama-gguf-split.

    python benchmarks/shards.py [--rounds 7] [--cold] [--peer path/to/llama-gguf-split] [--scratch DIR] [--json FILE]

Rounds are interleaved and their order rotates, so that a slow minute of the machine hits all alike. Every time includes
an fsync of the output. The shards are in the page cache, or (`--cold`) are not, as those of a model larger than memory
cannot be. What does not wander is counted too: bytes that the process wrote (`/proc/PID/io`), disk space
beyond what the shards took (blocks of all files, sampled), and the largest resident set (`VmHWM`, sampled).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dfqs.units import format_bytes
from speed.inputs import write_shards
from speed.machine import load, machine

SAMPLE_S = 0.01
SHARD_TENSORS = (40, 8)
"""Tensors of experts in the first and second shard."""


@dataclass(frozen=True, slots=True)
class Measurement:
    wall_s: float
    cpu_s: float
    """User and system time of the process."""
    written_bytes: int
    extra_disk_bytes: int
    resident_bytes: int


def measure(command: Sequence[str], folder: Path, out: Path) -> Measurement:
    """Run a command to its end and its output onto the disk."""
    before = used_bytes(folder)
    peak_disk = before
    peak_resident = 0
    done = threading.Event()
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def sample() -> None:
        nonlocal peak_disk, peak_resident
        while not done.is_set():
            peak_disk = max(peak_disk, used_bytes(folder))
            peak_resident = max(peak_resident, resident_bytes(process.pid))
            time.sleep(SAMPLE_S)

    sampler = threading.Thread(target=sample)
    sampler.start()
    # Its accounting can be read until it is waited for.
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    written = written_bytes(process.pid)
    handle = os.open(out, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    wall_s = time.monotonic() - started
    done.set()
    sampler.join()
    _, process.returncode, usage = os.wait4(process.pid, 0)
    assert ended is not None and ended.si_status == 0, f"{command[0]} failed"
    return Measurement(wall_s, usage.ru_utime + usage.ru_stime, written, peak_disk - before, peak_resident)


def used_bytes(folder: Path) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def resident_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def written_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def evict(paths: Sequence[Path]) -> None:
    """Take durable files out of the page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def run_rounds(
    shards: list[Path], rounds: int, peer: str | None, scratch: Path, *, cold: bool
) -> dict[str, list[Measurement]]:
    """All commands, in rotating order."""
    dfqs = [sys.executable, "-m", "dfqs.cli.main", "merge"]
    out = scratch / "out.gguf"
    first = str(shards[0])
    cat = ["sh", "-c", 'exec cat "$1" "$2" > "$3"', "cat", *map(str, shards), str(out)]

    def plain(command: Sequence[str]) -> Callable[[], Measurement]:
        def run() -> Measurement:
            if cold:
                evict(shards)
            return measure(command, scratch, out)

        return run

    def in_place() -> Measurement:
        copies = scratch / "copies"
        copies.mkdir()
        for shard in shards:
            shutil.copyfile(shard, copies / shard.name)
        os.sync()
        if cold:
            evict([copies / shard.name for shard in shards])
        result = measure(
            [*dfqs, str(copies / shards[0].name), "-o", str(copies / "out.gguf"), "--in-place"],
            copies,
            copies / "out.gguf",
        )
        shutil.rmtree(copies)
        return result

    commands: dict[str, Callable[[], Measurement]] = {
        "cat": plain(cat),
        "cat (control)": plain(cat),
        "dfqs merge": plain([*dfqs, first, "-o", str(out)]),
        "dfqs merge --in-place": in_place,
    }
    if peer:
        commands["llama-gguf-split --merge"] = plain([peer, "--merge", first, str(out)])
    results: dict[str, list[Measurement]] = {name: [] for name in commands}
    names = list(commands)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            results[name].append(commands[name]())
            out.unlink(missing_ok=True)
            os.sync()
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return results


def table(results: dict[str, list[Measurement]]) -> str:
    """Medians, with the spread beside them."""
    base = statistics.median(m.wall_s for m in results["cat"])
    lines = [
        "| command | median s | least to most s | of cat | CPU s | bytes written | extra disk at peak | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        walls = [m.wall_s for m in found]
        median = statistics.median(walls)
        lines.append(
            f"| {name} | {median:.2f} | {min(walls):.2f} to {max(walls):.2f} | {median / base:.2f} "
            f"| {statistics.median(m.cpu_s for m in found):.2f} "
            f"| {round(statistics.median(m.written_bytes for m in found)):,} "
            f"| {format_bytes(max(m.extra_disk_bytes for m in found))} "
            f"| {format_bytes(max(m.resident_bytes for m in found))} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Merge two shards in several ways and measure it.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true", help="take the shards out of the page cache before each run")
    parser.add_argument("--peer", help="a llama-gguf-split to compare with")
    parser.add_argument("--scratch", type=Path, help="directory to work in; takes 3.5 GB there")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the model, 1 = 1.7 GB")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        rows = round(1000 * options.scale)
        shards = write_shards(scratch, sum(SHARD_TENSORS), SHARD_TENSORS[0], rows=rows)
        moved = shards[1].stat().st_size
        print(f"{machine()}, load {load():.1f}")
        print(f"shards: {' + '.join(format_bytes(path.stat().st_size) for path in shards)}")
        print(f"bytes of the shard that moves in place: {moved:,}")
        print(f"the shards are {'not ' if options.cold else ''}in the page cache\n")
        results = run_rounds(shards, options.rounds, options.peer, scratch, cold=options.cold)
        print(table(results))
        print(f"\nload after: {load():.1f}")
        if options.json:
            plain = {name: [asdict(m) for m in found] for name, found in results.items()}
            options.json.write_text(json.dumps({"machine": machine(), "results": plain}, indent=2) + "\n")


if __name__ == "__main__":
    main()
