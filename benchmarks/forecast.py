"""Forecasts of speed frozen before anything is measured, then held against what is.

Run: python benchmarks/forecast.py make DIR                 (random models of geometries and types of their own)
     python benchmarks/forecast.py freeze DIR OUT.json [MODEL...]   (calibrates the machine, writes forecasts)
     python benchmarks/forecast.py measure DIR OUT.json     (measures the same models, prints the table)

The machine is calibrated with random models of other geometries (`dfqs.planning.probe_models`); none of the models here
is among them. Rates are of llama.cpp's defaults (flash attention auto, ubatch 512), threads waiting as when calibrated;
the best of two repeats, as the calibration is.
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
from dfqs.planning.probe_models import ProbeShape, write_probe
from dfqs.planning.speed import wanted_types
from dfqs.planning.work import count_work
from dfqs.quantize.kernels import Kernels
from dfqs.runtime import Worker
from dfqs.runtime.context import Context, Model
from dfqs.runtime.timing import time_decode, time_prefill
from dfqs.runtime.worker_context import WorkerContext

SHALLOW, DEEP, TOKENS, REPEATS = 64, 1024, 24, 2
MODELS = {
    "qwen3moe-Q8_0": (ProbeShape("qwen3moe", 14, 1536, 768, 12, 4, 128, 16, 4, 2048), GGMLType.Q8_0),
    "qwen3moe-Q4_K": (ProbeShape("qwen3moe", 12, 2048, 768, 16, 4, 128, 24, 6, 2048), GGMLType.Q4_K),
    "qwen3moe-IQ1_S": (ProbeShape("qwen3moe", 12, 2048, 1024, 16, 4, 128, 40, 4, 2048), GGMLType.IQ1_S),
    "llama-Q8_0": (ProbeShape("llama", 14, 1536, 4096, 12, 4, 128, vocabulary=2048), GGMLType.Q8_0),
    "llama-Q4_K": (ProbeShape("llama", 12, 2048, 5632, 16, 4, 128, vocabulary=2048), GGMLType.Q4_K),
}


def make(worker: WorkerContext, directory: Path) -> None:
    """In the worker."""
    kernels = Kernels(worker.library)
    for name, (shape, type_) in MODELS.items():
        path = directory / f"{name}.gguf"
        if not path.exists():
            write_probe(path, kernels, shape, type_, GGMLType.Q8_0 if "IQ1" in name else None)


def measure(worker: WorkerContext, path: Path) -> dict[str, list[float]]:
    """In the worker: tokens a second of each repeat."""
    rates: dict[str, list[float]] = {"decode 64": [], f"decode {DEEP}": [], f"prefill {DEEP}": []}
    with Model(worker.library, path) as model, Context(model, DEEP + TOKENS + 8, n_batch=2048) as context:
        time_prefill(context, 32)
        for _ in range(REPEATS):
            time_prefill(context, SHALLOW)
            rates["decode 64"].append(1 / statistics.median(time_decode(context, SHALLOW, TOKENS)))
            rates[f"prefill {DEEP}"].append(DEEP / time_prefill(context, DEEP))
            rates[f"decode {DEEP}"].append(1 / statistics.median(time_decode(context, DEEP, TOKENS)))
    return rates


def freeze(paths: list[Path]) -> dict[str, Any]:
    models = [open_model(path) for path in paths]
    wanted = {
        key
        for model in models
        for key in wanted_types(count_work(model.tensors, model.spec.experts, model.spec.experts_used))
    }
    calibration = calibrate(wanted, 2)
    found: dict[str, Any] = {"calibration": calibration.model_dump(mode="json")}
    for path, model in zip(paths, models, strict=True):
        document = forecast(model, ForecastRequest((SHALLOW, DEEP), 2, curve=False, calibration=calibration))
        shallow, deep = document.contexts
        found[path.stem] = {
            "path": str(path),
            "decode 64": shallow.decode.model_dump(),
            f"decode {DEEP}": deep.decode.model_dump(),
            f"prefill {DEEP}": deep.prefill.model_dump(),
            "parts": [deep.weights_s, deep.graph_s, deep.attention_s],
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
