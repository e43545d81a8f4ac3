"""Chat templates: Jinja from inside the model file, rendered in a sandbox.

A template is a program from outside. It runs in Jinja's immutable sandbox, in the worker process, with no loader and
only the functions that model templates are written against (as Hugging Face's `apply_chat_template` offers them).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dfqs.errors import RuntimeFailure, printable


class TemplateRefusal(jinja2.TemplateError):
    """The template itself called `raise_exception`."""


def render_chat(
    template: str, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True, **variables: Any
) -> str:
    """Text of a conversation.

    Raises:
        RuntimeFailure: the template is broken, or refuses these messages.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt, **variables
        )
    except TemplateRefusal as error:
        raise RuntimeFailure(f"the model's chat template refuses this conversation: {printable(str(error))}") from None
    except Exception as error:
        # A template can raise anything that the expressions in it can raise.
        detail = printable(f"{type(error).__name__}: {error}")
        raise RuntimeFailure(f"the model's chat template failed ({detail}); --raw does without it") from None


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **_options: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
