"""How a model is told of tools: in its chat template's own field, or in words where the template has none.

Tools are functions as everybody writes them: `{"name", "description", "parameters"}`, the last a JSON Schema.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dfqs.errors import RuntimeFailure
from dfqs.runtime.messages import Conversation

if TYPE_CHECKING:
    # Only its name is needed here.
    from dfqs.runtime.model import Model

Tool = Mapping[str, Any]

_PROBE = "dfqs_probe_of_tools"
PROBE: tuple[Tool, ...] = (
    {
        "name": _PROBE,
        "description": "Nothing.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
)
"""A tool that shows whether a template writes tools at all."""

IN_WORDS = """\
You can call these tools (one JSON object a line, with the JSON Schema of its parameters). To call one, reply only \
with the call, as JSON in the form {"name": ..., "arguments": {...}}. If none is needed, answer in plain words.

"""


def template_field(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The variable `tools` of chat templates: OpenAI's form, which templates are written for."""
    return [{"type": "function", "function": dict(tool)} for tool in tools]


def shows_probe(rendered: str) -> bool:
    """Whether a template that was given `PROBE` wrote it."""
    return _PROBE in rendered


def takes_tools(model: "Model") -> bool:
    """Whether the model's chat template writes the tools that it is given."""
    if model.chat_template() is None:
        return False
    try:
        asked = [{"role": "user", "content": "?"}]
        return shows_probe(model.apply_chat_template(asked, tools=template_field(PROBE)))
    except RuntimeFailure:
        return False


def told_in_words(messages: Conversation, tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """A conversation for a template that knows no tools: they stand in the system message, calls are what the
    assistant said, and a tool's answer is a message of the user's."""
    found = [_in_words(message) for message in messages]
    if tools:
        offer = IN_WORDS + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        if found and found[0]["role"] == "system":
            found[0]["content"] = f"{found[0]['content']}\n\n{offer}"
        else:
            found.insert(0, {"role": "system", "content": offer})
    return found


def _in_words(message: Mapping[str, Any]) -> dict[str, Any]:
    content = str(message.get("content") or "")
    if message["role"] == "tool":
        return {"role": "user", "content": f"Answer of {message.get('name') or 'the tool'}:\n{content}"}
    calls = [
        json.dumps({key: call["function"][key] for key in ("name", "arguments")}, ensure_ascii=False)
        for call in message.get("tool_calls") or ()
    ]
    return {"role": message["role"], "content": "\n".join(filter(None, (content, *calls)))}
