"""What is looked at before a model is quantized, and the reasons not to."""

from collections.abc import Sequence
from pathlib import Path

from dfqs.errors import FormatError, UsageError, printable
from dfqs.model.classes import DeploymentClass
from dfqs.model.files import ModelFiles
from dfqs.model.spec import Role, tensor_layer
from dfqs.quantize.experts import expert_problems
from dfqs.quantize.imatrix_file import ALL_ZERO, ImatrixFile
from dfqs.quantize.metadata import ImatrixOrigin
from dfqs.quantize.plan import PlannedTensor, QuantizationPlan
from dfqs.storage.hashing import hash_file
from dfqs.units import format_bytes


def check_experts(source: ModelFiles, class_: DeploymentClass) -> None:
    """Refuse to put a class's name on a model whose experts it does not find.

    Raises:
        UsageError: says what was not found, and what to do.
    """
    for problem in expert_problems(class_, source.spec.experts, source.tensors):
        where = f"'{printable(problem.name)}': " if problem.name else ""
        raise UsageError(f"{source.header.source_name}: {where}{problem.message}. {problem.fix}")


def gain_problem(plan: QuantizationPlan) -> str | None:
    """Why a plan is not worth a file: it changes nothing, or makes the model larger; None when it is."""
    before = sum(tensor.source.length for tensor in plan.tensors)
    if not plan.parameters_to_quantize:
        return f"nothing would change: every tensor is what {plan.class_.name} would make of it"
    if plan.bytes >= before:
        return (
            f"{plan.class_.name} would make {format_bytes(plan.bytes)} of {format_bytes(before)}: nothing is gained, "
            "and detail is lost"
        )
    return None


def check_gain(plan: QuantizationPlan) -> None:
    """Refuse a file that is the input under another name, or larger than it.

    Raises:
        UsageError: it is.
    """
    problem = gain_problem(plan)
    if problem is not None:
        raise UsageError(f"{problem}; choose a smaller class, or add --force")


def check_input_types(plan: QuantizationPlan, allow_requantize: bool) -> None:
    """Refuse to make a model from what has already lost its detail.

    Raises:
        UsageError: tensors below Q8_0 would be converted, and `allow_requantize` is false.
    """
    low = plan.requantized
    if low and not allow_requantize:
        types = ", ".join(sorted({t.source.type.name for t in low}))
        raise UsageError(
            f"{len(low)} tensors are already quantized ({types}; the first is '{low[0].name}'), and doing it again "
            "costs more quality than the class says; start from F16, BF16 or Q8_0, or add --allow-requantize"
        )


def check_imatrix(plan: QuantizationPlan, source: ModelFiles, path: Path | None) -> ImatrixOrigin | None:
    """Make sure that the importance matrix is this model's, and is there where it is needed.

    Raises:
        UsageError: types that need one are asked for, and there is none for some tensor; or nothing in it is of this
            model.
        FormatError: the file is damaged, or made from a model of other shapes.
    """
    needing = plan.needing_importance
    if path is None:
        if needing:
            raise UsageError(
                f"{needing[0].type.name} needs an importance matrix ({len(needing)} tensors, the first is "
                f"'{needing[0].name}'); make one with `dfqs imatrix`, and give it with --imatrix"
            )
        return None
    tensors = {tensor.name: tensor for tensor in source.tensors}
    with ImatrixFile(path) as file:
        known = set(file.names)
        if not known & set(tensors):
            raise UsageError(f"{path} is of another model: none of its {len(known)} weights is in this one")
        for name in sorted(known & set(tensors)):
            file.groups(name, tensors[name].shape)
        missing = [t for t in needing if t.name not in known]
        if missing:
            raise UsageError(
                f"{path} says nothing about {len(missing)} tensors that become {_types(missing)}, the first is "
                f"'{missing[0].name}'; measure it on this model with `dfqs imatrix`"
            )
        unseen, silent = _find_silence(plan, file, known)
        empty = [t for t in needing if t.name in silent]
        if empty:
            raise UsageError(
                f"{path} has nothing but zeroes for {len(empty)} tensors that become {_types(empty)}, the first is "
                f"'{empty[0].name}'; measure it again with `dfqs imatrix`"
            )
        datasets = file.datasets
        return ImatrixOrigin(
            path=path,
            sha256=hash_file(path),
            dataset=datasets[0] if datasets else None,
            entries=len(known),
            chunks=file.chunks,
            unseen_experts=unseen,
            silent_weights=len(silent),
        )


def _find_silence(plan: QuantizationPlan, file: ImatrixFile, known: set[str]) -> tuple[int, set[str]]:
    """(layer, expert) pairs without importance, counted, and tensors of which no part has any.

    Raises:
        FormatError: no tensor has any.
    """
    unseen: set[tuple[int | None, int]] = set()
    silent: set[str] = set()
    converted = [t for t in plan.tensors if not t.is_copied and t.name in known]
    for tensor in converted:
        groups = file.silent(tensor.name, tensor.source.shape)
        if len(groups) == file.groups(tensor.name, tensor.source.shape):
            silent.add(tensor.name)
        if tensor.role is Role.ROUTED_EXPERT:
            unseen |= {(tensor_layer(tensor.name), expert) for expert in groups}
    if converted and len(silent) == len(converted):
        raise FormatError(ALL_ZERO, path=file.path)
    return len(unseen), silent


def _types(tensors: Sequence[PlannedTensor]) -> str:
    return ", ".join(sorted({t.type.name for t in tensors}))
