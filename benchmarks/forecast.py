"""Forecasts of speed frozen before anything is measured, then held against what is.

Run: python benchmarks/forecast.py make DIR                 (random models of geometries and types of their own)
     python benchmarks/forecast.py freeze DIR OUT.json [MODEL...]   (calibrates the machine, writes forecasts)
     python benchmarks/forecast.py measure DIR OUT.json     (measures the same models, prints the table)

The machine is calibrated with random models of other geometries (`dfqs.planning.probe_models`); none of the models here
is among them. Rates are of llama.cpp's defaults (flash attention auto, ubatch 512), threads waiting as when calibrated;
the best of the repeats, as the calibration is.
"""

import argparse
import importlib
import json
import statistics
import sys
from pathlib import Path
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

SHALLOW, DEEP, TOKENS, REPEATS = 64, 1024, 14, 3
Q8_0, Q4_K, MXFP4, IQ1_S, IQ2_XXS = (getattr(GGMLType, name) for name in ("Q8_0", "Q4_K", "MXFP4", "IQ1_S", "IQ2_XXS"))
LATENT = {"rank": 512, "rope": 64}
MODELS = {
    "qwen3moe-Q8_0": RandomModel("qwen3moe", Q8_0, Q8_0, 16, 1024, 640, 8, 2, 128, 20, 5),
    "qwen3moe-IQ1_S": RandomModel("qwen3moe", IQ1_S, Q8_0, 8, 2560, 1280, 20, 4, 128, 32, 2),
    "gpt-oss-MXFP4": RandomModel("gpt-oss", MXFP4, Q8_0, 10, 1152, 1152, 18, 3, 64, 24, 4, more={"window": 128}),
    "gpt-oss-Q8_0": RandomModel("gpt-oss", Q8_0, Q8_0, 12, 960, 960, 15, 5, 64, 12, 4, more={"window": 128}),
    "llama4-Q4_K": RandomModel("llama4", Q4_K, Q4_K, 10, 1536, 2048, 12, 4, 128, 8, 1),
    "deepseek2-IQ2_XXS": RandomModel(
        "deepseek2", IQ2_XXS, Q8_0, 8, 1280, 768, 10, 1, 128, 24, 4, more={"q_rank": 512, **LATENT}
    ),
    "deepseek2-Q4_K": RandomModel(
        "deepseek2", Q4_K, Q8_0, 7, 2048, 1024, 16, 1, 128, 16, 4, more={"q_rank": 768, **LATENT}
    ),
    "llama-IQ2_XXS": RandomModel("llama", IQ2_XXS, IQ2_XXS, 6, 2560, 6912, 20, 4, 128),
}


def make(worker: WorkerContext, directory: Path) -> None:
    """In the worker."""
    kernels = Kernels(worker.library)
    for name, model in MODELS.items():
        path = directory / f"{name}.gguf"
        if not path.exists():
            model.write(path, kernels)


def measure(worker: WorkerContext, path: Path) -> dict[str, list[float]]:
    """In the worker: tokens a second of each repeat."""
    rates: dict[str, list[float]] = {}
    with (
        Model(worker.library, path) as model,
        Context(model, DEEP + (REPEATS + 1) * TOKENS, n_batch=2048, threads=worker.threads) as context,
    ):
        time_prefill(context, 32)
        for tokens in (SHALLOW, DEEP):
            repeats = REPEATS if tokens == SHALLOW else 1
            rates[f"prefill {tokens}"] = [tokens / time_prefill(context, tokens) for _ in range(repeats)]
            places = range(tokens, tokens + REPEATS * TOKENS, TOKENS)
            seconds = [statistics.median(time_decode(context, place, TOKENS)) for place in places]
            rates[f"decode {tokens}"] = [1 / one for one in seconds]
    return rates


def freeze(paths: list[Path]) -> dict[str, Any]:
    models = [open_model(path) for path in paths]
    wanted = {
        key
        for model in models
        for key in wanted_types(count_work(model.tensors, model.spec.experts, model.spec.experts_used))
    }
    calibration = calibrate(wanted, 2, again=True)
    found: dict[str, Any] = {"calibration": calibration.model_dump(mode="json")}
    for path, model in zip(paths, models, strict=True):
        document = forecast(model, ForecastRequest((SHALLOW, DEEP), 2, curve=False, calibration=calibration))
        found[path.stem] = {"path": str(path)} | {
            f"{what} {one.context_tokens}": getattr(one, what).model_dump()
            for one in document.contexts
            for what in ("decode", "prefill")
        }
    return found


def compare(frozen: dict[str, Any], measured: dict[str, Any]) -> None:
    print("| model | what | forecast (95 %) | measured | error | inside |\n|---|---|---|---|---|---|")
    errors: dict[str, list[float]] = {}
    inside: dict[str, int] = {}
    for model, rates in measured.items():
        for what, values in rates.items():
            told, rate = frozen[model][what], max(values)
            error = told["tokens_per_s"] / rate - 1
            hit = told["low"] <= rate <= told["high"]
            kind = what.split()[0]
            errors.setdefault(kind, []).append(abs(error))
            inside[kind] = inside.get(kind, 0) + hit
            print(
                f"| {model} | {what} | {told['tokens_per_s']:.1f} ({told['low']:.1f} to {told['high']:.1f}) "
                f"| {rate:.1f} ({min(values):.1f} to {max(values):.1f}) | {error:+.1%} | {'yes' if hit else 'no'} |"
            )
    for kind, values in errors.items():
        print(f"{kind}: median error {statistics.median(values):.1%}, inside {inside[kind]} of {len(values)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("make", "freeze", "measure"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("models", type=Path, nargs="*")
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
        frozen = freeze([*sorted(asked.directory.glob("*.gguf")), *asked.models])
        asked.out.write_text(json.dumps({"frozen": frozen}, indent=1))
        return
    notes = json.loads(asked.out.read_text())
    notes["measured"] = {}
    for name, told in notes["frozen"].items():
        if name != "calibration":
            with Worker(2, WAIT_POLICY, env=env) as worker:
                notes["measured"][name] = worker.call(own.measure, Path(told["path"]))
    asked.out.write_text(json.dumps(notes, indent=1))
    compare(notes["frozen"], notes["measured"])


if __name__ == "__main__":
    main()
