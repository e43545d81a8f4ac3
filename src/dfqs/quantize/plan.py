"""Which tensor becomes what: a pure plan from tensor shapes and a class.

Two rules stand between a class and a file, both llama-quantize's own (`src/llama-quant.cpp`: `tensor_type_fallback`,
`tensor_requires_imatrix`), so that the same types give the same file:

- A row that a type's block does not divide gets a type of 32-element blocks (`FALLBACKS`), and where 32 does not divide
  it either, F16. The plan names each such tensor.
- IQ1, IQ2 and IQ3_XXS are not made without an importance matrix, except for embeddings and output where the library
  can do without.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dfqs.errors import UsageError
from dfqs.gguf.layout import TensorInfo, checked_product, tensor_length
from dfqs.gguf.types import BLOCKS, GGMLType
from dfqs.model.classes import DeploymentClass
from dfqs.model.spec import INTEGER_TYPES, Role, RoleSize, measure_roles, tensor_role

T = GGMLType

FALLBACKS: Mapping[GGMLType, GGMLType] = {
    T.IQ1_S: T.IQ4_NL,
    T.IQ1_M: T.IQ4_NL,
    T.IQ2_XXS: T.IQ4_NL,
    T.IQ2_XS: T.IQ4_NL,
    T.IQ2_S: T.IQ4_NL,
    T.IQ3_XXS: T.IQ4_NL,
    T.IQ3_S: T.IQ4_NL,
    T.IQ4_XS: T.IQ4_NL,
    T.Q2_0: T.Q4_0,
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.TQ1_0: T.Q4_0,
    T.TQ2_0: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}
"""What a type becomes where its block does not divide a row."""

NEEDS_IMPORTANCE = frozenset({T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS})
"""Types that are garbage without an importance matrix."""
LIBRARY_NEEDS_IMPORTANCE = frozenset({T.IQ1_S, T.IQ2_XXS, T.IQ2_XS})
"""Types that ggml itself refuses (with an abort) to make without one."""

FULL_PRECISION = frozenset({T.F32, T.F16, T.BF16, T.Q8_0})
"""Input types that may be quantized without `--allow-requantize`."""
NATIVE_EXPERTS = frozenset({T.MXFP4})
"""Types that routed experts are trained and published in (gpt-oss, DeepSeek-V4): they have lost nothing yet."""

TARGETS = frozenset(BLOCKS) - INTEGER_TYPES - {T.F64, T.Q8_1, T.Q8_K}
"""Types that ggml can make and a model may hold."""

# Small matrices that llama.cpp computes with as they are; llama-quantize leaves them, and so do we.
KEPT_NAMES = ("conv1d", "shortconv.conv", "time_mix_", "attn_rel_b", "altup", "laurel", "per_layer_model_proj")


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor: what it is and what it becomes."""

    source: TensorInfo
    shard: int
    """Index of the source shard it stands in."""
    role: Role
    type: GGMLType
    note: str | None
    """Why it is not what the class says; None when it is."""

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def length(self) -> int:
        """Bytes it takes in the result."""
        return tensor_length(self.type, self.source.shape)

    @property
    def is_copied(self) -> bool:
        return self.type is self.source.type

    @property
    def needs_importance(self) -> bool:
        if self.role in (Role.EMBEDDING, Role.OUTPUT):
            return self.type in LIBRARY_NEEDS_IMPORTANCE
        return self.type in NEEDS_IMPORTANCE


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """What a whole model becomes."""

    class_: DeploymentClass
    tensors: tuple[PlannedTensor, ...]

    @property
    def result(self) -> tuple[TensorInfo, ...]:
        """Tensors of the result (offsets are not placed yet)."""
        return tuple(replace(t.source, type=t.type, length=t.length) for t in self.tensors)

    @property
    def roles(self) -> tuple[RoleSize, ...]:
        """Sizes of the result by role."""
        return measure_roles(self.result)

    @property
    def bytes(self) -> int:
        """Tensor bytes of the result, padding not counted."""
        return sum(t.length for t in self.tensors)

    @property
    def parameters_to_quantize(self) -> int:
        """Values that change their type: what progress counts."""
        return sum(t.source.elements for t in self.tensors if not t.is_copied)

    @property
    def notes(self) -> tuple[str, ...]:
        """Tensors that did not become what the class says, with the reason."""
        return tuple(f"{t.name}: {t.note}" for t in self.tensors if t.note)

    @property
    def idle_exceptions(self) -> tuple[str, ...]:
        """Exceptions of the recipe that fit no tensor, in words: a slip of the pen, most of the time."""
        idle = (e for e in self.class_.exceptions if not any(e.fits(t.name) for t in self.tensors))
        return tuple(str(entry) for entry in idle)

    @property
    def requantized(self) -> tuple[PlannedTensor, ...]:
        """Tensors that would be made from what has already lost its detail."""
        return tuple(t for t in self.tensors if not t.is_copied and not has_full_precision(t.role, t.source.type))

    @property
    def native_experts(self) -> tuple[PlannedTensor, ...]:
        """Routed experts that would be made from a low-bit type that models are published in."""
        return tuple(t for t in self.tensors if not t.is_copied and t.source.type in NATIVE_EXPERTS)

    @property
    def needing_importance(self) -> tuple[PlannedTensor, ...]:
        return tuple(t for t in self.tensors if t.needs_importance and not t.is_copied)


def plan_quantization(shards: Sequence[Iterable[TensorInfo]], class_: DeploymentClass) -> QuantizationPlan:
    """Give every tensor its type.

    Args:
        shards: tensors of each source shard, in file order. Any types: a plan looks at shapes only.

    Raises:
        UsageError: the class asks for a type that cannot be made.
    """
    for wanted in class_.all_types:
        if wanted not in TARGETS:
            raise UsageError(f"class {class_.name} asks for {wanted.name}, which llama.cpp cannot make")
    return QuantizationPlan(
        class_,
        tuple(_plan_tensor(tensor, index, class_) for index, tensors in enumerate(shards) for tensor in tensors),
    )


def has_full_precision(role: Role, type_: GGMLType) -> bool:
    """Whether tensors of that role are published in that type, or lose nothing that counts in it."""
    return type_ in FULL_PRECISION or (role is Role.ROUTED_EXPERT and type_ in NATIVE_EXPERTS)


def fitting_type(wanted: GGMLType, row: int) -> GGMLType:
    """`wanted`, or what stands in for it where its block does not divide `row` elements."""
    if row % BLOCKS[wanted].elements == 0:
        return wanted
    fallback = FALLBACKS.get(wanted)
    return fallback if fallback is not None and row % BLOCKS[fallback].elements == 0 else T.F16


def _plan_tensor(tensor: TensorInfo, shard: int, class_: DeploymentClass) -> PlannedTensor:
    role = tensor_role(tensor.name)
    wanted = class_.type_of(tensor.name)
    if wanted is None or tensor.type in INTEGER_TYPES:
        return PlannedTensor(tensor, shard, role, tensor.type, None)
    if wanted is not T.F32:
        kept = reason_to_keep(tensor)
        if kept is not None:
            return PlannedTensor(tensor, shard, role, tensor.type, f"stays {tensor.type.name}: {kept}")
    fitting = fitting_type(wanted, tensor.shape[0])
    note = None
    if fitting is not wanted:
        block = BLOCKS[wanted].elements
        note = f"{fitting.name} in place of {wanted.name}: rows of {tensor.shape[0]} are not whole blocks of {block}"
    return PlannedTensor(tensor, shard, role, fitting, note)


def reason_to_keep(tensor: TensorInfo) -> str | None:
    """Why a tensor is left as it is by every class that does not ask for F32; None for a matrix like others."""
    if checked_product(tensor.shape) == tensor.shape[0]:
        return "a vector, not a matrix"
    if not tensor.name.endswith("weight") or any(part in tensor.name for part in KEPT_NAMES):
        return "llama.cpp computes with it as it is"
    return None
