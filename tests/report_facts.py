"""Everything that is known of a model of which every clause likes everything, for tests to change."""

import json
from pathlib import Path

from dfqs.evaluate.items import frozen_hashes
from dfqs.model.hashes import ModelHashes
from dfqs.model.origin import ModelOrigin
from dfqs.planning.document import PlanDocument
from dfqs.records import parse_record
from dfqs.report import Report
from dfqs.report.conform_facts import Facts
from dfqs.routing.coherence import RouteDiff
from dfqs.routing.determinism import RouteCheck
from report_documents import MODEL, SCORE, report_document
from report_pages import GOLDEN

CONTENT = "d" * 64
ORIGIN = ModelOrigin(
    license="apache-2.0",
    license_name=None,
    license_link=None,
    source="https://huggingface.co/base/model",
    base_models=("https://huggingface.co/its/parent",),
    author=None,
    quantized_by=None,
    languages=("en",),
)


def hashes(content: str = CONTENT, file: str = "c" * 64) -> ModelHashes:
    return ModelHashes(file_sha256=file, content_sha256=content, file_bytes=1000, tensors=())


def good_report() -> Report:
    """A report of which every clause likes everything."""
    document = report_document()
    document["artifact"]["content_sha256"] = CONTENT
    score = SCORE.model_copy(update={"prompt_sets": frozen_hashes()})
    document["conditions"]["score"] = score.model_dump(mode="json")
    document["conditions"]["score_fingerprint"] = score.fingerprint
    context = document["details"]["context"]
    context.update(lengths_tokens=[1024, 2048], n=[2, 2], right=[2, 2], truncated=[0, 0], empty=[0, 0], unusable=[0, 0])
    context.update(intervals_95=[None, None], not_measured={}, grid=[], kinds=[], tokens=None)
    document["metrics"].update(context_stability_curve=[1.0, 1.0], failure_boundary_tokens=131072)
    boundary = document["details"]["boundary"]
    boundary.update(cause="none", censored=True, reason="nothing failed")
    boundary["lengths"] = [{"length_tokens": n, "n": 2, "right": 2, "failure": None} for n in (1024, 131072)]
    document["conditions"]["speed"]["score_fingerprint"] = score.fingerprint
    report = parse_record(json.dumps(document), Report)
    assert report.conditions.speed is not None
    told = report.conditions.model_copy(update={"speed_fingerprint": report.conditions.speed.fingerprint})
    return report.model_copy(update={"conditions": told})


def good_plan() -> PlanDocument:
    document = json.loads((GOLDEN / "plan-1.json").read_text())
    for row in document["contexts"]:
        row["total_bytes"] = 10**9
    document["loaders"] = [{**document["loaders"][0], "asked": True, "verdict": "PASSED", "loader": "llama.cpp"}]
    document["envelope"] = [
        {
            "component": c,
            "level": level,
            "given_bytes": 10**11,
            "needed_bytes": 10**9,
            "holds": True,
            "needed_for": "it",
        }
        for c in ("RAM", "GPU VRAM", "storage")
        for level in ("minimum", "recommended")
    ]
    document["split"] = {**document["split"], "fits": True} if document["split"] else None
    return parse_record(json.dumps(document), PlanDocument)


def good_check() -> RouteCheck:
    document = json.loads((GOLDEN / "route-check-1.json").read_text())
    row = {**document["load"]["requests"][0], "compared_tokens": 9, "same_answer": True, "logits_identical": True}
    row.update(same_set_share=1.0, routing_identical=True)
    document["load"].update(requests=[row], holds=True)
    document.update(holds=True, matrix_tokens=256)
    condition = {**document["matrix"][0], "refused": None, "logits_identical": True, "same_set_share": 1.0}
    document["matrix"] = [{**condition, "condition": name} for name in ("repeat", "process restart", "ubatch 8")]
    return parse_record(json.dumps(document), RouteCheck)


def good_diff() -> RouteDiff:
    document = json.loads((GOLDEN / "route-diff-1.json").read_text())
    document["tokens"] = 100
    document["overall"].update(decisions=1000, jaccard=0.9, chance_jaccard=0.1)
    return parse_record(json.dumps(document), RouteDiff)


def facts() -> Facts:
    described = MODEL.model_copy(update={"context_tokens": 1 << 20, "file_bytes": 10**9})
    return Facts(
        Path("m.gguf"), 1, (), described, hashes(), Path("m.gguf.manifest.json"), (), good_report(), Path("results"),
        good_plan(), "plan.json", good_check(), "check.json", good_diff(), "diff.json", (), origin=ORIGIN,
        paths=(Path("m.gguf"),),
    )  # fmt: skip
