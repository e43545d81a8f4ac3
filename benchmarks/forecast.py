"""Forecasts of speed frozen before anything is measured, then held against what is.

Run: python benchmarks/forecast.py make DIR                 (random models of geometries and types of their own)
     python benchmarks/forecast.py freeze DIR OUT.json [MODEL...]   (calibrates the machine, writes forecasts)
     python benchmarks/forecast.py measure DIR OUT.json     (measures the same models, prints the table)

The machine is calibrated with random models of other geometries (`dfqs.planning.probe_models`); none of the models here
is among them. Rates are of llama.cpp's defaults (flash attention auto, ubatch 512), threads waiting as when calibrated.
All models are measured once before any is measured again, and the best of the rounds counts, as in the calibration:
a machine that others use is slow for seconds on end. The calibration's small model is measured beside each of them, and
its rate, of the best that it had when the machine was calibrated, stands beside theirs.
"""

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dfqs.gguf import GGMLType
from dfqs.model.files import open_model
from dfqs.planning.calibration import WAIT_POLICY, calibrate, pulse_seconds
from dfqs.planning.forecast import ForecastRequest, forecast
from dfqs.planning.speed import wanted_types
from dfqs.planning.work import count_work
from dfqs.quantize.kernels import Kernels
from dfqs.runtime import Worker
from dfqs.runtime.context import Context, Model
from dfqs.runtime.timing import time_decode, time_prefill
from dfqs.runtime.worker_context import WorkerContext
from random_models import RandomModel

SHALLOW, DEEP, TOKENS, REPEATS = 64, 1024, 14, 2
Q8_0, Q4_K, MXFP4, IQ1_S, IQ2_XXS = (getattr(GGMLType, name) for name in ("Q8_0", "Q4_K", "MXFP4", "IQ1_S", "IQ2_XXS"))
LATENT = {"rank": 512, "rope": 64}
MODELS = {
    "qwen3moe-Q8_0": RandomModel("qwen3moe", Q8_0, Q8_0, 10, 1408, 768, 11, 1, 128, 16, 4),
    "qwen3moe-IQ1_S": RandomModel("qwen3moe", IQ1_S, Q8_0, 10, 2048, 1280, 16, 2, 128, 26, 4),
    "gpt-oss-MXFP4": RandomModel("gpt-oss", MXFP4, Q8_0, 9, 1216, 1216, 19, 1, 64, 18, 4, more={"window": 128}),
    "gpt-oss-Q8_0": RandomModel("gpt-oss", Q8_0, Q8_0, 8, 1152, 1152, 18, 2, 64, 16, 4, more={"window": 128}),
    "llama4-Q4_K": RandomModel("llama4", Q4_K, Q4_K, 7, 2048, 2048, 16, 4, 128, 8, 1),
    "deepseek2-IQ2_XXS": RandomModel(
        "deepseek2", IQ2_XXS, Q8_0, 8, 1280, 1280, 10, 1, 128, 22, 4, more={"q_rank": 512, **LATENT}
    ),
    "deepseek2-Q4_K": RandomModel(
        "deepseek2", Q4_K, Q8_0, 8, 2048, 1024, 16, 1, 128, 14, 4, more={"q_rank": 768, **LATENT}
    ),
    "llama-IQ2_XXS": RandomModel("llama", IQ2_XXS, IQ2_XXS, 9, 1792, 5120, 14, 7, 128),
}


def make(worker: WorkerContext, directory: Path) -> None:
    """In the worker."""
    kernels = Kernels(worker.library)
    for name, model in MODELS.items():
        path = directory / f"{name}.gguf"
        if not path.exists():
            model.write(path, kernels)


def measure(worker: WorkerContext, path: Path) -> dict[str, float]:
    """In the worker: tokens a second."""
    rates: dict[str, float] = {}
    with (
        Model(worker.library, path) as model,
        Context(model, DEEP + 2 * TOKENS, n_batch=2048, threads=worker.threads) as context,
    ):
        time_prefill(context, 32)
        for tokens in (SHALLOW, DEEP):
            repeats = REPEATS if tokens == SHALLOW else 1
            rates[f"prefill {tokens}"] = max(tokens / time_prefill(context, tokens) for _ in range(repeats))
            rates[f"decode {tokens}"] = 1 / statistics.median(time_decode(context, tokens, TOKENS))
    return rates


def measure_all(notes: dict[str, Any], rounds: int, ends: float, env: dict[str, str]) -> None:
    """As many rounds as there is time for, each model beside the calibration's small one."""
    own = importlib.import_module(Path(__file__).stem)
    names = [name for name in notes["frozen"] if name != "calibration"]
    for _ in range(rounds):
        found: dict[str, Any] = {}
        for name in names:
            if time.monotonic() > ends:
                return
            with Worker(2, WAIT_POLICY, env=env) as worker, tempfile.TemporaryDirectory() as directory:
                seconds = pulse_seconds(worker, Path(directory) / "pulse.gguf")
                rates = worker.call(own.measure, Path(notes["frozen"][name]["path"]))
            found[name] = {"pulse": notes["frozen"]["calibration"]["pulse_s"] / seconds, **rates}
        notes.setdefault("rounds", []).append(found)


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


def compare(frozen: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    columns = ["model", "what", "forecast (95 %)", "measured", "error", "inside", "small model, of its calibration"]
    print(f"| {' | '.join(columns)} |\n|---|---|---|---|---|---|---|")
    errors: dict[str, list[float]] = {}
    inside: dict[str, int] = {}
    for model in frozen:
        if model == "calibration":
            continue
        for what in (f"{kind} {tokens}" for tokens in (SHALLOW, DEEP) for kind in ("decode", "prefill")):
            values = [found[model][what] for found in rounds]
            pulses = [found[model]["pulse"] for found in rounds]
            told, rate = frozen[model][what], max(values)
            error = told["tokens_per_s"] / rate - 1
            hit = told["low"] <= rate <= told["high"]
            kind = what.split()[0]
            errors.setdefault(kind, []).append(abs(error))
            inside[kind] = inside.get(kind, 0) + hit
            print(
                f"| {model} | {what} | {told['tokens_per_s']:.1f} ({told['low']:.1f} to {told['high']:.1f}) "
                f"| {', '.join(f'{value:.1f}' for value in values)} | {error:+.1%} | {'yes' if hit else 'no'} "
                f"| {', '.join(f'{pulse:.2f}' for pulse in pulses)} |"
            )
    for kind, found in errors.items():
        print(f"{kind}: median error {statistics.median(found):.1%}, inside {inside[kind]} of {len(found)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("make", "freeze", "measure"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no measurement after so long")
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
    measure_all(notes, asked.rounds, time.monotonic() + asked.seconds, env)
    asked.out.write_text(json.dumps(notes, indent=1))
    compare(notes["frozen"], notes.get("rounds", []))


if __name__ == "__main__":
    main()
