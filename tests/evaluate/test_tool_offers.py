"""Tools in a conversation: by the template's own field, in words where it has none, and what calls come back."""

import json
from pathlib import Path
from typing import Any

import pytest

from dfqs.evaluate.likelihood import LikelihoodSession
from dfqs.evaluate.tool_offers import PROBE, shows_probe, template_field, told_in_words
from dfqs.evaluate.tools import find_calls
from dfqs.runtime.template import render_chat

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
WITH_FIELD = (
    "{% for tool in tools %}<tool>{{ tool.function | tojson }}</tool>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
WITHOUT_FIELD = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def test_whether_a_template_writes_tools_is_seen_and_not_asserted() -> None:
    asked = [{"role": "user", "content": "?"}]

    assert shows_probe(render_chat(WITH_FIELD, asked, tools=template_field(PROBE)))
    assert not shows_probe(render_chat(WITHOUT_FIELD, asked, tools=template_field(PROBE)))


def test_a_conversation_with_calls_can_be_told_in_words() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How is it in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "get_weather", "content": "snow", "tool_call_id": "1"},
    ]

    system, user, assistant, answer = told_in_words(messages, [WEATHER])

    assert system["role"] == "system"
    assert json.loads(system["content"].splitlines()[-1]) == WEATHER
    assert user == messages[0]
    assert json.loads(assistant["content"]) == {"name": "get_weather", "arguments": {"city": "Oslo"}}
    assert answer == {"role": "user", "content": "Answer of get_weather:\nsnow"}
    (both, _) = told_in_words([{"role": "system", "content": "Be brief."}, messages[0]], [WEATHER])
    assert both["content"].startswith("Be brief.\n\nYou can call")
    assert told_in_words(messages[:1], []) == messages[:1]


def test_a_model_without_a_tools_field_is_told_in_its_own_templates_form(tiny_deepseek4: Path) -> None:
    with LikelihoodSession(tiny_deepseek4, context_tokens=128, threads=1) as session:
        rendered = session.render_chat([{"role": "user", "content": "How is it in Oslo?"}], tools=[WEATHER])

    assert "<|im_start|>system\nYou can call these tools" in rendered
    assert '"name": "get_weather"' in rendered
    assert rendered.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>' * 2, 2),
        ('[{"name": "get_weather", "arguments": {}}, {"name": "get_weather", "parameters": {"city": "Bergen"}}]', 2),
        ('{"tool_calls": [{"function": {"name": "get_weather", "arguments": "{}"}}, {"name": "f", "args": {}}]}', 2),
        ('<function=get_weather>{"city": "Oslo"}</function>', 1),
        ("It is cold, and {no} call.", 0),
    ],
)
def test_every_call_of_an_answer_is_found(text: str, count: int) -> None:
    calls = list(find_calls(text, {"get_weather"}))

    assert len(calls) == count
    assert all(isinstance(call["arguments"], dict) for call in calls)
