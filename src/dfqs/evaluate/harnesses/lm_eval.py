"""lm-evaluation-harness with our likelihoods: `dfqs-lm-eval run --model dfqs ...`.

The harness (0.4.13) looks a model up in a registry that nothing outside fills, so its own command line is started from
here, with `dfqs` in the registry; every option and task is its own. Needs the extra `dfqs[lm-eval]`.

    dfqs-lm-eval run --model dfqs --model_args model=FILE.gguf --tasks hellaswag

`model_args`: see `open_session`. With `--use_cache PATH` every answer is stored as it comes, and the same command goes
on after a kill. Interface: `lm_eval.api.model.LM`.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from dfqs.errors import UsageError
from dfqs.evaluate.harnesses.loading import open_session
from dfqs.evaluate.likelihood import (
    Continuation,
    ContinuationScore,
    GenerationRequest,
    LikelihoodSession,
    Written,
)

NAME = "dfqs"
MAX_TOKENS = 256
"""Of a generated text whose task says nothing, as the harness has it for other models."""
_logger = logging.getLogger("lm_eval.dfqs")


class Request(Protocol):
    """`lm_eval.api.instance.Instance`, as far as it is used."""

    @property
    def args(self) -> tuple[Any, ...]: ...


class HarnessModel:
    """What the harness asks of a model; the class that it gets (`model_class`) stands on its `LM` too."""

    cache_hook: Any

    def __init__(self, session: LikelihoodSession, name: str) -> None:
        self.session = session
        self.name = name

    def loglikelihood(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """`(log-probability, is greedy)` of each `(context, continuation)`."""
        asked = [self._cut(each) for each in self.session.encode([request.args for request in requests])]

        def keep(index: int, score: ContinuationScore) -> None:
            self.cache_hook.add_partial("loglikelihood", requests[index].args, (score.logprob, score.is_greedy))

        scores = self.session.score_tokens(asked, on_score=keep)
        work = self.session.work
        _logger.info("%d tokens computed for %d of all continuations alone", work.computed_tokens, work.alone_tokens)
        return [(score.logprob, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each `(text,)`, predicted from BOS or EOS."""
        found = []
        for request in requests:
            # One by one: what is there already is kept when the next one is long.
            (text,) = self.session.rolling([request.args[0]])
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, text.logprob)
            found.append(text.logprob)
        return found

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """Greedy text after each `(context, options)`, up to a word of `until` or so many tokens."""
        prompts = self.session.tokenize([request.args[0] for request in requests], add_special=True)
        asked = [self._generation(prompt, request.args[1]) for prompt, request in zip(prompts, requests, strict=True)]

        def keep(index: int, written: Written) -> None:
            self.cache_hook.add_partial("generate_until", requests[index].args, written.text)

        return [written.text for written in self.session.generate(asked, on_text=keep)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Text of a conversation, by the template in the model's file."""
        return self.session.render_chat(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `apply_chat_template` uses."""
        return self.session.opened.chat_template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """What stored requests are told apart by."""
        template = hashlib.sha256((self.session.opened.chat_template or "").encode()).hexdigest()
        return f"{NAME}-{self.name}-{template[:16]}"

    @property
    def max_length(self) -> int:
        """Longest context and continuation together, without the last token."""
        return self.session.opened.limit_tokens

    @property
    def prefix_token_id(self) -> int:
        return self.session.opened.prefix_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Tokens of a text."""
        (tokens,) = self.session.tokenize([string], add_special=add_special_tokens is not False)
        return tokens

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's results."""
        return {"model_file": self.name, "limit_tokens": self.max_length}

    def _cut(self, asked: Continuation) -> Continuation:
        """What is longer than the context loses its beginning, as with the harness's other models."""
        excess = len(asked.context) + len(asked.continuation) - 1 - self.max_length
        if excess <= 0:
            return asked
        if excess >= len(asked.context):
            raise UsageError(
                f"a continuation of {len(asked.continuation):,} tokens does not fit a context of {self.max_length:,}; "
                "give a larger one (context=N)"
            )
        _logger.warning("a context lost its first %d tokens; %d fit", excess, self.max_length)
        return Continuation(asked.context[excess:], asked.continuation)

    def _generation(self, prompt: Sequence[int], options: dict[str, Any]) -> GenerationRequest:
        if options.get("do_sample") or options.get("temperature"):
            raise UsageError("only greedy text is written: do_sample and temperature have to be off")
        until = options.get("until") or ()
        words = tuple(word for word in ((until,) if isinstance(until, str) else until) if word)
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        wanted = next((options[name] for name in names if options.get(name) is not None), MAX_TOKENS)
        room = self.max_length - int(wanted)
        if room < 1:
            raise UsageError(f"{wanted:,} tokens to write do not fit a context of {self.max_length:,} (context=N)")
        if len(prompt) > room:
            _logger.warning("a prompt lost its first %d tokens; %d fit", len(prompt) - room, room)
        return GenerationRequest(tuple(prompt[-room:]), int(wanted), words)


def model_class() -> type[Any]:
    """The class for the harness's registry.

    Raises:
        UsageError: the harness is not installed.
    """
    try:
        from lm_eval.api.model import LM  # noqa: PLC0415
    except ImportError as error:
        raise UsageError("lm-evaluation-harness is not installed; pip install 'dfqs[lm-eval]'") from error

    class DfqsLM(HarnessModel, LM):  # type: ignore[misc, no-any-unimported, unused-ignore]
        """A GGUF file in a worker process."""

        def __init__(
            self,
            model: str = "",
            batch_size: Any = None,
            max_batch_size: Any = None,
            device: Any = None,
            **options: Any,
        ) -> None:
            LM.__init__(self)
            HarnessModel.__init__(self, open_session(model, **options), Path(model).name)

    return DfqsLM


def register() -> None:
    """Put `dfqs` among the harness's models.

    Raises:
        UsageError: the harness is not installed.
    """
    model = model_class()
    import lm_eval.models  # noqa: F401, PLC0415
    from lm_eval.api.registry import MODEL_REGISTRY, register_model  # noqa: PLC0415

    if NAME not in MODEL_REGISTRY:
        register_model(NAME)(model)


def main() -> None:
    """The harness's own command line, with our model in it."""
    try:
        register()
    except UsageError as error:
        raise SystemExit(str(error)) from None
    from lm_eval.__main__ import cli_evaluate  # noqa: PLC0415

    cli_evaluate()


if __name__ == "__main__":
    main()
