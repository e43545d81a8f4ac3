"""Text to be scored, as tokens: cut as lm-evaluation-harness does it, so that numbers compare with published ones."""

from dfqs.errors import UsageError, printable
from dfqs.runtime.model import Model
from dfqs.runtime.scoring import Continuation


def encode_pair(model: Model, context: str, continuation: str) -> Continuation:
    """Tokens of a context and of what follows it, as lm-evaluation-harness splits them.

    Raises:
        UsageError: the continuation has no token of its own.
    """
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    if bare:
        before = encode(model, bare, add_special=True)
        after = encode(model, bare + continuation, add_special=True)[len(before) :]
    else:
        before, after = [prefix_token(model)], encode(model, continuation, add_special=False)
        if len(after) > 1 and after[0] == before[0]:
            after = after[1:]
    if not after:
        raise UsageError(
            f"the continuation '{printable(continuation, 40)}' has no token of its own: it is empty, or joins the last "
            "token of its context"
        )
    return Continuation(tuple(before), tuple(after))


def encode(model: Model, text: str, add_special: bool) -> list[int]:
    """Tokens of `text`, control tokens read as such. Never an EOS at the end: something may follow.

    Args:
        add_special: put BOS first, where the model wants it and the text does not bring it.
    """
    tokens = model.tokenize(text, add_special=False, parse_special=True)
    if add_special and model.adds_bos and model.bos >= 0 and tokens[:1] != [model.bos]:
        return [model.bos, *tokens]
    return tokens


def prefix_token(model: Model) -> int:
    """What the first token of a text is predicted from: BOS, or EOS where a model has none.

    Raises:
        UsageError: it has neither.
    """
    token = model.bos if model.bos >= 0 else model.eos
    if token < 0:
        raise UsageError(f"{model.path} has neither BOS nor EOS, so the first token of a text cannot be predicted")
    return token
