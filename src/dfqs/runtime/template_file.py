"""A user's file of a chat template, read and tried on conversations of every kind before any model is loaded."""

from pathlib import Path

from dfqs.errors import RuntimeFailure, UsageError
from dfqs.runtime.given_template import GivenTemplate
from dfqs.runtime.rendering import Renderer, TemplateExcess
from dfqs.runtime.template_probes import PROBES
from dfqs.storage.documents import read_text

TEMPLATE_LIMIT_BYTES = 1 << 20
"""Honest ones have some kilobytes."""
_BYTE_ORDER_MARK = "\ufeff"


def read_template(path: Path | None) -> GivenTemplate | None:
    """The template in a file, tried; None for None.

    A byte order mark goes, and lines end in a line feed, so that every engine that renders it is given the same.

    Raises:
        UsageError: there is no such file, or it holds no template that writes down a conversation within what a
            template may take.
    """
    if path is None:
        return None
    text = read_text(path, TEMPLATE_LIMIT_BYTES, "chat template").removeprefix(_BYTE_ORDER_MARK)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise UsageError(f"{path} is empty; a chat template (Jinja) writes a conversation down for a model")
    if "\0" in text:
        raise UsageError(f"{path} is no chat template: it has a character NUL")
    given = GivenTemplate(text, path.name)
    _try(given)
    return given


def _try(given: GivenTemplate) -> None:
    """
    Raises:
        UsageError: no conversation of any kind can be written with it, or one takes too much.
    """
    renderer = Renderer()
    known = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": True}
    failures: list[RuntimeFailure | None] = []
    try:
        for messages, variables in PROBES:
            try:
                renderer.render(given.text, messages, {**known, **variables}, whose=given.whose)
                failure = None
            except TemplateExcess:
                raise
            except RuntimeFailure as error:
                failure = error
            if all(isinstance(message["content"], str) for message in messages):
                failures.append(failure)
        # One that asks for a system message, say, or for turns in another order, is one all the same.
        if all(failures) and failures[0] is not None:
            raise failures[0]
    except RuntimeFailure as error:
        raise UsageError(str(error)) from None
    finally:
        renderer.close()
