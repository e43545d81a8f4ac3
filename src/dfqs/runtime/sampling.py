"""Choosing the next token, with llama.cpp's own samplers."""

from dfqs.errors import UsageError
from dfqs.runtime.context import Context
from dfqs.runtime.log_lines import logged_reason
from dfqs.runtime.model import Model
from dfqs.runtime.requests import Sampling
from dfqs.storage.closing import Closing

PENALIZED_TOKENS = 64
"""llama.cpp's default for how far back a repetition counts."""


class Sampler(Closing):
    """llama.cpp's sampler chain for `settings`: grammar and penalty, then greedy at temperature 0, else top-k, top-p,
    min-p, temperature, seed.

    Raises:
        UsageError: a setting makes no sense, or the grammar is none.
    """

    def __init__(self, model: Model, settings: Sampling) -> None:
        check_sampling(settings)
        library = self.library = model.library
        self._is_argmax = settings.temperature == 0 and settings.grammar is None and settings.repeat_penalty == 1
        self.handle: int | None = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        if settings.grammar is not None:
            self._add_grammar(model, settings.grammar)
        if settings.repeat_penalty != 1:
            self._add(
                library.llama_sampler_init_penalties(model.vocab_size, PENALIZED_TOKENS, settings.repeat_penalty, 0, 0)
            )
        if settings.temperature == 0:
            self._add(library.llama_sampler_init_greedy())
            return
        if settings.top_k > 0:
            self._add(library.llama_sampler_init_top_k(settings.top_k))
        if settings.top_p < 1:
            self._add(library.llama_sampler_init_top_p(settings.top_p, 1))
        if settings.min_p > 0:
            self._add(library.llama_sampler_init_min_p(settings.min_p, 1))
        self._add(library.llama_sampler_init_temp(settings.temperature))
        self._add(library.llama_sampler_init_dist(settings.seed))

    def _add_grammar(self, model: Model, grammar: str) -> None:
        # A NUL would end the text for llama.cpp.
        text = grammar.replace("\0", " ").encode("utf-8", "replace")
        mark = self.library.log.mark()
        sampler = self.library.llama_sampler_init_grammar(model.vocab, text, b"root")
        if not sampler:
            self.close()
            raise UsageError(f"llama.cpp cannot read the grammar: {logged_reason(self.library, mark)}")
        self._add(sampler)

    def _add(self, sampler: int) -> None:
        self.library.llama_sampler_chain_add(self.handle, sampler)

    def sample(self, context: Context) -> int:
        """The next token, from the logits of the last one decoded."""
        if self._is_argmax and context.last_logits is not None:
            # As the greedy sampler chooses, of equal ones the first; that makes a list of the vocabulary before.
            return int(context.last_logits.argmax())
        return int(self.library.llama_sampler_sample(self.handle, context.handle, -1))

    def close(self) -> None:
        if self.handle:
            self.library.llama_sampler_free(self.handle)
            self.handle = None


def check_sampling(settings: Sampling) -> None:
    """
    Raises:
        UsageError: a setting is outside its range.
    """
    ranges = (
        ("temperature", settings.temperature, 0, 100),
        ("top-p", settings.top_p, 0, 1),
        ("min-p", settings.min_p, 0, 1),
        ("top-k", settings.top_k, 0, 1 << 31),
        ("repeat penalty", settings.repeat_penalty, 0.01, 100),
        # The largest value means "choose a seed" to llama.cpp, which would not be repeatable.
        ("seed", settings.seed, 0, (1 << 32) - 2),
        ("number of tokens to generate", settings.max_tokens, 1, 1 << 31),
    )
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise UsageError(f"{name} must be between {low:,} and {high:,}, not {value}")
    if settings.thinking_tokens is not None and not 1 <= settings.thinking_tokens <= 1 << 31:
        raise UsageError(f"a thought may take tokens from 1 on, not {settings.thinking_tokens}")
    if "" in settings.stop:
        raise UsageError("a stop string is empty")
