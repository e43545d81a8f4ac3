"""What a model said about a text, compactly: the loss of every token, and its most probable next tokens.

All logits of 2,000 tokens of a vocabulary of 129,280 would be a gigabyte. This keeps for every scored token the loss,
the `TOP` most probable tokens with their log-probabilities, and so the probability of all the others together. A
divergence computed on these `TOP` + 1 outcomes is never above the true one (merging outcomes only loses information).

The container is a GGUF file: keys `dfqs.logits.*` with the conditions, and four tensors with a column per scored token:
`targets` I32 [tokens], `nll` F32 [tokens], `top_ids` I32 [top, tokens], `top_logprobs` F32 [top, tokens].
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dfqs import __version__
from dfqs.errors import FormatError, UsageError, printable
from dfqs.gguf.file import GGUFFile
from dfqs.gguf.types import GGMLType
from dfqs.gguf.values import string, u32
from dfqs.gguf.writer import TensorSource, write_gguf
from dfqs.storage.atomic import OnWhole, tell_nobody

TOP = 128
MAX_TOKENS = 400_000
"""Scored tokens in a file: 400 MB, and more than intervals need. Bounds memory for a file that lies."""
_ROWS = 4096
"""Tokens worked on at a time."""
FORMAT = "dfqs.logits/1"
_SHAPES = {"targets": GGMLType.I32, "nll": GGMLType.F32, "top_ids": GGMLType.I32, "top_logprobs": GGMLType.F32}

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Conditions:
    """Everything that two measurements must share before their numbers are compared."""

    text_sha256: str
    vocabulary: int
    window_tokens: int
    stride_tokens: int
    numerics: str
    """Flash attention, cache types, ubatch, runtime version."""

    def difference(self, other: "Conditions") -> str | None:
        """What differs, in words; None when nothing does."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name.replace('_', ' ')} is {mine} here and {printable(str(theirs), 200)} there"
        return None


@dataclass(frozen=True, slots=True)
class Losses:
    """Per-token results of one model on one text."""

    model_name: str
    conditions: Conditions
    targets: Int32
    """[tokens] The tokens that were predicted."""
    nll: Float32
    """[tokens] Negative log-likelihood of each, in nats."""
    top_ids: Int32
    """[tokens, top] Most probable first."""
    top_logprobs: Float32
    """[tokens, top] Natural logarithms."""


def write_losses(path: Path, losses: Losses, *, overwrite: bool = False, on_whole: OnWhole = tell_nobody) -> None:
    """Write the file, whole or not at all.

    Raises:
        UsageError: it would hold more tokens than are read again; or `path` exists, and `overwrite` is false.
    """
    require_storable(len(losses.nll))
    conditions = losses.conditions
    keys = [
        string("general.type", "dfqs-logits"),
        string("dfqs.logits.format", FORMAT),
        string("dfqs.version", __version__),
        string("dfqs.logits.model", losses.model_name),
        string("dfqs.logits.text_sha256", conditions.text_sha256),
        u32("dfqs.logits.vocabulary", conditions.vocabulary),
        u32("dfqs.logits.window_tokens", conditions.window_tokens),
        u32("dfqs.logits.stride_tokens", conditions.stride_tokens),
        string("dfqs.logits.numerics", conditions.numerics),
    ]
    arrays: dict[str, Int32 | Float32] = {
        "targets": losses.targets,
        "nll": losses.nll,
        "top_ids": losses.top_ids,
        "top_logprobs": losses.top_logprobs,
    }
    tensors = []
    for name, values in arrays.items():
        data = np.ascontiguousarray(values).tobytes()
        tensors.append(TensorSource(name, values.shape[::-1], _SHAPES[name], lambda data=data: [data]))  # type: ignore[misc]
    write_gguf(path, keys, tensors, overwrite=overwrite, on_whole=on_whole)


def require_storable(tokens: int) -> None:
    """Make sure that so many tokens fit into a file.

    Raises:
        UsageError: they do not.
    """
    if tokens > MAX_TOKENS:
        raise UsageError(f"{tokens:,} tokens are more than a file of logits holds ({MAX_TOKENS:,}); use --max-tokens")


def read_losses(path: Path) -> Losses:
    """Read a file that `write_losses` wrote.

    Raises:
        FormatError: another format, or numbers that cannot be.
        UsageError: the file is missing.
    """
    with GGUFFile(path) as file:
        metadata = file.header.metadata
        if metadata.text("dfqs.logits.format") != FORMAT:
            raise FormatError(f"not a file of stored logits ({FORMAT}); `dfqs perplexity --save` writes one", path=path)

        def text(key: str) -> str:
            value = metadata.text(f"dfqs.logits.{key}")
            if value is None:
                raise FormatError("missing, or not text", path=path, name=f"dfqs.logits.{key}")
            return value

        def number(key: str) -> int:
            value = metadata.integer(f"dfqs.logits.{key}")
            if value is None or value < 1:
                raise FormatError("missing, or no count", path=path, name=f"dfqs.logits.{key}")
            return value

        for name, type_ in _SHAPES.items():
            tensor = file.header.tensor(name)
            if tensor.type is not type_:
                raise FormatError(f"must be {type_.name}", path=path, name=name)
            if tensor.elements > MAX_TOKENS * (TOP if name.startswith("top") else 1):
                raise FormatError(f"holds {tensor.elements:,} numbers, more than are ever stored", path=path, name=name)
        tokens = file.header.tensor("targets").elements

        def rows(name: str) -> NDArray[Any]:
            # By number of tokens, not by the shape found: an axis of one is not written.
            values = file.array(name)
            if values.size % tokens:
                raise FormatError("its tensors differ in length", path=path)
            return values.reshape(tokens, -1)

        losses = Losses(
            model_name=printable(text("model")),
            conditions=Conditions(
                text("text_sha256"),
                number("vocabulary"),
                number("window_tokens"),
                number("stride_tokens"),
                text("numerics"),
            ),
            targets=file.array("targets"),
            nll=file.array("nll"),
            top_ids=rows("top_ids"),
            top_logprobs=rows("top_logprobs"),
        )
    _check(losses, path)
    return losses


def require_comparable(name: str, conditions: Conditions, targets: Int32, reference: Losses) -> None:
    """Make sure that a model's losses and a reference's are of the same tokens under the same conditions.

    Raises:
        UsageError: they are not; says what differs.
    """
    difference = conditions.difference(reference.conditions)
    if difference is None and not np.array_equal(targets, reference.targets):
        difference = "the text became other tokens"
    if difference is not None:
        raise UsageError(f"{name} and {reference.model_name} cannot be compared: {difference}")


def divergence(losses: Losses, log_probabilities: Float32) -> NDArray[np.float64]:
    """KL divergence of a model from these stored logits, token by token, in nats; never above the true one.

    Args:
        losses: the reference.
        log_probabilities: [tokens, top] what the other model gives the reference's `top_ids`.
    """
    tokens = len(losses.top_logprobs)
    parts = [
        _divergence(losses.top_logprobs[first : first + _ROWS], log_probabilities[first : first + _ROWS])
        for first in range(0, tokens, _ROWS)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _divergence(stored: Float32, log_probabilities: Float32) -> NDArray[np.float64]:
    reference = stored.astype(np.float64)
    other = log_probabilities.astype(np.float64)
    inner = (np.exp(reference) * (reference - other)).sum(axis=1)
    rest = np.clip(1 - np.exp(reference).sum(axis=1), 0, 1)
    other_rest = np.clip(1 - np.exp(other).sum(axis=1), 1e-12, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        outer = np.where(rest > 1e-12, rest * (np.log(np.maximum(rest, 1e-300)) - np.log(other_rest)), 0.0)
    return np.asarray(np.maximum(inner + outer, 0.0))


def _check(losses: Losses, path: Path) -> None:
    tokens, top = losses.top_ids.shape if losses.top_ids.ndim == 2 else (0, 0)
    vocabulary = losses.conditions.vocabulary
    shapes_agree = (
        losses.targets.shape == losses.nll.shape == (tokens,) and losses.top_logprobs.shape == (tokens, top) and tokens
    )
    if not shapes_agree:
        raise FormatError("its tensors differ in length", path=path)
    for ids in (losses.targets, losses.top_ids):
        if not top or ids.min() < 0 or ids.max() >= vocabulary:
            raise FormatError(f"names tokens outside its vocabulary of {vocabulary:,}", path=path)
    # A minimum or maximum is NaN where anything is, and comparisons with NaN are false.
    losses_are = losses.nll.min() >= -1e-3 and losses.nll.max() < np.inf
    logprobs_are = losses.top_logprobs.max() <= 1e-3 and losses.top_logprobs.min() > -np.inf
    if not losses_are or not logprobs_are:
        raise FormatError("holds logarithms of what is no probability", path=path)
