"""Tools in a conversation: by the template's own field, in words where it has none, and what calls come back."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfqs.evaluate.items import ItemSet, measure_items
from dfqs.evaluate.likelihood import LikelihoodSession
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.prompts import ToolItem, read_tool_set
from dfqs.evaluate.scores import Completion
from dfqs.evaluate.stages import TOOLS
from dfqs.evaluate.tool_offers import PROBE, shows_probe, template_field, told_in_words
from dfqs.evaluate.tools import find_calls
from dfqs.gguf import read_header
from dfqs.progress import Progress, no_progress
from dfqs.runtime.template import render_chat

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
WITH_FIELD = (
    "{% for tool in tools %}<tool>{{ tool.function | tojson }}</tool>{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
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
        ("<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>", 1),
        (
            '<｜DSML｜invoke name="get_weather"><｜DSML｜parameter name="city" string="true">7</｜DSML｜parameter>'
            "</｜DSML｜invoke>",
            1,
        ),
        ('function get_weather\n```json\n{"city": "Oslo"}\n```', 1),
        ('get_weather{"city": "Oslo"}', 1),
        ("It is cold, and {no} call.", 0),
    ],
)
def test_every_call_of_an_answer_is_found(text: str, count: int) -> None:
    calls = list(find_calls(text, {"get_weather"}))

    assert len(calls) == count
    assert all(isinstance(call["arguments"], dict) for call in calls)


def test_arguments_in_elements_are_values_unless_said_to_be_text() -> None:
    text = "<function=f><parameter=n>3</parameter><parameter=city>\nOslo\n</parameter></function>"
    said = '<invoke name="f"><parameter name="n" string="true">3</parameter></invoke>'

    assert [*find_calls(text, {"f"})] == [{"name": "f", "arguments": {"n": 3, "city": "Oslo"}}]
    assert [*find_calls(said, {"f"})] == [{"name": "f", "arguments": {"n": "3"}}]


class Recorder:
    """An answerer's answers, cut short, and what was asked."""

    def __init__(self, answerer: LocalAnswerer) -> None:
        self.answerer, self.info = answerer, answerer.info
        self.seen: list[tuple[str, Any, Completion]] = []

    def complete(self, prompt: str, max_tokens: int, progress: Progress = no_progress, tools: Any = ()) -> Completion:
        completion = self.answerer.complete(prompt, 2, progress, tools)
        self.seen.append((prompt, tools, completion))
        return completion


def with_template(model: Path, directory: Path, template: str) -> Path:
    """The same model with another template, filled up to the length of its own."""
    own = str(read_header(model).metadata["tokenizer.chat_template"]).encode()
    other = template.encode() + b"{#" + b" " * (len(own) - len(template) - 4) + b"#}"
    path = directory / "other.gguf"
    path.write_bytes(model.read_bytes().replace(own, other, 1))
    return path


@pytest.mark.thorough
@pytest.mark.parametrize("text", ["<function=f>" * 5000, "get_weather" + " " * 100_000 + "{", "<parameter=" * 9000])
def test_an_answer_of_marks_takes_no_time(text: str) -> None:
    began = time.process_time()

    list(find_calls(text, {"get_weather", "f"}))

    assert time.process_time() - began < 2


def test_a_template_with_a_field_for_tools_gets_them_there_and_the_message_alone(
    tiny_deepseek4: Path, tmp_path: Path
) -> None:
    with LocalAnswerer(with_template(tiny_deepseek4, tmp_path, WITH_FIELD), threads=1, max_context=512) as answerer:
        assert answerer.info.offers_tools
        tools = ItemSet(TOOLS, read_tool_set(), 1)
        asked: Any = Recorder(answerer)
        store: Any = SimpleNamespace(get=lambda *_: None, append=lambda *_: None)
        measure_items(asked, store, TOOLS, [tools], None, no_progress)

    (item,) = tools.items
    assert isinstance(item, ToolItem)
    ((prompt, offered, completion),) = asked.seen
    assert prompt == item.question
    assert offered == item.tools
    # The schema was in the prompt: it is longer than the question by more than a frame.
    assert completion.prompt_tokens is not None and completion.prompt_tokens > 100


def test_a_template_without_the_field_has_them_in_the_prompt(tiny_deepseek4: Path) -> None:
    tools = ItemSet(TOOLS, read_tool_set(), 1)
    with LocalAnswerer(tiny_deepseek4, threads=1, max_context=512) as answerer:
        assert not answerer.info.offers_tools

    assert '"name": "get_weather"' in tools.prompt(tools.items[0])
