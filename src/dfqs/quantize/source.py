"""The model to be quantized: its headers, and the plan of what becomes of its tensors."""

from dataclasses import dataclass
from pathlib import Path

from dfqs.gguf.kinds import require_model
from dfqs.gguf.layout import TensorInfo
from dfqs.gguf.reader import Header
from dfqs.gguf.shard import read_model_shards
from dfqs.model.classes import DeploymentClass
from dfqs.quantize.mixtures import find_mixture, mixture_class
from dfqs.quantize.plan import QuantizationPlan, plan_quantization
from dfqs.quantize.recipe import find_class
from dfqs.shards.consistency import consistency_problems


@dataclass(frozen=True, slots=True)
class Source:
    """The model to be quantized: one file, or all its shards."""

    headers: tuple[Header, ...]

    @property
    def first(self) -> Header:
        return self.headers[0]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {tensor.name: tensor for header in self.headers for tensor in header.tensors}


def read_source(path: Path) -> Source:
    """Headers of a model, given its file or its first shard.

    Raises:
        FormatError: a header lies, a shard is missing or of another model.
        UsageError: the file is missing, a later shard was given, or it is a GGUF of another kind than a model.
    """
    shards = read_model_shards(path)
    require_model(shards[0].header)
    if len(shards) > 1:
        for problem in consistency_problems(shards):
            raise problem
    return Source(tuple(shard.header for shard in shards))


def plan_source(source: Source, class_: DeploymentClass) -> QuantizationPlan:
    """What each tensor of `source` becomes."""
    return plan_quantization([header.tensors for header in source.headers], class_)


def class_for(name: str, source: Source, *, has_imatrix: bool) -> DeploymentClass:
    """The class of that name, the mixture of that name for this model, or the recipe of that path.

    Raises:
        UsageError: there is none, or the recipe is not one.
        FormatError: the model's keys are wrong.
    """
    mixture = find_mixture(name)
    if mixture is None:
        return find_class(name)
    return mixture_class(mixture, source.first, tuple(source.tensors.values()), has_imatrix=has_imatrix)
