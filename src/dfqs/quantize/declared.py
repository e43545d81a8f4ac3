"""Whether a file is of the class that it says it is: its recipe against its tensors."""

from collections.abc import Iterator

from dfqs.errors import FormatError, UsageError
from dfqs.gguf.reader import Header
from dfqs.integrity.findings import Finding
from dfqs.model.classes import CLASSES, DeploymentClass
from dfqs.model.making import CLASS_KEY, IMATRIX_KEY, RECIPE_KEY, RECIPE_LIMIT_BYTES
from dfqs.model.spec import read_model_spec
from dfqs.quantize.experts import expert_problems
from dfqs.quantize.mixtures import MIXTURES, mixture_class
from dfqs.quantize.plan import plan_quantization
from dfqs.quantize.recipe import class_from_record, recipe_record
from dfqs.records import parse_json

LISTED = 10
_FIX = "Get the file again from where it came from, or make it again with `dfqs quantize`."


def class_findings(header: Header) -> tuple[Finding, ...]:
    """Where a file contradicts the class that it declares; nothing for a file that declares none.

    Tensors that fall back because of their shape are as the class says.
    """
    if CLASS_KEY not in header.metadata:
        return ()
    found = list(_findings(header))
    if len(found) > LISTED:
        found = [*found[:LISTED], Finding("class", f"and {len(found) - LISTED:,} more tensors likewise", _FIX)]
    return tuple(found)


def _findings(header: Header) -> Iterator[Finding]:
    try:
        name = header.metadata.text(CLASS_KEY)
        recipe = header.metadata.text(RECIPE_KEY, RECIPE_LIMIT_BYTES)
    except FormatError as error:
        yield Finding("class", error.detail, _FIX, offset=error.offset, name=error.name)
        return
    if name is None:
        yield Finding("class", "must be a string", _FIX, name=CLASS_KEY)
        return
    try:
        class_ = class_from_record(parse_json(recipe or ""))
        plan = plan_quantization([header.tensors], class_)
    except (UsageError, FormatError) as error:
        yield Finding("class", f"it says class {name}, but its recipe cannot be read: {error}", _FIX, name=RECIPE_KEY)
        return
    if class_.name != name or _is_another(class_, header):
        yield Finding("class", f"it says class {name}, but its recipe is another", _FIX, name=RECIPE_KEY)
    if not _is_shard(header):
        experts = _count_experts(header)
        for problem in expert_problems(class_, experts, header.tensors):
            yield Finding("class", f"it says class {name}, but {problem.message}", problem.fix, name=problem.name)
    for tensor in plan.tensors:
        if tensor.type is not tensor.source.type:
            message = f"is {tensor.source.type.name}, class {name} has {tensor.type.name}"
            yield Finding("class", message, _FIX, name=tensor.name)


def _is_another(class_: DeploymentClass, header: Header) -> bool:
    """Whether a class has the name of one of ours, and is not it."""
    if class_.name in CLASSES:
        return recipe_record(CLASSES[class_.name]) != recipe_record(class_)
    # A mixture is worked out from the whole model, which a shard is not.
    if class_.name not in MIXTURES or _is_shard(header):
        return False
    try:
        ours = mixture_class(MIXTURES[class_.name], header, header.tensors, has_imatrix=IMATRIX_KEY in header.metadata)
    except (UsageError, FormatError):
        return True
    return recipe_record(ours) != recipe_record(class_)


def _is_shard(header: Header) -> bool:
    count = header.metadata.get("split.count", 0)
    return isinstance(count, int) and count > 1


def _count_experts(header: Header) -> int:
    """How many experts the model says it has; 0 where its keys say nothing usable (another finding's matter)."""
    try:
        return read_model_spec(header).experts
    except FormatError:
        return 0
