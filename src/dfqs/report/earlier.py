"""Reports as earlier versions stored them, brought into today's form under the same name. Pure.

Before 0.1.0 had its record of a model, a report told of it in seven keys; of the machine's load in another number; and
of each length in fewer columns. What they did not tell is null now, and nothing is made up for it; what they told and
has no place any more is kept among the notices.
"""

from typing import Any

EARLIER_MODEL_KEYS = (
    *("architecture", "parameters", "parameters_active", "bits_per_weight", "deployment_class", "tier"),
    "description",
)
CONTEXT_COLUMNS = ("truncated", "empty", "unusable")


def upgrade_report(value: Any) -> Any:
    """A report's plain values; one of today's, and what is no report, come out as they are."""
    if not isinstance(value, dict):
        return value
    told: list[str] = []
    upgraded = {**value, **_model(value.get("artifact"), told), **_details(value.get("details"), told)}
    if told and isinstance(value.get("notices"), list):
        upgraded["notices"] = [*value["notices"], *told]
    return upgraded


def _model(artifact: Any, told: list[str]) -> dict[str, Any]:
    if not isinstance(artifact, dict) or "model" in artifact or "architecture" not in artifact:
        return {}
    known = [f"{key} {artifact[key]}" for key in EARLIER_MODEL_KEYS if artifact.get(key) is not None]
    if known:
        told.append(f"an earlier version told of the model: {', '.join(known)}")
    return {"artifact": {**{k: v for k, v in artifact.items() if k not in EARLIER_MODEL_KEYS}, "model": None}}


def _details(details: Any, told: list[str]) -> dict[str, Any]:
    if not isinstance(details, dict):
        return {}
    changed: dict[str, Any] = {}
    context, speed = details.get("context"), details.get("speed")
    if isinstance(context, dict) and not any(column in context for column in CONTEXT_COLUMNS):
        changed["context"] = {**context, **dict.fromkeys(CONTEXT_COLUMNS)}
    if isinstance(speed, dict) and "load_average_before" in speed and "other_cpus" not in speed:
        told.append(f"load average before speed was measured: {speed['load_average_before']}")
        changed["speed"] = {**{k: v for k, v in speed.items() if k != "load_average_before"}, "other_cpus": None}
    return {"details": {**details, **changed}} if changed else {}
