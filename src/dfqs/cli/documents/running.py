"""What `run`, `chat` and `serve` print."""

from dataclasses import asdict
from typing import Literal, Self

from pydantic import Field, model_validator

from dfqs.records import Document, Record, Text, is_null
from dfqs.runtime.chat import ChatSession
from dfqs.runtime.loading import StreamFigures
from dfqs.runtime.requests import Answer, Sampling
from dfqs.serving.server import Listening, ServerSettings


class RunSettings(Record):
    """The conditions of an answer."""

    runtime: Text
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    chat_template: bool
    context_tokens: int
    threads: int
    omp_wait_policy: str
    n_ubatch: int | None = None
    """Tokens of a prompt computed at a time. Null in documents that were written before it was told, as all below."""
    flash_attention: str | None = None
    type_k: str | None = None
    """Of the cache of keys."""
    type_v: str | None = None
    tuned: bool | None = None
    """Whether `dfqs tune` found them."""
    repeat_penalty: float | None = None
    grammar: Text | None = None
    """Its text; null: none."""
    stop: tuple[Text, ...] | None = None
    thinking: bool | None = None
    """As the template was asked; null: not asked."""
    thinking_tokens: int | None = None
    """That a thought might take; null: no limit of its own."""
    template_sha256: str | None = Field(default=None, exclude_if=is_null)
    """Of a chat template that was given in place of the model's own; told only where one was."""


class RunDocument(Document):
    """An answer with the conditions it was made under. Times in seconds; what was not measured is null."""

    schema_: Literal["dfqs.run/1"] = Field(default="dfqs.run/1", alias="schema")
    model: Text
    path: Text
    text: Text
    finish_reason: str
    context_full: bool
    prompt_tokens: int
    reused_tokens: int
    """Of the prompt, not computed again."""
    generated_tokens: int
    load_s: float
    prompt_s: float
    decode_s: float
    prompt_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    streaming: StreamFigures | None
    """Of a model that is larger than its memory."""
    settings: RunSettings

    @classmethod
    def of(cls, session: ChatSession, answer: Answer, sampling: Sampling, *, raw: bool) -> "RunDocument":
        """One answer."""
        info = session.info
        return cls(
            model=session.model.name,
            path=session.model.path,
            text=answer.text,
            finish_reason=answer.finish_word,
            context_full=answer.finish_reason == "context",
            prompt_tokens=answer.prompt_tokens,
            reused_tokens=answer.reused_tokens,
            generated_tokens=answer.generated_tokens,
            load_s=info.load_s,
            prompt_s=answer.prompt_s,
            decode_s=answer.decode_s,
            prompt_tokens_per_s=answer.prompt_tokens_per_s,
            decode_tokens_per_s=answer.decode_tokens_per_s,
            streaming=session.read_figures(),
            settings=RunSettings(
                runtime=info.runtime,
                **asdict(sampling),
                chat_template=not raw,
                context_tokens=info.context_tokens,
                threads=info.threads,
                omp_wait_policy=info.omp_wait_policy,
                n_ubatch=info.settings.n_ubatch,
                flash_attention=info.settings.flash_attention,
                type_k=info.settings.type_k,
                type_v=info.settings.type_v,
                tuned=session.tuned,
                template_sha256=info.given_template_sha256,
            ),
        )


class SpokenMessage(Record):
    """What was said, and by whom."""

    role: Literal["user", "assistant"]
    content: str


class ConversationDocument(Document):
    """A conversation that `/save` of `dfqs chat` wrote down: questions and answers in turn."""

    schema_: Literal["dfqs.conversation/1"] = Field(default="dfqs.conversation/1", alias="schema")
    system: str | None
    messages: tuple[SpokenMessage, ...]

    @model_validator(mode="after")
    def _in_turn(self) -> Self:
        if [message.role for message in self.messages] != ["user", "assistant"] * (len(self.messages) // 2):
            raise ValueError("questions and answers do not take turns")
        return self


class ServeDocument(Document):
    """Where a server is, and what it was started with."""

    schema_: Literal["dfqs.serve/1"] = Field(default="dfqs.serve/1", alias="schema")
    url: str
    """Of the web page."""
    api: str
    """Of the OpenAI-compatible API."""
    other_urls: tuple[str, ...]
    """Where other machines reach it."""
    chat: bool
    """The model's template can be used."""
    model: Text
    path: Text
    context_tokens: int
    parallel: int
    threads: int
    omp_wait_policy: str
    cache_bytes: int | None = None
    """For experts that stream from disk; null where all weights are in memory."""
    template_sha256: str | None = Field(default=None, exclude_if=is_null)
    """Of a chat template that was given in place of the model's own; told only where one was."""
    deterministic: bool | None = Field(default=None, exclude_if=is_null)
    """Each request is computed by itself and from its beginning. Null in documents that were written before it was
    told."""
    restored_tokens: int | None = Field(default=None, exclude_if=is_null)
    """Of prompts that an earlier server kept; told where they are (`--prompt-cache`)."""
    restore_s: float | None = Field(default=None, exclude_if=is_null)
    """Reading them, in seconds."""

    @classmethod
    def of(cls, listening: Listening, settings: ServerSettings, cache_bytes: int | None = None) -> "ServeDocument":
        """A server that listens."""
        return cls(
            url=listening.url,
            api=f"{listening.url}/v1",
            other_urls=tuple(listening.other_urls),
            chat=listening.chat_refusal is None,
            model=settings.alias,
            path=settings.path,
            context_tokens=settings.context_tokens,
            parallel=settings.parallel,
            threads=listening.threads,
            omp_wait_policy=listening.omp_wait_policy,
            cache_bytes=cache_bytes,
            template_sha256=settings.given_template.sha256 if settings.given_template else None,
            deterministic=settings.deterministic,
            restored_tokens=None if listening.restored is None else listening.restored.tokens,
            restore_s=None if listening.restored is None else listening.restored.seconds,
        )
