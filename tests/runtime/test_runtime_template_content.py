"""What a rendered prompt holds: everything that the model was told, and what it says about thinking."""

import pytest

from dfqs.errors import RuntimeFailure
from dfqs.runtime.template import observe_thinking, render_conversation

USER = [{"role": "user", "content": " What is a sparse router? "}]
BOTH = [{"role": "system", "content": "Be brief."}, *USER]
PARTS = "{% for m in messages %}{% for part in m.content %}{{ part['text'] }}{% endfor %}|{% endfor %}"
PARTS_BY_TYPE = (
    "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text | trim }}"
    "{% endif %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("template", [PARTS, PARTS_BY_TYPE])
def test_a_template_that_loops_over_parts_of_a_content_gets_the_text_as_a_part(template: str) -> None:
    rendered = render_conversation(template, BOTH)

    assert "What is a sparse router?" in rendered
    assert "Be brief." in rendered


def test_a_template_that_takes_both_forms_gets_plain_text() -> None:
    template = "{% for m in messages %}{{ m.content if m.content is string else 'a list' }}{% endfor %}"

    assert render_conversation(template, USER) == USER[0]["content"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|{{ m.role }}|>{% endfor %}<|assistant|>",
        "<|user|>{{ messages[0].contents }}",
        "{% if messages[0].role == 'human' %}{{ messages[0].content }}{% endif %}",
        "{{ messages[-1].content[:8] }}",
        "",
    ],
)
def test_a_prompt_that_the_model_would_not_see_is_not_answered(template: str) -> None:
    with pytest.raises(RuntimeFailure, match="template drops the user message; --raw does without the template"):
        render_conversation(template, USER)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}"
        "{% endfor %}",
    ],
)
def test_a_system_message_that_the_template_does_not_know_is_said_by_the_user(template: str) -> None:
    assert render_conversation(template, BOTH) == "Be brief.\n" + USER[0]["content"]


def test_a_system_message_that_goes_nowhere_is_not_dropped_in_silence() -> None:
    template = "{% for m in messages if m.role == 'user' %}{{ m.content.split('\n')[-1] }}{% endfor %}"

    assert render_conversation(template, USER)
    with pytest.raises(RuntimeFailure, match="template drops the system message; say it in the prompt"):
        render_conversation(template, BOTH)


@pytest.mark.parametrize(
    "expression",
    [
        "content | trim",
        "content | tojson",
        "content | e",
        "content | upper | lower | replace('what', 'What')",
        "content.strip().split(' ') | join('\n')",
    ],
)
def test_a_text_that_is_trimmed_wrapped_or_quoted_is_there(expression: str) -> None:
    template = "{% for m in messages %}{% set content = m.content %}{{ " + expression + " }}{% endfor %}"

    assert "router" in render_conversation(template, USER)


def test_a_switch_for_the_template_need_not_reach_the_model() -> None:
    template = "{{ messages[0].content.replace('/no_think', '').rstrip() }}{{ messages[1].content }}"
    messages = [{"role": "system", "content": "Be brief. /no_think"}, *USER]

    assert render_conversation(template, messages).startswith("Be brief. What")


def test_the_reasoning_of_earlier_answers_may_be_left_out() -> None:
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    messages = [*USER, {"role": "assistant", "content": "<think>hm</think>Blue."}, {"role": "user", "content": "Why?"}]

    assert "hm" not in render_conversation(template, messages)


def test_the_first_failure_is_the_one_that_is_told() -> None:
    template = "{% if messages[0].content is string %}{{ raise_exception('no text') }}{% else %}{{ 1 / 0 }}{% endif %}"

    with pytest.raises(RuntimeFailure, match="refuses this conversation: no text"):
        render_conversation(template, USER)


@pytest.mark.parametrize(
    ("tail", "state"),
    [
        ("<|im_end|>\n<|im_start|>assistant\n", None),
        ("<|im_end|>\n<|im_start|>assistant\n<think>\n", "open"),
        ("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "closed"),
        ("<|Assistant|></think>", "closed"),
        ("[/INST][THINK]", "open"),
        ("<seed:bos>assistant\n<seed:think>", "open"),
        ("<|END_OF_TURN_TOKEN|><|START_RESPONSE|>", None),
        ("<|START_THINKING|><|END_THINKING|>", "closed"),
        ("<|end|><|start|>assistant", None),
        ("<|end|><|start|>assistant<|channel|>analysis<|message|>", "open"),
        ("</think><|assistant|><think>", "open"),
    ],
)
def test_what_a_prompt_says_about_thinking_is_seen(tail: str, state: str | None) -> None:
    assert observe_thinking(tail) == state
