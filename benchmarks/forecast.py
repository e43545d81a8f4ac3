"""Forecasts of speed frozen before anything is measured, then held against what is.

Run: python benchmarks/forecast.py make DIR                 (random models of geometries and types of their own)
     python benchmarks/forecast.py freeze DIR OUT.json [MODEL...]   (calibrates the machine, writes forecasts)
     python benchmarks/forecast.py measure DIR OUT.json     (measures the same models, prints the table)

The machine is calibrated with random models of other geometries (`dfqs.planning.probe_models`); none of the models here
is among them. Rates are of llama.cpp's defaults (flash attention auto, ubatch 512), threads waiting as when calibrated.
All models are open at once and measured in turn, round after round, each round in another order; the middle of the
rounds counts, as in the calibration: processors that are shared with others change their speed within seconds.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from dfqs.gguf import GGMLType
from dfqs.model.files import open_model
from dfqs.planning.calibration import WAIT_POLICY, calibrate
from dfqs.planning.forecast import ForecastRequest, forecast
from dfqs.planning.speed import wanted_types
from dfqs.planning.work import count_work
from dfqs.quantize.kernels import Kernels
from dfqs.runtime import Worker
from dfqs.runtime.context import Context, Model
from dfqs.runtime.timing import time_decode, time_prefill
from dfqs.runtime.worker_context import WorkerContext
from random_models import RandomModel

CONTEXTS, TOKENS, DEEP_EVERY = (64, 1024), 12, 3
Q8_0, Q4_K, MXFP4, IQ1_S, IQ2_XXS = (getattr(GGMLType, name) for name in ("Q8_0", "Q4_K", "MXFP4", "IQ1_S", "IQ2_XXS"))
LATENT = {"rank": 512, "rope": 64}
MODELS = {
    "qwen3moe-Q8_0": RandomModel("qwen3moe", Q8_0, Q8_0, 9, 1152, 896, 9, 3, 128, 20, 5),
    "qwen3moe-IQ1_S": RandomModel("qwen3moe", IQ1_S, Q8_0, 8, 1792, 1536, 14, 2, 128, 24, 3),
    "gpt-oss-MXFP4": RandomModel("gpt-oss", MXFP4, Q8_0, 7, 1536, 1344, 24, 3, 64, 14, 4, more={"window": 128}),
    "gpt-oss-Q8_0": RandomModel("gpt-oss", Q8_0, Q8_0, 9, 960, 1280, 15, 3, 64, 15, 3, more={"window": 128}),
    "llama4-Q4_K": RandomModel("llama4", Q4_K, Q4_K, 8, 1536, 2560, 12, 4, 128, 6, 1),
    "deepseek2-IQ2_XXS": RandomModel(
        "deepseek2", IQ2_XXS, Q8_0, 7, 1536, 1536, 12, 1, 128, 18, 3, more={"q_rank": 640, **LATENT}
    ),
    "deepseek2-Q4_K": RandomModel(
        "deepseek2", Q4_K, Q8_0, 9, 1280, 1280, 10, 1, 128, 16, 5, more={"q_rank": 448, **LATENT}
    ),
    "llama-IQ2_XXS": RandomModel("llama", IQ2_XXS, IQ2_XXS, 8, 2304, 4608, 18, 6, 128),
}


def make(worker: WorkerContext, directory: Path) -> None:
    """In the worker."""
    kernels = Kernels(worker.library)
    for name, model in MODELS.items():
        path = directory / f"{name}.gguf"
        if not path.exists():
            model.write(path, kernels)


def measure(
    worker: WorkerContext, paths: list[Path], contexts: tuple[int, ...], seconds: float
) -> dict[str, dict[str, list[float]]]:
    """In the worker: seconds of a token of each model, round after round, until `seconds` are over."""
    random, found = Random(7), {path.stem: defaultdict[str, list[float]](list) for path in paths}
    with ExitStack() as stack:
        opened = {}
        for path in paths:
            model = stack.enter_context(Model(worker.library, path))
            context = Context(model, max(contexts) + TOKENS, n_batch=2048, threads=worker.threads)
            opened[path.stem] = stack.enter_context(context)
            time_prefill(context, 32)
        ends, number = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            for name in random.sample(sorted(opened), len(opened)):
                for tokens in contexts if number % DEEP_EVERY == 0 else contexts[:1]:
                    found[name][f"prefill {tokens}"].append(time_prefill(opened[name], tokens) / tokens)
                    decoded = time_decode(opened[name], tokens, TOKENS)
                    found[name][f"decode {tokens}"].append(statistics.fmean(decoded))
            number += 1
    return {name: dict(times) for name, times in found.items()}


def freeze(paths: list[Path], contexts: tuple[int, ...], *, again: bool) -> dict[str, Any]:
    models = [open_model(path) for path in paths]
    wanted = {
        key
        for model in models
        for key in wanted_types(
            count_work(model.tensors, model.spec.experts, model.spec.experts_used, model.spec.passed_layers)
        )
    }
    calibration = calibrate(wanted, 2, again=again)
    found: dict[str, Any] = {"calibration": calibration.model_dump(mode="json")}
    for path, model in zip(paths, models, strict=True):
        document = forecast(model, ForecastRequest(contexts, 2, curve=False, calibration=calibration))
        found[path.stem] = {"path": str(path)} | {
            f"{what} {one.context_tokens}": getattr(one, what).model_dump()
            for one in document.contexts
            for what in ("decode", "prefill")
        }
    return found


def compare(frozen: dict[str, Any], measured: dict[str, dict[str, list[float]]]) -> None:
    columns = ["model", "what", "forecast (95 %)", "measured", "rounds", "slowest to fastest", "error", "inside"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    errors, inside, widths = defaultdict[str, list[float]](list), Counter[str](), list[float]()
    for model, times in measured.items():
        for what, seconds in sorted(times.items()):
            told, rate = frozen[model][what], 1 / statistics.median(seconds)
            error, kind = told["tokens_per_s"] / rate - 1, what.split()[0]
            hit = told["low"] <= rate <= told["high"]
            errors[kind].append(abs(error))
            inside[kind] += hit
            widths.append(told["high"] / told["low"])
            print(
                f"| {model} | {what} | {told['tokens_per_s']:.1f} ({told['low']:.1f} to {told['high']:.1f}) "
                f"| {rate:.1f} | {len(seconds)} | {1 / max(seconds):.1f} to {1 / min(seconds):.1f} "
                f"| {error:+.1%} | {'yes' if hit else 'no'} |"
            )
    for kind, found in errors.items():
        print(f"{kind}: median error {statistics.median(found):.1%}, inside {inside[kind]} of {len(found)}")
    print(f"intervals {max(widths):.2f} wide")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("make", "freeze", "measure"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)), help="the first is measured most often")
    parser.add_argument("--kept", action="store_true", help="freeze: the machine's record, where there is one")
    parser.add_argument("--seconds", type=float, default=600, help="begin no round of measurements after so long")
    asked = parser.parse_args()
    # As a module: a worker cannot import what is only the script that runs.
    own = importlib.import_module(Path(__file__).stem)
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    if asked.step == "make":
        asked.directory.mkdir(exist_ok=True)
        with Worker(2, env=env) as worker:
            worker.call(own.make, asked.directory)
        return
    if asked.out is None:
        sys.exit("name a file for the forecasts")
    if asked.step == "freeze":
        contexts = tuple(map(int, asked.contexts.split(",")))
        frozen = freeze([*sorted(asked.directory.glob("*.gguf")), *asked.models], contexts, again=not asked.kept)
        asked.out.write_text(json.dumps({"contexts": contexts, "frozen": frozen}, indent=1))
        return
    notes = json.loads(asked.out.read_text())
    paths = [Path(one["path"]) for name, one in notes["frozen"].items() if name != "calibration"]
    with Worker(2, WAIT_POLICY, env=env) as worker:
        notes["measured"] = worker.call(own.measure, paths, tuple(notes["contexts"]), asked.seconds)
    asked.out.write_text(json.dumps(notes, indent=1))
    compare(notes["frozen"], notes["measured"])


if __name__ == "__main__":
    main()
