"""The command: which rows, measured how often, with which peers; results kept, page written."""

import argparse
import compileall
import importlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import dfqs
from speed import results
from speed.frame import Place, Row, Setting, measure
from speed.machine import commit, load, machine
from speed.rows import ROWS

PEER_TOOLS = ("llama-quantize", "llama-gguf-split", "llama-imatrix", "llama-perplexity", "llama-bench")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not options.page:
        measure_rows(options.rows or list(ROWS), options)
    if options.page or not options.no_page:
        # matplotlib is not needed to measure.
        from speed.page import write_page

        write_page(results.read())
    return 0


def measure_rows(names: list[str], options: argparse.Namespace) -> None:
    """Measure rows one after the other; each is kept when it is done.

    The program is compiled before, as an installer leaves it: where Python is told to write no bytecode
    (PYTHONDONTWRITEBYTECODE), a checkout would be compiled again by every process.
    """
    compileall.compile_dir(Path(dfqs.__file__).parent, quiet=1)
    peers = _peers(options.peer, options.peers)
    # As installing does: where nothing may be written while running, every start would compile the source anew.
    compileall.compile_dir(Path(dfqs.__file__).parent, quiet=1)
    for name in names:
        with tempfile.TemporaryDirectory(dir=options.scratch, prefix="dfqs-benchmark-") as scratch:
            row = _setting(name)(Place(Path(scratch), peers, options.scale))
            found = measure_row(row, options.rounds)
        print(f"{results.write(found, options.results)}", file=sys.stderr)


def measure_row(row: Row, rounds: int) -> results.Result:
    before = load()
    samples = measure(row, rounds, _say) if row.arms else {}
    curves = row.curves() if row.curves is not None else ()
    return results.Result.of(
        row, samples, curves, rounds=rounds, machine=machine(), load_before=before, load_after=load(), commit=commit()
    )


def _setting(name: str) -> Setting:
    module = importlib.import_module(f"speed.rows.{name.replace('-', '_')}")
    setting: Setting = module.row
    return setting


def _peers(named: list[str], folder: Path | None) -> Mapping[str, Path]:
    found = {name: folder / name for name in PEER_TOOLS if folder is not None and (folder / name).exists()}
    for entry in named:
        name, _, path = entry.partition("=")
        if not Path(path).exists():
            raise SystemExit(f"--peer {entry}: no such file")
        found[name] = Path(path)
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure dfqs beside other programs and the machine's limits."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="a tool to measure beside")
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="a folder of tools under their own names")
    parser.add_argument("--scratch", type=Path, help="where inputs and outputs go; up to 13 GB")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the inputs, 1 as docs/speed.md shows them")
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="where results are kept")
    parser.add_argument("--no-page", action="store_true", help="leave docs/speed.md and its picture as they are")
    parser.add_argument("--page", action="store_true", help="only write them, from the results that there are")
    return parser
