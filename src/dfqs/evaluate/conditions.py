"""Everything that could change a number, in two parts, because scores and speeds compare under different conditions."""

from typing import Any

from pydantic import Field

from dfqs.records import Amount, AtLeastOne, Record, Whole, is_null, sha256_of


class Numerics(Record):
    """Settings that change logits. The suite fixes them; tuning never does."""

    flash_attention: str = "off"
    type_k: str = "f16"
    type_v: str = "f16"
    batch: AtLeastOne = 512
    ubatch: AtLeastOne = 512
    document_ubatch: AtLeastOne | None = Field(default=None, exclude_if=is_null)
    """Tokens of a document that are computed at once, where its context is so long that `ubatch` of them take too much
    memory; None: `ubatch`."""
    question_pieces: AtLeastOne = Field(default=1, exclude_if=lambda version: version == 1)
    """Version of the pieces that questions about a document, and given answers, are computed in
    (`dfqs.evaluate.documents.PIECES`). Told from the second on."""
    parallel: AtLeastOne = 1
    swa_full: bool = False
    repack: bool = Field(default=True, exclude_if=bool)
    """Weights may be copied into an order that the processor likes better, which changes last bits. Told, and part of
    the fingerprint, where they were not: of a model whose experts are read from disk."""


class ScoreConditions(Record):
    """What a score depends on besides the model. Two scores compare when these are equal."""

    suite: str
    prompt_sets: dict[str, str]
    """Set name -> `set_sha256`."""
    items: dict[str, AtLeastOne]
    """How many items of each set; of the context set: questions at each length."""
    context_lengths: tuple[AtLeastOne, ...]
    max_tokens: dict[str, AtLeastOne]
    sampling: str = "greedy"
    thinking: str | None
    """As the rendered prompt shows it: `off` (a thought was closed for the model), `on` (one was opened when asked
    for), `always` (the template opens one by itself); None: the prompt shows nothing. Behind an endpoint
    `server default`."""
    thinking_tokens: AtLeastOne | None = Field(default=None, exclude_if=is_null)
    """Budget of thoughts, beside the caps of answers; None: the model was asked not to think."""
    tools: str | None = Field(default=None, exclude_if=is_null)
    """How tools are offered: `template` (in the chat template's own field); None: in words in the prompt."""
    template_sha256: str | None
    """Of the chat template; None: plain text, or an endpoint that does not tell."""
    numerics: Numerics | None
    """None behind an endpoint: not known."""
    runtime: str | None
    """Name and version of the runtime; None: not known."""
    code_python: str | None
    """Version of the Python in the sandbox; None: code was not run."""

    @property
    def fingerprint(self) -> str:
        return sha256_of(self)


class SpeedConditions(Record):
    """What a speed depends on besides the model: all that a score does, and the machine."""

    score_fingerprint: str
    cpu_model: str | None
    cpu_flags: tuple[str, ...]
    allowed_cpus: AtLeastOne
    cpu_quota: Amount | None
    memory_bytes: Whole
    memory_limit_bytes: Whole | None
    threads: AtLeastOne
    omp_wait_policy: str
    load_mode: str
    flash_attention: str
    batch: AtLeastOne
    ubatch: AtLeastOne
    decode_tokens: AtLeastOne
    repeats: AtLeastOne

    @property
    def fingerprint(self) -> str:
        return sha256_of(self)


def differences(before: Record, now: Record) -> tuple[str, ...]:
    """Names of the conditions that differ, with both values: `max_tokens.code: 768 -> 512`."""
    return tuple(_differences(before.model_dump(mode="json"), now.model_dump(mode="json"), ""))


def _differences(before: Any, now: Any, name: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in [*before, *(key for key in now if key not in before)]:
            found += _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if before == now else [f"{name}: {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
