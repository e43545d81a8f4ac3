"""What a request may ask for: JSON of bounded form, and numbers that a server of this size has answers for.

llama-server looks at most of it itself, and some of it by recursion, or after it has taken the memory. It is looked at
here first, in one place and for every path.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dfqs.errors import FormatError
from dfqs.serving.http_head import HttpRefusal, RequestHead
from dfqs.storage.documents import parse_json

ALTERNATIVES_LIMIT = 100
"""Of likelier tokens beside each; every one is a hundred bytes of the answer, for each token."""
CONTAINERS_LIMIT, ITEMS_LIMIT = 100_000, 4_000_000
"""Brackets that open, and commas: parsed, each of them takes up to 60 bytes, whatever the body's own length."""
GRAMMAR_DEPTH_LIMIT = 64
"""Brackets in brackets: llama.cpp's reader of grammars calls itself for each, until its stack is full."""
PROMPTS_LIMIT = 256
"""In one request; each waits in llama-server as a request of its own, also when nobody waits for the answer."""
_ALTERNATIVES = ("n_probs", "logprobs", "top_logprobs")
_TOKENS = ("max_tokens", "max_completion_tokens", "n_predict", "max_output_tokens")
_CHOICES = ("n", "n_cmpl")
_PROMPTS = ("prompt", "content")
_TEXTS = ("messages", "prompt", "input", "content")
"""Where no rule stands for how to answer."""
_LARGEST = 2**31 - 1
_OF_OTHERS = ("cache_prompt", "n_cache_reuse", "id_slot")
"""Go on from what was computed for another request."""
_RANDOM_SEEDS = (None, -1, 2**32 - 1)
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True, slots=True)
class BodyRules:
    """Looks at bodies of requests.

    Args:
        choices: answers to one request, at most.
        max_tokens: of one answer.
        deterministic: leave out what would make an answer depend on chance, on the clock or on other requests.
    """

    choices: int = 1
    max_tokens: int = _LARGEST
    deterministic: bool = False

    def read(self, head: RequestHead, body: bytes) -> dict[str, Any] | None:
        """What a body says; None for one that is no JSON (a form with a file).

        Raises:
            HttpRefusal: it is not taken.
        """
        if (head.get("content-type") or "").lower().startswith("multipart/"):
            return None
        if body.count(b"[") + body.count(b"{") > CONTAINERS_LIMIT or body.count(b",") > ITEMS_LIMIT:
            raise HttpRefusal(400, "the body is a JSON document of more parts than any request has")
        try:
            document = parse_json(body)
        except FormatError as error:
            raise HttpRefusal(400, f"the body: {error}") from None
        if not isinstance(document, dict):
            raise HttpRefusal(400, "the body is no JSON object")
        self._check(document)
        return _settled(document) if self.deterministic else document

    def _check(self, document: Mapping[str, Any]) -> None:
        for name in _ALTERNATIVES:
            _within(document, name, ALTERNATIVES_LIMIT)
        for name in _TOKENS:
            _within(document, name, self.max_tokens, "tokens (--max-tokens)")
        for name in _CHOICES:
            _within(document, name, self.choices, "answers at once (--parallel)")
        for text in _grammars(document):
            if _depth(text) > GRAMMAR_DEPTH_LIMIT:
                raise HttpRefusal(
                    400, f"a grammar or a pattern has brackets in brackets, more than {GRAMMAR_DEPTH_LIMIT} deep"
                )
        for name in _PROMPTS:
            prompts = document.get(name)
            # A list of numbers is one prompt.
            if isinstance(prompts, list) and sum(not isinstance(each, int) for each in prompts) > PROMPTS_LIMIT:
                raise HttpRefusal(400, f"'{name}' has more than {PROMPTS_LIMIT} parts")


def _settled(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what chance, the clock or other requests would decide.

    Raises:
        HttpRefusal: the clock is asked to end the answer.
    """
    if (document.get("t_max_predict_ms") or 0) not in (0, -1):
        raise HttpRefusal(400, "'t_max_predict_ms' has the clock end an answer, which --deterministic does not allow")
    kept = {name: value for name, value in document.items() if name not in _OF_OTHERS}
    if kept.get("seed") in _RANDOM_SEEDS:
        kept.pop("seed", None)
    return kept


def _within(document: Mapping[str, Any], name: str, most: int, of_what: str = "") -> None:
    value = document.get(name)
    # What is no number is for the model's server to refuse: some take true for 1, or the number in quotes.
    if isinstance(value, int | float) and value > most:
        raise HttpRefusal(400, f"'{name}' is {value:,}; at most {most:,} {of_what}".rstrip())


def _grammars(document: Mapping[str, Any]) -> Iterator[str]:
    """Texts that are read as grammars: one of the request's own, and patterns of its schemas wherever they stand."""
    grammar = document.get("grammar")
    if isinstance(grammar, str):
        yield grammar
    waiting = [value for name, value in document.items() if name not in _TEXTS]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if isinstance(pattern := item.get("pattern"), str):
                yield pattern
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        if character in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif character in _CLOSING:
            depth = max(depth - 1, 0)
    return deepest
