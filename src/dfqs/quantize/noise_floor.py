"""How far a model is from itself: the same file and tokens under other numerics, none of which is the right one.

Sums of floating-point numbers depend on their order, and that on batches, kernels and types of the cache. What differs
by no more than this between two models may be the arithmetic's; it is called not resolvable. The measure is that of
`dfqs.quantize.perplexity`, on fewer tokens: loss, same most probable token, KL divergence on 129 outcomes.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

import numpy as np

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.quantize.bootstrap import Estimate, estimate_difference, estimate_mean
from dfqs.quantize.calibration import heldout_text
from dfqs.quantize.logits_file import Conditions, Losses
from dfqs.quantize.windows import LossScorer, plan_windows, score_windows
from dfqs.records import Amount, AtLeastOne, Record, Share, Text, Whole
from dfqs.runtime.context import Context
from dfqs.runtime.model import Model
from dfqs.runtime.requests import ContextSettings
from dfqs.runtime.timing import spread_tokens

FLOOR_TOKENS = 512
"""Of the text. Each is computed four times, once of them by itself."""
FLOOR_WINDOW_TOKENS = 512


@dataclass(frozen=True, slots=True)
class OtherNumerics:
    """Another way to compute the same."""

    name: str
    flash_attention: str = "off"
    type_k: str = "f16"
    type_v: str = "f16"
    batch_tokens: int | None = None
    """Computed at a time; None: a window."""


TOKEN_BY_TOKEN = OtherNumerics("token by token", batch_tokens=1)
FLASH_ATTENTION = OtherNumerics("flash attention on", "on")
KV_Q8_0 = OtherNumerics("KV cache q8_0, with the flash attention that it needs", "on", "q8_0", "q8_0")
NUMERICS = (FLASH_ATTENTION, TOKEN_BY_TOKEN, KV_Q8_0)
FLOOR_PASSES = 1 + len(NUMERICS)
"""How often each token is computed: under the reference's numerics, and under these."""


class SelfDifference(Record):
    """A model under other numerics against itself under the reference's. Nats a token; null: not measured."""

    numerics: Text
    kl: Estimate | None = None
    """Divergence from the reference's numerics, at least."""
    same_top: Estimate | None = None
    """Share of tokens whose most probable one is the same."""
    nll_difference: Estimate | None = None
    """Loss minus the reference's, paired by token."""
    perplexity_ratio: Estimate | None = None
    """To the reference's: the exponential of the difference in loss."""
    reason: Text | None = None
    """Why there are no numbers."""


class NoiseFloor(Record):
    """How far a model is from itself. The bounds are the far ends of the largest intervals, of means where a text is
    too short for intervals; null where nothing was measured."""

    tokens: Whole
    """Predicted, of `text_sha256`; each under every numerics."""
    window_tokens: AtLeastOne
    """Computed together; windows do not overlap."""
    text_sha256: str
    reference: Text
    """The numerics that all others are held against."""
    others: tuple[SelfDifference, ...]
    kl_nats: Amount | None
    """A divergence whose interval does not lie above is not resolvable."""
    nll_nats: Amount | None
    """A difference in loss whose interval does not lie beyond, on one side, is not resolvable."""
    same_top: Share | None
    """A share of the same most probable tokens whose interval does not lie below is not resolvable."""


class Resolution(StrEnum):
    """What a noise floor says of a difference."""

    RESOLVED = "resolved"
    NOT_RESOLVABLE = "not resolvable"


class AgainstFloor(Record):
    """Differences from a reference, beside the noise floor; null: no difference, or no floor, was measured."""

    kl: Resolution | None
    nll_difference: Resolution | None
    same_top: Resolution | None


def tokens_for_floor(model: Model, text: str | None, tokens: int) -> tuple[list[int], str]:
    """The tokens to measure on, and the SHA-256 of what they are of.

    Args:
        text: None: the held-out mix that dfqs ships. A model without a tokenizer gets a fixed sequence in its place.
    """
    words = heldout_text() if text is None else text
    try:
        # Of a long text no more is needed: few tokens have so many characters.
        found = model.tokenize(words[: tokens * 16], add_special=True, parse_special=False)
    except RuntimeFailure:
        return spread_tokens(model.vocab_size, 0, tokens), hashlib.sha256(b"").hexdigest()
    return list(found[:tokens]), hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()


def measure_floor(
    model: Model,
    tokens: Sequence[int],
    text_sha256: str,
    *,
    others: Sequence[OtherNumerics] = NUMERICS,
    threads: int | None = None,
    on_token: Callable[[], object] = lambda: None,
) -> NoiseFloor:
    """Hold a model against itself, in a worker process. One context at a time is made, of a window.

    Args:
        on_token: called when one more was computed, under whatever numerics.

    Raises:
        UsageError: fewer than two tokens.
        NonFiniteLogits, RuntimeFailure: the reference's numerics give no numbers. Where others do not, they have the
            reason in place of numbers.
    """
    window = max(2, min(FLOOR_WINDOW_TOKENS, model.trained_context_tokens or FLOOR_WINDOW_TOKENS, len(tokens)))
    reference_numerics = f"flash attention off, f16 cache, windows of {window} in one batch"
    conditions = Conditions(text_sha256, model.vocab_size, window, window - 1, reference_numerics)

    def score(numerics: OtherNumerics, reference: Losses | None) -> LossScorer:
        scorer = LossScorer(np.array(tokens[1:], np.int32), reference, on_token)
        windows = list(plan_windows(len(tokens), window, window - 1))
        with Context(model, threads=threads, **asdict(numerics_context(numerics, window))) as context:
            score_windows(context, tokens, windows, scorer)
        return scorer

    first = score(OtherNumerics("reference"), None).losses("reference", conditions)
    found = [_against(first, numerics, score) for numerics in others]
    return NoiseFloor(
        tokens=len(first.nll),
        window_tokens=window,
        text_sha256=text_sha256,
        reference=reference_numerics,
        others=tuple(found),
        kl_nats=max((far_end(each.kl) for each in found if each.kl is not None), default=None),
        nll_nats=max((far_end(each.nll_difference) for each in found if each.nll_difference is not None), default=None),
        same_top=min(
            (_or(each.same_top.low, each.same_top.mean) for each in found if each.same_top is not None), default=None
        ),
    )


def numerics_context(numerics: OtherNumerics, window_tokens: int) -> ContextSettings:
    """The context that a window is computed in."""
    batch = numerics.batch_tokens or window_tokens
    return ContextSettings(
        window_tokens,
        n_batch=batch,
        n_ubatch=batch,
        flash_attention=numerics.flash_attention,
        type_k=numerics.type_k,
        type_v=numerics.type_v,
    )


def hold_against(
    floors: Sequence[NoiseFloor | None],
    kl: Estimate | None,
    nll_difference: Estimate | None,
    same_top: Estimate | None,
) -> AgainstFloor | None:
    """What of a difference between two models is more than either's own; None where neither has a floor.

    Args:
        floors: of both, as far as they were measured; the larger counts.
    """
    known = [floor for floor in floors if floor is not None and floor.kl_nats is not None]
    if not known:
        return None
    share = min(floor.same_top for floor in known if floor.same_top is not None)
    return AgainstFloor(
        kl=_resolve(kl, max(floor.kl_nats or 0.0 for floor in known)),
        nll_difference=resolve_loss(floors, nll_difference),
        same_top=None if same_top is None else _word(_or(same_top.high, same_top.mean) < share),
    )


def resolve_loss(floors: Sequence[NoiseFloor | None], difference: Estimate | None) -> Resolution | None:
    """Whether a paired difference in loss is more than either model's own; None: not known."""
    bounds = [floor.nll_nats for floor in floors if floor is not None and floor.nll_nats is not None]
    return None if difference is None else resolve(difference, max(bounds, default=None))


def resolve(difference: Estimate, floor: float | None) -> Resolution | None:
    """Whether a difference lies wholly beyond a floor, on one side; None: there is no floor."""
    if floor is None:
        return None
    low, high = _or(difference.low, difference.mean), _or(difference.high, difference.mean)
    return _word(low > floor or high < -floor)


def _against(
    reference: Losses, numerics: OtherNumerics, score: Callable[[OtherNumerics, Losses], LossScorer]
) -> SelfDifference:
    try:
        scorer = score(numerics, reference)
    except (RuntimeFailure, UsageError) as error:
        return SelfDifference(numerics=numerics.name, reason=error.sentence)
    losses, kl = scorer.losses(numerics.name, reference.conditions), scorer.divergence()
    assert kl is not None
    same = (losses.top_ids[:, 0] == reference.top_ids[:, 0]).astype(np.float64)
    difference = estimate_difference(losses.nll, reference.nll)
    return SelfDifference(
        numerics=numerics.name,
        kl=estimate_mean(kl),
        same_top=estimate_mean(same),
        nll_difference=difference,
        perplexity_ratio=_exponential(difference),
    )


def _exponential(estimate: Estimate) -> Estimate:
    # Beyond this there is no floating-point number.
    low, high = (None if end is None else math.exp(min(end, 700.0)) for end in (estimate.low, estimate.high))
    return Estimate(math.exp(min(estimate.mean, 700.0)), low, high, estimate.tokens, estimate.blocks)


def _resolve(value: Estimate | None, bound: float) -> Resolution | None:
    return None if value is None else _word(_or(value.low, value.mean) > bound)


def _word(resolved: bool) -> Resolution:
    return Resolution.RESOLVED if resolved else Resolution.NOT_RESOLVABLE


def far_end(estimate: Estimate) -> float:
    """The end of an interval that is farther from nothing, as an amount; of the mean where there is no interval."""
    return max(abs(_or(end, estimate.mean)) for end in (estimate.low, estimate.high))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
