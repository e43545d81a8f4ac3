"""Chat templates are programs from outside: they render, or they fail; they never reach anything."""

import pytest

from dfqs.errors import RuntimeFailure
from dfqs.runtime.template import render_chat

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hi"}]


def test_a_conversation_is_rendered_as_the_template_says() -> None:
    assert render_chat(CHATML, MESSAGES) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render_chat(CHATML, MESSAGES, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_variables_and_helpers_that_templates_rely_on_are_there() -> None:
    template = "{{ bos_token }}{% if enable_thinking is false %}quiet {% endif %}{{ messages | tojson }}{% break %}"
    template = "{% for m in messages %}" + template + "{% endfor %}"

    rendered = render_chat(template, MESSAGES, bos_token="<s>", enable_thinking=False)

    assert rendered == '<s>quiet [{"role": "user", "content": "Hi"}]'


def test_blocks_leave_no_blank_lines_as_hugging_face_renders_them() -> None:
    assert render_chat("{% if true %}\n  a\n  {% endif %}\nb", MESSAGES) == "  a\nb"


def test_a_template_that_refuses_is_quoted() -> None:
    template = "{{ raise_exception('roles must alternate \x1b[31m') }}"

    with pytest.raises(RuntimeFailure, match=r"refuses this conversation: roles must alternate \\x1b\[31m"):
        render_chat(template, MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages[0].update({'content': 'changed'}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ '%s'.__format__.__self__ }}{{ ('{0.__class__}').format(1).__len__.__self__.__class__ }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{% if",
        "{{ undefined_function() }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_breaks_out_or_breaks_is_an_error_that_names_the_way_around(template: str) -> None:
    with pytest.raises(RuntimeFailure, match=r"the model's chat template failed \(.*\); --raw does without it"):
        render_chat(template, MESSAGES)
