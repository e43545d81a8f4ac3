"""The model to be quantized, and the plan of what becomes of its tensors."""

from pathlib import Path

from dfqs.model.classes import DeploymentClass
from dfqs.model.files import ModelFiles, open_model
from dfqs.quantize.mixtures import find_mixture, mixture_class
from dfqs.quantize.plan import QuantizationPlan, plan_quantization
from dfqs.quantize.recipe import find_class
from dfqs.shards.consistency import consistency_problems


def read_source(source: Path | ModelFiles) -> ModelFiles:
    """The model to be quantized, given its file or its first shard.

    Raises:
        FormatError: a header lies, a shard is missing or of another model.
        UsageError: the file is missing, a later shard was given, or it is a GGUF of another kind than a model.
    """
    model = open_model(source)
    model.require_model()
    if len(model.shards) > 1:
        for problem in consistency_problems(model.shards):
            raise problem
    return model


def plan_source(source: ModelFiles, class_: DeploymentClass) -> QuantizationPlan:
    """What each tensor of `source` becomes."""
    return plan_quantization([header.tensors for header in source.headers], class_)


def class_for(name: str, source: ModelFiles, *, has_imatrix: bool) -> DeploymentClass:
    """The class of that name, the mixture of that name for this model, or the recipe of that path.

    Raises:
        UsageError: there is none, or the recipe is not one.
        FormatError: the model's keys are wrong.
    """
    mixture = find_mixture(name)
    if mixture is None:
        return find_class(name)
    return mixture_class(mixture, source.header, source.tensors, has_imatrix=has_imatrix)
