"""Deployment classes and tiers, as data: which role is stored as which type.

The recipe of the "-XL" classes keeps everything but the routed experts at Q8_0 and small or sensitive tensors at F32
(as the "-XL" quantizations published for DeepSeek-V4-Flash do, for example teamblobfish/DeepSeek-V4-Flash-GGUF:
non-expert tensors, embedding and output pinned at Q8_0). A further class is a further row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dfqs.gguf.types import GGMLType
from dfqs.model.spec import ModelSpec, Role, RoleSize, tensor_layer, tensor_role

KEPT_F32 = (Role.ROUTER, Role.NORM, Role.BIAS, Role.HYPER_CONNECTION)
"""Roles that every class leaves at F32."""
PINNED_Q8_0 = (Role.SHARED_EXPERT, Role.DENSE_FFN, Role.ATTENTION, Role.EMBEDDING, Role.OUTPUT)
"""Roles that every -XL class stores as Q8_0."""


@dataclass(frozen=True, slots=True)
class LayerException:
    """Tensors that get another type than their role: those that fit all that is stated here."""

    type: GGMLType
    role: Role | None = None
    tensors: str | None = None
    """A shell pattern of tensor names, like `blk.*.ffn_down_exps.weight`."""
    layers: frozenset[int] | None = None

    def __str__(self) -> str:
        layers = f"layers {', '.join(map(str, sorted(self.layers)))}" if self.layers is not None else None
        return ", ".join(part for part in (self.role and self.role.value, self.tensors, layers) if part)

    def fits(self, name: str) -> bool:
        if self.role is not None and tensor_role(name) is not self.role:
            return False
        if self.tensors is not None and not fnmatchcase(name, self.tensors):
            return False
        return self.layers is None or tensor_layer(name) in self.layers


@dataclass(frozen=True, slots=True)
class DeploymentClass:
    """A named recipe: role -> type, and exceptions of which the first that fits decides.

    Roles that it does not name (tables, other) stay as they are.
    """

    name: str
    types: Mapping[Role, GGMLType]
    exceptions: tuple[LayerException, ...] = ()

    @property
    def expert_type(self) -> GGMLType | None:
        return self.types.get(Role.ROUTED_EXPERT)

    @property
    def all_types(self) -> frozenset[GGMLType]:
        """Every type that the class asks for."""
        return frozenset(self.types.values()) | {entry.type for entry in self.exceptions}

    def type_of(self, name: str) -> GGMLType | None:
        """The type of the tensor of that name; None: it stays as it is."""
        exception = next((entry for entry in self.exceptions if entry.fits(name)), None)
        return exception.type if exception is not None else self.types.get(tensor_role(name))


@dataclass(frozen=True, slots=True)
class Tier:
    """A range of bits per weight, as the specification orders them (section 8)."""

    name: str
    title: str
    below_bits: float
    """The tier ends below this many bits per weight of the blocks' matrices."""


@dataclass(frozen=True, slots=True)
class ClassMatch:
    """The class a file comes closest to, and where it deviates."""

    name: str
    deviations: tuple[str, ...]
    """Empty when the file is of the class."""

    @property
    def exact(self) -> bool:
        return not self.deviations


def _xl(name: str, expert_type: GGMLType) -> DeploymentClass:
    types = {Role.ROUTED_EXPERT: expert_type}
    types |= dict.fromkeys(PINNED_Q8_0, GGMLType.Q8_0)
    types |= dict.fromkeys(KEPT_F32, GGMLType.F32)
    return DeploymentClass(name, types)


CLASSES: dict[str, DeploymentClass] = {
    entry.name: entry
    for entry in (
        _xl("IQ1_S-XL", GGMLType.IQ1_S),
        _xl("IQ1_M-XL", GGMLType.IQ1_M),
        _xl("IQ2_XXS-XL", GGMLType.IQ2_XXS),
        _xl("IQ2_XS-XL", GGMLType.IQ2_XS),
        _xl("Q2_K-XL", GGMLType.Q2_K),
        _xl("Q4_K-XL", GGMLType.Q4_K),
        _xl("Q8_0", GGMLType.Q8_0),
    )
}

TIERS: tuple[Tier, ...] = (
    Tier("IQ1", "Reference Ultra-Low-Bit", 2.0),
    Tier("IQ2", "Experimental Compression", 4.0),
    Tier("Q4-Q6", "Production Inference", 7.0),
    Tier("FP16/FP8", "Frontier Models", float("inf")),
)


def tier_of(bits_per_weight: float) -> Tier:
    """The tier of a model by the bits per weight of its blocks' matrices (`ModelSpec.main_bits_per_weight`)."""
    return next(tier for tier in TIERS if bits_per_weight < tier.below_bits)


def model_tier(spec: ModelSpec) -> Tier | None:
    """The tier of a model; None where it has no blocks to judge by."""
    return None if spec.main_bits_per_weight is None else tier_of(spec.main_bits_per_weight)


def recognise_class(spec: ModelSpec) -> ClassMatch | None:
    """The class whose expert type most of the routed experts have, and what deviates from it.

    Returns:
        None for a dense model, and where no class has that expert type.
    """
    experts = spec.role(Role.ROUTED_EXPERT)
    if experts is None:
        return None
    main_type = max(experts.types, key=lambda type_: experts.types[type_])
    found = next((entry for entry in CLASSES.values() if entry.expert_type is main_type), None)
    if found is None:
        return None
    deviations = (text for size in spec.roles for text in _deviations(size, found))
    return ClassMatch(found.name, tuple(deviations))


def _deviations(size: RoleSize, class_: DeploymentClass) -> list[str]:
    expected = class_.types.get(size.role)
    if expected is None:
        return []
    total = sum(size.types.values())
    return [
        f"{size.role.value}: {_share(count / total)} of the weights are {type_.name}, the class has {expected.name}"
        for type_, count in size.types.items()
        if type_ is not expected
    ]


def _share(part: float) -> str:
    # Some tensors of a thousand are "0.0%" to a rounding, and still a deviation.
    return f"{part:.1%}" if part >= 0.001 else "less than 0.1%"
