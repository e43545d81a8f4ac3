"""What a chat template would do to the model's server, found out before that server meets it.

The server has a template engine of its own, in the process that holds the model and without a limit. So every template
of a model is rendered here first, under limits: once before the model is loaded, with conversations of every kind, and
then with each conversation that comes, since what a template costs can depend on what is said.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from dfqs.errors import FormatError, RuntimeFailure
from dfqs.model.spec import CHAT_TEMPLATE
from dfqs.records import parse_json
from dfqs.runtime.messages import MODELS_OWN, TemplateDropsMessage
from dfqs.runtime.rendering import Renderer, TemplateExcess
from dfqs.runtime.template_probes import PROBES, USER
from dfqs.serving.http_head import HttpRefusal, RequestHead

NO_TEMPLATE = (
    "this model has no chat template, so it cannot converse; /v1/completions continues a text with it, and "
    "--chat-template FILE serves it with a template"
)

_CHAT_PATHS = frozenset(
    f"{version}/{name}{counted}"
    for version in ("", "/v1")
    for name, counts in (
        ("chat/completions", ("", "/input_tokens")),
        ("responses", ("", "/input_tokens")),
        ("messages", ("", "/count_tokens")),
        ("apply-template", ("",)),
    )
    for counted in counts
)


def templates_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The chat templates in a model's metadata, the general one first; empty without that one."""
    general = metadata.get(CHAT_TEMPLATE)
    if not isinstance(general, str) or not general.strip():
        return ()
    named = [metadata[key] for key in metadata if key.startswith(f"{CHAT_TEMPLATE}.")]
    return (general, *(template for template in named if isinstance(template, str)))


class ChatInspection:
    """Renders the conversations of a server's clients before the server does.

    Args:
        templates: see `templates_of`.
        whose: they are, for messages.
    """

    def __init__(self, templates: Sequence[str], renderer: Renderer | None = None, *, whose: str = MODELS_OWN) -> None:
        self._whose = whose
        self.templates = tuple(templates)
        self.refusal = None if templates else NO_TEMPLATE
        """Why no conversation is answered, if none is."""
        self._renderer = renderer or Renderer()

    def probe(self) -> None:
        """Try the templates on conversations of every kind.

        Raises:
            TemplateExcess: one takes more time or memory than a template needs; the model must not be loaded.
        """
        for template in self.templates:
            for messages, variables in PROBES:
                self._render(template, messages, variables)
        if self.templates:
            try:
                self._renderer.render(self.templates[0], [USER], {"bos_token": "", "eos_token": ""}, whose=self._whose)
            except TemplateDropsMessage as error:
                self.refusal = f"{error.what}, so no conversation is answered"
            except TemplateExcess:
                raise
            except RuntimeFailure:
                # It asks for conversations of another kind; the server will tell.
                pass

    async def __call__(self, head: RequestHead, document: Mapping[str, Any]) -> None:
        """
        Raises:
            HttpRefusal, RuntimeFailure: the request is not for the model's server.
        """
        path = unquote(head.path)
        if path not in _CHAT_PATHS:
            return
        if self.refusal is not None:
            raise HttpRefusal(400, self.refusal)
        more = document.get("chat_template_kwargs")
        # The server lets these stand in for anything that it would tell the template itself.
        known = {"messages": _messages_of(document), "tools": document.get("tools", [])}
        known |= more if isinstance(more, dict) else {}
        messages = known.pop("messages")
        if not isinstance(messages, list):
            return
        failures = [await asyncio.to_thread(self._render, template, messages, known) for template in self.templates]
        # The server has a template of its own for tools, where the model has one.
        used = failures[1:] if known.get("tools") and len(failures) > 1 else failures[:1]
        if all(used) and used[0] is not None:
            raise used[0]

    def close(self) -> None:
        """End the process that renders."""
        self._renderer.close()

    def _render(self, template: str, messages: list[Any], variables: dict[str, Any]) -> RuntimeFailure | None:
        """Render a conversation as it came and, where that fails, as the server puts it in order for a template.

        Returns:
            Why it cannot be rendered here. What it would cost the server, whose engine takes other things amiss than
            ours, is then not known.

        Raises:
            TemplateExcess: the template takes too much.
        """
        variables = {"bos_token": "", "eos_token": "", **variables}
        try:
            self._renderer.render(template, messages, variables, check=False, whose=self._whose)
            return None
        except TemplateExcess:
            raise
        except RuntimeFailure as error:
            failure = error
        try:
            self._renderer.render(template, _in_order(messages), variables, whose=self._whose)
        except TemplateDropsMessage:
            return None
        except TemplateExcess:
            raise
        except RuntimeFailure:
            return failure
        return None


def _in_order(messages: list[Any]) -> list[dict[str, Any]]:
    """Messages with what templates expect: text for a content, objects for the arguments of a call."""
    ordered = []
    for message in messages:
        if not isinstance(message, dict):
            continue
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        calls = message.get("tool_calls")
        more = {"tool_calls": [_with_object(call) for call in calls]} if isinstance(calls, list) else {}
        ordered.append({**message, "content": content or "", **more})
    return ordered


def _with_object(call: Any) -> Any:
    """A call whose arguments are an object; clients send them as JSON in a string."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = parse_json(function["arguments"])
    except FormatError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _messages_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The conversation in any of the forms that the paths take."""
    found = document.get("messages", document.get("input", []))
    messages = [{"role": "user", "content": found}] if isinstance(found, str) else found
    opening = document.get("system", document.get("instructions"))
    first = [] if opening is None else [{"role": "system", "content": opening}]
    return [*first, *(m for m in messages if isinstance(m, dict))] if isinstance(messages, list) else first
