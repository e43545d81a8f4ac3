"""The snapshot of a model: what it is in fifteen rows, the first nine as the specification's section 5 has them."""

from dfqs.model.classes import ClassMatch, model_tier
from dfqs.model.spec import ModelSpec
from dfqs.units import format_bytes, format_count


def snapshot_rows(spec: ModelSpec, match: ClassMatch | None, file_bytes: int, files: int) -> list[tuple[str, str]]:
    """Property and value, in order. Values come from the file and are not escaped."""
    kind = "Mixture-of-Experts (MoE)" if spec.is_moe else "dense (no experts)"
    experts = f"{spec.experts} a layer, {spec.experts_used} used"
    if spec.experts_shared:
        experts += f", {spec.experts_shared} shared"
    bits, tier = spec.bits_per_weight, model_tier(spec)
    rows = [
        ("Model", spec.name or "(the file gives no name)"),
        ("Architecture", f"{kind}, {spec.architecture}"),
        ("Total Params", format_count(spec.parameters)),
        ("Active Params", format_count(spec.parameters_active)),
        ("Size", format_bytes(file_bytes)),
        ("Format", "GGUF (single-file)" if files == 1 else f"GGUF ({files} shards)"),
        ("Runtime", "llama.cpp"),
        ("DFQS Class", class_text(match, spec.declared_class)),
        ("Deployment Tier", f"{tier.title} ({tier.name})" if tier is not None else "-"),
        ("Bits per weight", f"{bits:.2f}" if bits is not None else "-"),
        ("Layers", str(spec.layers) if spec.layers is not None else "-"),
        ("Experts", experts if spec.is_moe else "none"),
        ("Context", f"{spec.context_tokens:,} tokens" if spec.context_tokens else "-"),
        ("Vocabulary", f"{spec.vocabulary:,}" if spec.vocabulary else "-"),
        ("Chat template", "yes" if spec.chat_template else "no"),
    ]
    if spec.declared_class is not None and (match is None or not match.exact or match.name != spec.declared_class):
        # A recipe of its maker's, a class whose rows fell back, or a lie: `dfqs verify` tells which.
        rows.insert(8, ("Declared Class", spec.declared_class))
    if spec.file_type is not None:
        rows.append(("File type", spec.file_type))
    return rows


def class_text(match: ClassMatch | None, declared: str | None = None) -> str:
    """The class in a word or two.

    Args:
        declared: what the file says. A dense model, a recipe of its maker's and rows that fell back have a class that
            the tensors alone do not show; `dfqs verify` tells whether it is true.
    """
    if match is not None and match.exact:
        return match.name
    closest = "" if match is None else f"closest: {match.name}"
    if declared is not None:
        return f"{declared} (declared{', ' + closest if match is not None and match.name != declared else ''})"
    return f"none ({closest})" if closest else "none"
