"""A whole report and a whole stored run, as plain JSON values, for tests to change."""

import json
from typing import Any

from dfqs.evaluate.conditions import Numerics, ScoreConditions
from dfqs.evaluate.scores import Completion, ScoredItem, Verdict
from dfqs.evaluate.store import RunRecord, Subject
from dfqs.hardware import Machine
from dfqs.model.description import ModelDescription, RoleDescription
from dfqs.report.record import _report
from drawn_once import draw_once

draw_once()
MACHINE = Machine(
    cpu_model="a processor",
    architecture="x86_64",
    logical_cpus=2,
    physical_cores=2,
    allowed_cpus=2,
    cpu_quota=None,
    cpu_flags=("avx2",),
    memory_bytes=16 << 30,
    memory_limit_bytes=8 << 30,
    swap_bytes=0,
    system="a system",
    kernel="6.1",
    python="3.11.2",
)
SCORE = ScoreConditions(
    suite="quick",
    prompt_sets={"reasoning": "a" * 64},
    items={"reasoning": 2, "code": 2, "context": 2},
    context_lengths=(1024, 2048),
    max_tokens={"reasoning": 512},
    thinking="off",
    template_sha256="b" * 64,
    numerics=Numerics(),
    runtime="llama.cpp 1",
    code_python="3.11.2",
)
MODEL = ModelDescription(
    name="a model",
    description="a description",
    license=None,
    architecture="llama",
    files=1,
    file_bytes=1000,
    parameters=10**9,
    parameters_active=10**8,
    tensor_bytes=900,
    bytes_per_token=90,
    bits_per_weight=4.5,
    main_bits_per_weight=4.5,
    file_type="Q4_K - Medium",
    layers=2,
    experts=4,
    experts_used=2,
    experts_shared=0,
    context_tokens=4096,
    embedding_length=64,
    vocabulary=1000,
    chat_template=True,
    class_="Q4_K-XL",
    closest_class="Q4_K-XL",
    class_deviations=(),
    declared_class=None,
    tier="Q4-Q6",
    roles={"output": RoleDescription(tensors=1, parameters=8, bytes=8, bits_per_weight=8.0, types={"Q8_0": 8})},
)
RECORD = RunRecord(
    subject=Subject(
        kind="file",
        name="a model",
        location="/no/such/model.gguf",
        file_bytes=1000,
        file_sha256="c" * 64,
        model=MODEL,
    ),
    conditions=SCORE,
    threads=2,
    curve_lengths=(1024, 2048),
    decode_repeats=2,
)


def run_documents() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`run.json` and the lines of `results.jsonl` of a run that measured everything."""
    machine = MACHINE.model_dump(mode="json")
    fields = {"cpu_model", "cpu_flags", "allowed_cpus", "cpu_quota", "memory_bytes", "memory_limit_bytes"}
    here = {name: machine[name] for name in fields}
    repeat = {
        "prefill_tokens": 512,
        "prefill_s": 1.5,
        "decode_s": [0.1, 0.2],
        "depth_tokens": 2048,
        "depth_decode_s": [0.2],
        "threads": 2,
        "omp_wait_policy": "default",
        "other_cpus": 0.1,
        "machine": here,
    }
    count = {"right": 2, "total": 2}
    looked = [
        {"length_tokens": 1024, "count": count, "failure": None, "answered": True, "unanswered": 0},
        {"length_tokens": 2048, "count": {"right": 0, "total": 0}, "failure": "no memory"},
    ]
    boundary = {"tokens": 2048, "censored": False, "cause": "runtime", "reason": "no memory", "lengths": looked}
    lines = [
        ("notes", "machine", machine),
        ("notes", "target", {"notices": ["a notice"], "context_tokens": 4096}),
        ("notes", "code_unavailable", {"reason": None}),
        ("notes", "bandwidth", {"bytes_per_s": 1e10, "threads": 2, "machine": here}),
        ("reasoning", "r1", _item("reasoning", "r1", Verdict.RIGHT, {"family": "arithmetic", "level": 1})),
        ("reasoning", "r2", _item("reasoning", "r2", Verdict.WRONG, {"family": "calendar", "level": 1})),
        ("code", "c1", _item("code", "c1", Verdict.TRUNCATED, {"level": 1})),
        ("code", "c2", _item("code", "c2", Verdict.UNUSABLE, {"level": 2})),
        ("context", "1024/plan", {"notes": [0, 7], "depths": [0.0, 1.0]}),
        ("context", "1024/0", _item("context", "1024/0", Verdict.RIGHT, {"length_tokens": 1024, "depth": 0.0})),
        ("context", "1024/7", _item("context", "1024/7", Verdict.EMPTY, {"length_tokens": 1024, "depth": 1.0})),
        ("context", "2048/failure", {"reason": "no memory"}),
        ("boundary", "boundary", {**boundary, "confidence": 0.99}),
        ("speed", "repeat-1", repeat),
        ("speed", "repeat-2", {**repeat, "prefill_s": 2.5}),
    ]
    plain = [{"stage": stage, "key": key, "data": json.loads(json.dumps(data))} for stage, key, data in lines]
    return RECORD.model_dump(mode="json"), plain


def report_document() -> dict[str, Any]:
    """A report in which every detail is there."""
    _, lines = run_documents()
    stages: dict[str, dict[str, Any]] = {}
    for line in lines:
        stages.setdefault(line["stage"], {})[line["key"]] = line["data"]
    return _report(RECORD, stages).model_dump(mode="json")


def _item(stage: str, key: str, verdict: Verdict, place: dict[str, Any]) -> dict[str, Any]:
    completion = Completion(text="Answer: 1", finish_reason="stop", prompt_tokens=5, generated_tokens=3)
    item = ScoredItem(stage=stage, item=key, verdict=verdict, completion=completion, place=place)
    return item.model_dump(mode="json")
