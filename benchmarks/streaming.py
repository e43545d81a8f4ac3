"""Tokens a second of a model larger than its memory: the kernel's paging, hints, and the cache of experts.

Run: python benchmarks/streaming.py [--models skewed uniform] [--limits 100 25 40 60 80] [--rounds 5] [--json FILE]
     python benchmarks/streaming.py --tiny --warm 3 --tokens 3 --rounds 1       to try the benchmark itself
     python benchmarks/streaming.py --table FILE                                a finished measurement as tables

Makes a model of 3.5 GB in --scratch (and deletes it), and runs it in a control group (version 1 or 2) whose limit is a
share of the file; 100: no limit. Modes take turns within a round. Every run is a process of its own that begins with
nothing of the file in the page cache (with no limit: with what is there), decodes some tokens to get warm and then
those that count. Each run's result is stored when it is there: the same command goes on where it was ended.

`read_ahead_kb` of the disk is set to what Linux has by default and put back; --read-ahead own leaves it as it is.
The bound is serial: computing in memory (no limit, paged), then reading the run's bytes at the rate of the disk, which
is measured before each round. Rates are those of a run's median token: other work on the machine stalls single tokens
for seconds; the slowest run as a whole stands beside. Needs root for the control group and for read_ahead_kb.
"""

import argparse
import ctypes
import json
import mmap
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streaming_model import FULL, TINY, write_model

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from dfqs.hardware import read_machine  # noqa: E402
from dfqs.runtime.choice import runtime_name  # noqa: E402
from dfqs.storage.atomic import write_bytes_atomic  # noqa: E402
from dfqs.streaming.budget import PROGRAM_BYTES  # noqa: E402
from memory_cgroup import memory_group, run_in_group  # noqa: E402

SCHEMA = "dfqs.benchmark.streaming/1"
MODES = ("paged", "hints", "cache")
WHOLE_MODES = ("memory", "paged", "cache")
"""Without a limit: as llama.cpp loads by itself, without repacking, and streamed all the same."""
WHOLE = 100
READ_AHEAD_KB = 128
_DISK_READS, _DISK_READ_BYTES, _DISK_THREADS = 320, 1 << 20, 8
_GOALS = {"hints": 1.8, "cache": 2.5}

Run = dict[str, Any]


class Results:
    """Runs so far, in a file that is whole at any moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"schema": SCHEMA}
        self.runs: list[Run] = self.document.setdefault("runs", [])

    def find(self, **key: Any) -> list[Run]:
        return [run for run in self.runs if all(run[name] == value for name, value in key.items())]

    def add(self, run: Run) -> None:
        self.runs.append(run)
        self.save()

    def save(self) -> None:
        write_bytes_atomic(self._path, (json.dumps(self.document, indent=1) + "\n").encode(), overwrite=True)


def cached_bytes(path: Path) -> int:
    """How much of a file the page cache has, in bytes."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    present = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        if libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), present):
            raise OSError(ctypes.get_errno(), "mincore")
        del start
    return sum(value & 1 for value in bytes(present)) * mmap.PAGESIZE


def drop_from_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_disk(path: Path) -> float:
    """Bytes a second of reads of 1 MiB at random places past the page cache, eight at a time."""
    reads = min(_DISK_READS, path.stat().st_size // _DISK_READ_BYTES)
    places = random.sample(range(path.stat().st_size // _DISK_READ_BYTES), reads)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def work(mine: Sequence[int]) -> None:
        with mmap.mmap(-1, _DISK_READ_BYTES) as memory:
            for place in mine:
                os.preadv(handle, [memory], place * _DISK_READ_BYTES)

    threads = [threading.Thread(target=work, args=(places[number::_DISK_THREADS],)) for number in range(_DISK_THREADS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    os.close(handle)
    return reads * _DISK_READ_BYTES / seconds


def read_ahead_file(path: Path) -> Path | None:
    """Where the read-ahead of the disk under a file is set; None where there is no such disk."""
    device = path.stat().st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for directory in (name, name.parent):
        if (found := directory / "queue" / "read_ahead_kb").exists():
            return found
    return None


@contextmanager
def read_ahead(path: Path, kilobytes: int | None) -> Iterator[int | None]:
    """Set the disk's read-ahead while the block runs; None leaves it. Gives what holds."""
    file = read_ahead_file(path)
    if file is None:
        yield None
        return
    before = file.read_text()
    try:
        if kilobytes is not None:
            file.write_text(str(kilobytes))
            print(f"read_ahead_kb of {file.parents[1].name}: {before.strip()} -> {kilobytes}", file=sys.stderr)
        yield int(file.read_text())
    finally:
        file.write_text(before)


def run_once(path: Path, mode: str, limit_bytes: int | None, options: argparse.Namespace) -> Run:
    """One run, in a group of `limit_bytes`."""
    ram = limit_bytes or options.whole_bytes
    command = [sys.executable, str(Path(__file__).with_name("streaming_run.py")), str(path), mode, str(ram)]
    command += [str(options.warm), str(options.tokens)]
    if limit_bytes is not None:
        drop_from_page_cache(path)
    before = cached_bytes(path)
    with memory_group(limit_bytes or 1 << 50) as group:
        if group is None:
            raise SystemExit("no control group for memory can be made here; it takes root and the controller")
        done = run_in_group(group, command)
        peak = next((p for p in (group / "memory.max_usage_in_bytes", group / "memory.peak") if p.exists()), None)
        peak_bytes = int(peak.read_text()) if peak is not None else None
    if done.returncode:
        return {"mode": mode, "failed": done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]}
    return {**json.loads(done.stdout), "failed": None, "cached_before_bytes": before, "group_peak_bytes": peak_bytes}


def measure_cell(path: Path, model: str, percent: int, results: Results, options: argparse.Namespace) -> None:
    """All rounds of one model at one limit, as far as they are not there yet."""
    size = path.stat().st_size
    # A tiny model's quarter does not hold the program itself.
    limit = None if percent == WHOLE else size * percent // 100 + (PROGRAM_BYTES if options.tiny else 0)
    modes = options.modes or (WHOLE_MODES if percent == WHOLE else MODES)
    with read_ahead(path, READ_AHEAD_KB if options.read_ahead == "usual" else None) as kilobytes:
        cell = {"model": model, "percent": percent, "read_ahead_kb": kilobytes}
        for number in range(options.rounds):
            turn = number % len(modes)
            missing = [m for m in (*modes[turn:], *modes[:turn]) if not results.find(**cell, round=number, mode=m)]
            disk = measure_disk(path) if missing else None
            for mode in missing:
                if time.monotonic() > options.deadline:
                    raise SystemExit("time is up; the same command goes on")
                run = run_once(path, mode, limit, options)
                run |= {**cell, "round": number, "mode": mode, "limit_bytes": limit, "disk_bytes_per_s": disk}
                results.add(run)
                rate = f"{run['tokens_per_s']:.2f} tokens/s" if not run["failed"] else run["failed"]
                print(f"{model} {percent} % round {number} {mode}: {rate}", file=sys.stderr, flush=True)


def describe_conditions(options: argparse.Namespace) -> dict[str, Any]:
    machine = read_machine()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": machine.cpu_model,
        "cpus": machine.allowed_cpus,
        "kernel": platform.release(),
        "runtime": runtime_name(),
        "control_groups": 1 if Path("/sys/fs/cgroup/memory").is_dir() else 2,
        "warm_tokens": options.warm,
        "tokens": options.tokens,
        "tiny": options.tiny,
    }


def spread(values: Sequence[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def typical_rate(run: Run) -> float:
    """Tokens a second at the run's median token: bursts of other work on the machine stall some of them."""
    return 1 / float(statistics.median(run["token_s"]))


def print_tables(document: dict[str, Any]) -> None:
    """Results as they stand in docs."""
    results = [run for run in document["runs"] if not run["failed"]]
    print(json.dumps(document.get("conditions", {})), "\n")
    for model in dict.fromkeys(run["model"] for run in results):
        for kilobytes in dict.fromkeys(run["read_ahead_kb"] for run in results if run["model"] == model):
            mine = [run for run in results if (run["model"], run["read_ahead_kb"]) == (model, kilobytes)]
            print_table(model, kilobytes, mine, document)


def print_table(model: str, kilobytes: int | None, runs: list[Run], document: dict[str, Any]) -> None:
    whole = [r for r in document["runs"] if r["model"] == model and r["percent"] == WHOLE and not r["failed"]]
    computing = [1 / typical_rate(r) for r in whole if r["mode"] == "paged"]
    print(f"{model}, read_ahead_kb {kilobytes}\n")
    columns = ["limit", "mode", "runs", "tokens/s of the median token (least-most)", "slowest run in all", "x paged"]
    columns += ["MB a token", "hit rate", "of the bound"]
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for percent in sorted({run["percent"] for run in runs}):
        cell = [run for run in runs if run["percent"] == percent]
        paged = [typical_rate(run) for run in cell if run["mode"] == "paged"]
        for mode in dict.fromkeys(run["mode"] for run in cell):
            mine = [run for run in cell if run["mode"] == mode]
            rates = [typical_rate(run) for run in mine]
            slowest = min(run["tokens_per_s"] for run in mine)
            times = f"{statistics.median(rates) / statistics.median(paged):.2f}" if paged else ""
            mb = statistics.median(run["read_bytes_per_token"] for run in mine) / 1e6
            hits = [run["hit_rate"] for run in mine if run["hit_rate"] is not None]
            hit = f"{statistics.median(hits):.0%}" if hits and mode == "cache" else ""
            bound = ""
            if computing and percent != WHOLE:
                compute = statistics.median(computing)
                shares = [
                    typical_rate(run) * (compute + run["read_bytes_per_token"] / run["disk_bytes_per_s"])
                    for run in mine
                ]
                bound = f"{statistics.median(shares):.2f}"
            name = f"{percent} %" if percent != WHOLE else "none"
            cells = (name, mode, len(mine), spread(rates), f"{slowest:.2f}", times, f"{mb:.1f}", hit, bound)
            print(f"| {' | '.join(map(str, cells))} |")
    hashes = {run["logits_sha256"] for run in runs if run["mode"] != "memory"}
    print(f"\nlogits of all runs but those repacked: {'one hash' if len(hashes) == 1 else f'{len(hashes)} hashes'}\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("skewed", "uniform"), default=["skewed", "uniform"])
    parser.add_argument("--limits", nargs="+", type=int, default=[WHOLE, 25, 40, 60, 80], metavar="PERCENT")
    parser.add_argument("--modes", nargs="+", choices=(*MODES, "memory", "chosen"), help="default: all that make sense")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--read-ahead", choices=("usual", "own"), default="usual")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--keep", action="store_true", help="do not delete the models")
    parser.add_argument("--json", type=Path, default=Path("streaming-benchmark.json"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--table", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.table is not None:
        print_tables(json.loads(options.table.read_text()))
        return
    # Ended from outside, it still puts read_ahead_kb back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; the same command goes on"))
    options.deadline = time.monotonic() + options.seconds
    results = Results(options.json)
    results.document["conditions"] = describe_conditions(options)
    shape = TINY if options.tiny else FULL
    for model in options.models:
        path = options.scratch / f"dfqs-benchmark-{model}{'-tiny' if options.tiny else ''}.gguf"
        if not path.exists():
            write_model(path, shape, skewed=model == "skewed")
        options.whole_bytes = path.stat().st_size * 2 + PROGRAM_BYTES
        try:
            for percent in options.limits:
                measure_cell(path, model, percent, results, options)
        finally:
            if not options.keep:
                path.unlink()
    print_tables(results.document)


if __name__ == "__main__":
    main()
