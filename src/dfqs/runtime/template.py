"""Chat templates: Jinja from inside the model file, rendered in a sandbox.

A template is a program from outside. It runs in Jinja's immutable sandbox with no loader and only the functions that
model templates are written against (as Hugging Face's `apply_chat_template` and llama.cpp's server offer them). The
sandbox bounds what a template can reach, and not what it can cost: `dfqs.runtime.rendering` runs what is here in a
process of its own, under limits of time and memory.
"""

import html
import json
import re
import string
from datetime import datetime
from typing import Any, Literal, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dfqs.errors import RuntimeFailure, printable
from dfqs.runtime.messages import Conversation, TemplateDropsMessage, TemplateFailure

THINKING_MARKS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|channel|>analysis", "<|end|>"),
)
"""What families of models write before and after their reasoning."""

_THINKING_SWITCH = re.compile(r"/(?:no_)?think\b")
"""A word to the template and not to the model: templates take it out of the system message."""
_NO_SPACE = {ord(character): None for character in string.whitespace + "\x85\xa0\u2028\u2029\u3000"}
_PART = re.compile(r"""["']type["']:\s*["']text["']""")


class TemplateRefusal(jinja2.TemplateError):
    """The template itself called `raise_exception`."""


class GenerationTag(Extension):
    """`{% generation %}`: marks what an assistant said, for training. The text inside is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - so declared by Jinja

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render_chat(template: str, messages: Conversation, *, add_generation_prompt: bool = True, **variables: Any) -> str:
    """Text of a conversation, as the template gives it; nothing is said of what it left out.

    Raises:
        RuntimeFailure: the template is broken, or refuses these messages.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt, **variables
        )
    except TemplateRefusal as error:
        raise TemplateFailure(f"refuses this conversation: {printable(str(error))}") from None
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        # A template can raise anything that the expressions in it can raise.
        detail = printable(f"{type(error).__name__}: {error}", 200)
        raise TemplateFailure(f"failed ({detail}); --raw does without it") from None


def render_conversation(
    template: str, messages: Conversation, *, add_generation_prompt: bool = True, **variables: Any
) -> str:
    """Text of a conversation in which the model sees what it was told.

    Templates of models that also see pictures loop over parts of a content, and take a plain text for an empty list;
    they get the text as one part. Templates that know no system message get it at the head of the first user message.
    (llama.cpp's server does both, so that all verbs give a model the same prompt.)

    Raises:
        RuntimeFailure: the template is broken, refuses these messages, or leaves out what the user or the system said.
    """
    variables["add_generation_prompt"] = add_generation_prompt
    failures: list[RuntimeFailure] = []
    for form in (_as_given, _in_parts, _without_system):
        given = form(messages)
        if given is None:
            continue
        try:
            text = render_chat(template, given, **variables)
        except RuntimeFailure as error:
            failures.append(error)
            continue
        missing = dropped_role(text, messages)
        if missing is None and (form is not _in_parts or not _shows_parts(text)):
            return text
        role = missing or "user"
        way_out = "--raw does without the template" if role == "user" else "say it in the prompt, or do without it"
        failures.append(TemplateDropsMessage(role, way_out))
    # The first says what the template makes of the conversation as it was given.
    raise failures[0]


def dropped_role(rendered: str, messages: Conversation) -> str | None:
    """The role (`user`, `system`) of the first message whose text is not in `rendered`; None: all are there.

    What an assistant said is not looked for: templates leave out its reasoning on purpose.
    """
    whole: str | None = None
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "system") or not isinstance(content, str):
            continue
        if role == "system":
            content = _THINKING_SWITCH.sub("", content)
        if content.strip() in rendered:
            continue
        whole = _without_space(rendered) if whole is None else whole
        forms = (content, json.dumps(content, ensure_ascii=False)[1:-1], html.escape(content))
        if not any(_without_space(form) in whole for form in forms):
            return str(role)
    return None


def observe_thinking(tail: str) -> Literal["open", "closed"] | None:
    """What a template says about thinking in what it writes after the last thing that the user said.

    Args:
        tail: the rendered prompt from the end of the user's text on, with the opening of the answer.

    Returns:
        `open`: the answer begins inside of a thought; `closed`: a thought was opened and ended for the model, so that
        it does not think; None: no mark, and the model decides for itself.
    """
    last, state = -1, None
    for opening, ending in THINKING_MARKS:
        begun = tail.rfind(opening)
        # An end without a beginning counts (some close a thought that was never written); `<|end|>` ends turns too.
        ended = tail.rfind(ending, begun + len(opening) if begun >= 0 else 0)
        if begun < 0 and ending == "<|end|>":
            continue
        if max(begun, ended) > last:
            last, state = max(begun, ended), "closed" if ended >= 0 else "open"
    return cast("Literal['open', 'closed'] | None", state)


def _as_given(messages: Conversation) -> Conversation | None:
    return messages


def _in_parts(messages: Conversation) -> Conversation | None:
    if not any(isinstance(message.get("content"), str) for message in messages):
        return None
    return [
        {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content := message.get("content"), str)
        else message
        for message in messages
    ]


def _without_system(messages: Conversation) -> Conversation | None:
    if len(messages) < 2 or messages[0].get("role") != "system" or messages[1].get("role") != "user":
        return None
    system, user = messages[0].get("content"), messages[1].get("content")
    if not isinstance(system, str) or not isinstance(user, str):
        return None
    return [{**messages[1], "content": f"{system}\n{user}"}, *messages[2:]]


def _shows_parts(rendered: str) -> bool:
    """Whether a template that takes text printed the list of parts as it stands."""
    return _PART.search(rendered) is not None


def _without_space(text: str) -> str:
    """Templates trim, indent and wrap. (Not `split`: a word of a long prompt would become an object of 50 bytes.)"""
    return text.translate(_NO_SPACE)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes for HTML, and a model was not trained on \u003c.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
