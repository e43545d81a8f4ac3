"""Whether a model's routed experts are where a class looks for them.

A class finds them by the names that llama.cpp gives them (`ffn_gate_exps`, ...). Under any other name they would be
stored as something else, and the file would carry the class's name all the same. So the model's own account (its
expert count, its routers) is held against what was found.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dfqs.gguf.layout import TensorInfo
from dfqs.model.classes import DeploymentClass
from dfqs.model.spec import Role, tensor_layer, tensor_role

_ALONE = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)(?:_exps)?\.\d+\.(?:weight|bias)")
_ROUTER = re.compile(r"blk\.\d+\.ffn_gate_inp\.weight")
_UNNAMED_ROLES = (Role.OTHER, Role.DENSE_FFN)


@dataclass(frozen=True, slots=True)
class ExpertProblem:
    """Something that is not where the class looks for it."""

    name: str | None
    """A tensor's, or a layer's."""
    message: str
    fix: str


_REPAIR = "Make stacked experts of them with `dfqs repair` (`dfqs merge` first, if the model is in shards)."
_CONVERT = "Convert the model again with llama.cpp's own converter, or name these tensors in a recipe."


def expert_problems(class_: DeploymentClass, experts: int, tensors: Sequence[TensorInfo]) -> Iterator[ExpertProblem]:
    """What of the experts a class does not find; nothing for a class that does not speak of them.

    Args:
        experts: how many the model says it has in a layer; 0 for none.
        tensors: all of the model's, of every shard.
    """
    if not names_experts(class_):
        return
    alone = [t.name for t in tensors if _ALONE.fullmatch(t.name)]
    if alone:
        yield ExpertProblem(
            alone[0],
            f"{len(alone):,} tensors hold one expert each, the form before experts were stacked: no class finds them",
            _REPAIR,
        )
        return
    found = _parts_by_layer(tensors)
    if not found and experts:
        yield ExpertProblem(
            None, f"says that it has {experts:,} experts a layer, and no tensor has the name of one", _CONVERT
        )
        return
    if not found and is_about_experts(class_):
        yield ExpertProblem(
            None,
            f"a dense model: {class_.name} is about routed experts, and without any it is another recipe's name",
            "Choose a recipe for dense models, for example Q4_K_M.",
        )
    yield from _layers_without(tensors, found)
    for tensor in tensors:
        stacked = len(tensor.shape) > 2 and tensor.shape[-1] == experts > 1
        if stacked and tensor_role(tensor.name) in _UNNAMED_ROLES and class_.type_of(tensor.name) is None:
            yield ExpertProblem(
                tensor.name,
                f"looks like {experts:,} experts, but has not the name of any: it would stay as it is",
                _CONVERT,
            )
        elif stacked and tensor_role(tensor.name) is Role.DENSE_FFN:
            yield ExpertProblem(tensor.name, f"looks like {experts:,} experts, but has a dense layer's name", _CONVERT)
        elif tensor_role(tensor.name) is Role.ROUTED_EXPERT and experts > 1 and len(tensor.shape) < 3:
            yield ExpertProblem(
                tensor.name, f"has the name of {experts:,} stacked experts, and is one matrix", _CONVERT
            )


def is_about_experts(class_: DeploymentClass) -> bool:
    """Whether a class treats routed experts otherwise than everything else: without any, it is none."""
    others = {type_ for role, type_ in class_.types.items() if role is not Role.ROUTED_EXPERT}
    return class_.expert_type is not None and class_.expert_type not in others


def names_experts(class_: DeploymentClass) -> bool:
    """Whether a class says anything of routed experts."""
    return class_.expert_type is not None or any(e.role is Role.ROUTED_EXPERT for e in class_.exceptions)


def _parts_by_layer(tensors: Sequence[TensorInfo]) -> dict[int, frozenset[str]]:
    """Layer -> the matrices of its experts (`ffn_up_exps.weight`)."""
    parts: dict[int, set[str]] = defaultdict(set)
    for tensor in tensors:
        layer = tensor_layer(tensor.name)
        if layer is not None and tensor_role(tensor.name) is Role.ROUTED_EXPERT:
            parts[layer].add(tensor.name.split(".", 2)[2])
    return {layer: frozenset(names) for layer, names in parts.items()}


def _layers_without(tensors: Sequence[TensorInfo], found: dict[int, frozenset[str]]) -> Iterator[ExpertProblem]:
    """Layers that choose between experts which are not there, or not all of whose matrices are."""
    if not found:
        return
    usual = Counter(found.values()).most_common(1)[0][0]
    for tensor in tensors:
        layer = tensor_layer(tensor.name)
        if layer is None or not _ROUTER.fullmatch(tensor.name):
            continue
        missing = usual - found.get(layer, frozenset())
        if missing:
            yield ExpertProblem(
                f"blk.{layer}",
                f"has a router, but not the experts it chooses from ({', '.join(sorted(missing))})",
                _CONVERT,
            )
