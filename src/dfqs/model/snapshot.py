"""The snapshot of a model: what it is in fifteen rows, the first nine as the specification's section 5 has them."""

from typing import TYPE_CHECKING

from dfqs.model.classes import TIERS
from dfqs.model.facts import ModelFacts
from dfqs.units import format_bytes, format_count

if TYPE_CHECKING:
    from dfqs.model.description import ModelDescription


def snapshot_rows(model: "ModelDescription | ModelFacts") -> list[tuple[str, str]]:
    """Property and value, in order. Values come from the file and are not escaped."""
    kind = "Mixture-of-Experts (MoE)" if model.is_moe else "dense (no experts)"
    experts = f"{model.experts} a layer, {model.experts_used} used"
    if model.experts_shared:
        experts += f", {model.experts_shared} shared"
    tier = next((tier for tier in TIERS if tier.name == model.tier), None)
    rows = [
        ("Model", model.name or "(the file gives no name)"),
        ("Architecture", f"{kind}, {model.architecture}"),
        ("Total Params", format_count(model.parameters)),
        ("Active Params", format_count(model.parameters_active)),
        ("Size", format_bytes(model.file_bytes)),
        ("Format", "GGUF (single-file)" if model.files == 1 else f"GGUF ({model.files} shards)"),
        ("Runtime", "llama.cpp"),
        ("DFQS Class", class_text(model.class_, model.closest_class, model.declared_class)),
        ("Deployment Tier", f"{tier.title} ({tier.name})" if tier is not None else "-"),
        ("Bits per weight", f"{model.bits_per_weight:.2f}" if model.bits_per_weight is not None else "-"),
        ("Layers", str(model.layers) if model.layers is not None else "-"),
        ("Experts", experts if model.is_moe else "none"),
        ("Context", f"{model.context_tokens:,} tokens" if model.context_tokens else "-"),
        ("Vocabulary", f"{model.vocabulary:,}" if model.vocabulary else "-"),
        ("Chat template", "yes" if model.chat_template else "no"),
    ]
    if model.declared_class is not None and model.declared_class != model.class_:
        # A recipe of its maker's, a class whose rows fell back, or a lie: `dfqs verify` tells which.
        rows.insert(8, ("Declared Class", model.declared_class))
    if model.file_type is not None:
        rows.append(("File type", model.file_type))
    return rows


def class_text(class_: str | None, closest_class: str | None, declared: str | None = None) -> str:
    """The class in a word or two.

    Args:
        class_: that every tensor agrees with.
        closest_class: that most do.
        declared: what the file says. A dense model, a recipe of its maker's and rows that fell back have a class that
            the tensors alone do not show; `dfqs verify` tells whether it is true.
    """
    if class_ is not None:
        return class_
    closest = "" if closest_class is None else f"closest: {closest_class}"
    if declared is not None:
        return f"{declared} (declared{f', {closest}' if closest and closest_class != declared else ''})"
    return f"none ({closest})" if closest else "none"
