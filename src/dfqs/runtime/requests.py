"""What is asked of a text session and what comes back: plain values that cross the process boundary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dfqs.errors import UsageError


class ContextFull(UsageError):
    """A prompt leaves its answer too little of the context."""


Message = Mapping[str, str]
"""`{"role": "system" | "user" | "assistant", "content": ...}`."""

Prompt = str | Sequence[Message]
"""Plain text to continue, or a conversation to answer."""


@dataclass(frozen=True, slots=True)
class ReadSoFar:
    """How much of a prompt or a document is in the cache, told while it is read."""

    tokens: int
    of_tokens: int


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """Settings of the context that a session runs in; see `dfqs.runtime.context.Context`."""

    n_ctx: int | None = None
    n_batch: int = 512
    n_ubatch: int = 512
    threads_batch: int | None = None
    flash_attention: str = "auto"
    type_k: str = "f16"
    type_v: str = "f16"
    swa_full: bool = False
    n_seq_max: int = 1
    kv_unified: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, and what ends an answer. Temperature 0 is greedy: the likeliest token every
    time, of what the grammar and the penalty leave."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    """0: no limit."""
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    repeat_penalty: float = 1.0
    """Divides the logits of the last 64 tokens of the answer (multiplies negative ones); 1: none."""
    grammar: str | None = None
    """In llama.cpp's notation (GBNF), from its rule `root`: nothing else can be said."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    thinking: bool | None = None
    """Whether the template is asked to let the model think; None: as llama.cpp's server has it, models that can do."""
    thinking_tokens: int | None = None
    """That a thought at the beginning of the answer may take before it is ended; None: as many as it likes."""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a session turned out to be."""

    runtime: str
    context_tokens: int
    threads: int
    omp_wait_policy: str
    settings: ContextSettings
    """As it was made."""
    chat_template: bool
    """There is one: the model's, or one that was given."""
    load_s: float
    notices: tuple[str, ...]
    """For the user: what was asked for and not granted."""
    given_template_sha256: str | None = None
    """Of a chat template that is used in place of the model's own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated text, and what it took."""

    text: str
    finish_reason: str
    """`stop` (the model ended, or a stop string came), `length` (max_tokens), `context` (no room), `interrupted`."""
    prompt_tokens: int
    reused_tokens: int
    """Of the prompt, found in the cache and not computed again."""
    generated_tokens: int
    prompt_s: float
    """Wall time of the prefill."""
    decode_s: float
    """Wall time of `generated_tokens - 1` steps: the first token comes out of the prefill."""

    @property
    def finish_word(self) -> str:
        """The reason in the words of OpenAI's API: a context that is full is a limit on length too."""
        return "length" if self.finish_reason == "context" else self.finish_reason

    @property
    def prompt_tokens_per_s(self) -> float | None:
        """None when nothing was timed."""
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prompt_s if self.prompt_s > 0 and computed else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """None with fewer than two tokens."""
        steps = self.generated_tokens - 1
        return steps / self.decode_s if self.decode_s > 0 and steps > 0 else None
