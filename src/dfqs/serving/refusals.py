"""What a server says when it refuses, and whether that means that the prompt is longer than the context. Pure.

Only the forms listed here mean it; `docs/evaluation.md` has the same list. Everything else (a cancelled request, a
deadline, a full queue, no memory) can be otherwise a minute later.
"""

import json
import re
from dataclasses import dataclass

CONTEXT_STATUSES = (400, 413)
CONTEXT_TYPES = frozenset({"exceed_context_size_error"})
"""`error.type`: llama-server."""
CONTEXT_CODES = frozenset({"context_length_exceeded"})
"""`error.code`: OpenAI, llama-cpp-python, Groq, Mistral's and others' gateways."""
CONTEXT_SENTENCES = (
    # llama-server before it had a type of its own for it.
    r"(the )?request( \(\d+ tokens\))? exceeds the available context size( \(\d+ tokens\))?([.,;] .*)?\.?",
    # vLLM, DeepSeek, OpenRouter: type and code say "bad request" only.
    r"This (model|endpoint)'s maximum context length is \d+ tokens[.,] [Hh]owever, .*",
    r"The decoder prompt \(length \d+\) is longer than the maximum model length of \d+\..*",
    # SGLang.
    r"The input \(\d+ tokens\) is longer than the model's context length \(\d+ tokens\)\..*",
    r"Requested token count exceeds the model's maximum context length of \d+ tokens\..*",
    # Anthropic's OpenAI-compatible address.
    r"prompt is too long: \d+ tokens > \d+ maximum",
)
"""Whole messages of servers whose fields do not tell it."""
_SENTENCE = re.compile("|".join(f"(?:{sentence})" for sentence in CONTEXT_SENTENCES), re.DOTALL)
_MESSAGE_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as a server words it; what it does not say is empty."""

    status: int
    message: str
    type: str = ""
    code: str = ""


def read_refusal(status: int, body: bytes) -> Refusal:
    """Out of the body: `{"error": {...}}` or `{"error": "text"}`, the object itself, or plain text.

    Args:
        status: of HTTP; an error inside a stream that began well carries its own.
    """
    text = body.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    said = document.get("error", document) if isinstance(document, dict) else document
    if isinstance(said, str):
        return Refusal(status, said[:_MESSAGE_CHARACTERS])
    if not isinstance(said, dict):
        return Refusal(status, text[:200])
    message, code = said.get("message", said.get("detail")), said.get("code")
    if status < 400 and isinstance(code, int) and 400 <= code <= 599:
        status = code
    return Refusal(
        status,
        message[:_MESSAGE_CHARACTERS] if isinstance(message, str) else text[:200],
        _word(said.get("type")),
        _word(code),
    )


def is_context_refusal(refusal: Refusal) -> bool:
    """Whether it says that the prompt is longer than the context."""
    if refusal.status not in CONTEXT_STATUSES and refusal.status >= 400:
        return False
    if refusal.type in CONTEXT_TYPES or refusal.code in CONTEXT_CODES:
        return True
    # A stream that began well has no status to tell a refusal by: its sentence alone is not enough.
    return refusal.status in CONTEXT_STATUSES and _SENTENCE.fullmatch(refusal.message.strip()) is not None


def _word(value: object) -> str:
    return value[:100] if isinstance(value, str) else ""
