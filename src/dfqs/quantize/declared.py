"""Whether a file is of the class that it says it is: its recipe against its tensors."""

from collections.abc import Iterator

from dfqs.classes import CLASSES
from dfqs.errors import FormatError, UsageError
from dfqs.gguf.reader import Header
from dfqs.integrity.findings import Finding
from dfqs.quantize.metadata import CLASS_KEY, RECIPE_KEY
from dfqs.quantize.plan import plan_quantization
from dfqs.quantize.recipe import class_from_record, recipe_record
from dfqs.records import parse_json

LISTED = 10
RECIPE_LIMIT_BYTES = 1 << 20
"""A recipe of two exceptions a layer has some kilobytes."""
_MEND = "Get the file again from where it came from, or make it again with `dfqs quantize`."


def class_findings(header: Header) -> tuple[Finding, ...]:
    """Where a file contradicts the class that it declares; nothing for a file that declares none.

    Tensors that fall back because of their shape are as the class says.
    """
    if CLASS_KEY not in header.metadata:
        return ()
    found = list(_findings(header))
    if len(found) > LISTED:
        found = [*found[:LISTED], Finding("class", f"and {len(found) - LISTED:,} more tensors likewise", _MEND)]
    return tuple(found)


def _findings(header: Header) -> Iterator[Finding]:
    try:
        name = header.metadata.text(CLASS_KEY)
        recipe = header.metadata.text(RECIPE_KEY, RECIPE_LIMIT_BYTES)
    except FormatError as error:
        yield Finding("class", error.detail, _MEND, offset=error.offset, name=error.name)
        return
    if name is None:
        yield Finding("class", "must be a string", _MEND, name=CLASS_KEY)
        return
    try:
        class_ = class_from_record(parse_json(recipe or ""))
        plan = plan_quantization([header.tensors], class_)
    except (UsageError, FormatError) as error:
        yield Finding("class", f"it says class {name}, but its recipe cannot be read: {error}", _MEND, name=RECIPE_KEY)
        return
    builtin = CLASSES.get(name)
    if class_.name != name or (builtin is not None and recipe_record(builtin) != recipe_record(class_)):
        yield Finding("class", f"it says class {name}, but its recipe is another", _MEND, name=RECIPE_KEY)
    for tensor in plan.tensors:
        if tensor.type is not tensor.source.type:
            message = f"is {tensor.source.type.name}, class {name} has {tensor.type.name}"
            yield Finding("class", message, _MEND, name=tensor.name)
