"""What measuring an importance matrix takes of memory, told before it begins."""

from dfqs.model.files import ModelFiles
from dfqs.quantize.activations import WEIGHT


def sums_bytes(model: ModelFiles, chunk_tokens: int) -> int:
    """Memory that a measurement takes beside the model and its context: sums, their copy while they are written, the
    inputs of one multiplication, and all logits."""
    spec = model.spec
    weights = [tensor for tensor in model.tensors if WEIGHT.fullmatch(tensor.name)]
    sums = sum(tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1) for tensor in weights)
    widest = max((tensor.shape[0] for tensor in weights), default=0)
    inputs = chunk_tokens * max(spec.experts_used, 1) * widest
    return 4 * (3 * sums + 2 * inputs + chunk_tokens * (spec.vocabulary or 0))
