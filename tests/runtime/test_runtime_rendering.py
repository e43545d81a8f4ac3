"""A template that has no end, or no measure, costs its own process and not ours."""

import time

import pytest

from dfqs.errors import RuntimeFailure
from dfqs.runtime.rendering import Renderer, RenderLimits

USER = [{"role": "user", "content": "What is a sparse router?"}]
ECHO = "{{ messages[0].content }}"
TIGHT = RenderLimits(cpu_s=1, memory_bytes=96 << 20, text_characters=1 << 20)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(TIGHT)


ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ (10 ** (10 ** 9)) % 7 }}",
    "recursion in two macros": "{% macro a(n) %}{{ b(n) }}{{ b(n) }}{% endmacro %}{% macro b(n) %}"
    "{% if n %}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}",
}
GREEDY = {
    "a string of two billion": "{{ 'x' * 2000000000 }}",
    "a string doubled": "{% set s = namespace(x='0123456789') %}{% for i in range(40) %}{% set s.x = s.x ~ s.x %}"
    "{% endfor %}{{ s.x | length }}",
    "a list of two billion": "{{ ([0] * 2000000000) | length }}",
    "padding": "{{ '%2000000000d' % 1 }}",
    "a text beyond every context": "{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}",
    "centered": "{{ 'x' | center(2000000000) }}",
}
DEEP = {
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "ten thousand brackets": "{{ " + "(" * 10_000 + "1" + ")" * 10_000 + " }}",
    "ten thousand blocks": "{% if true %}" * 10_000 + "{% endif %}" * 10_000,
}


@pytest.mark.parametrize(
    "template", [*ENDLESS.values(), *GREEDY.values(), *DEEP.values()], ids=[*ENDLESS, *GREEDY, *DEEP]
)
def test_a_template_without_measure_is_ended_and_the_next_one_is_rendered(renderer: Renderer, template: str) -> None:
    with pytest.raises(RuntimeFailure, match=r"chat template (takes more than|failed)"):
        renderer.render(ECHO + template, USER)

    assert renderer.render(ECHO, USER) == USER[0]["content"]


def test_the_clock_on_the_wall_ends_it_where_the_machine_is_too_busy_for_the_other() -> None:
    renderer = Renderer(RenderLimits(cpu_s=60, wall_s=0.5))

    with pytest.raises(RuntimeFailure, match=r"takes more than 0\.5 s"):
        renderer.render(ENDLESS["nested loops"], USER)
    renderer.close()


def test_a_conversation_at_the_limit_of_every_context_is_rendered() -> None:
    renderer = Renderer()
    text = "four token words and so on é " * 140_000
    messages = [{"role": "user", "content": text}] * 2

    rendered = renderer.render("{% for m in messages %}{{ m.content | trim }}\n{% endfor %}", messages)

    assert len(rendered) == 2 * len(text)
    with pytest.raises(RuntimeFailure, match="more than 8,388,608 characters"):
        renderer.render("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", messages)
    renderer.close()


def test_a_request_to_stop_ends_a_rendering() -> None:
    renderer = Renderer()
    started = time.monotonic()

    def stop() -> None:
        if time.monotonic() - started > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        renderer.render(ENDLESS["nested loops"], USER, check_stop=stop)
    assert renderer.render(ECHO, USER) == USER[0]["content"]
    renderer.close()


def test_what_a_template_says_of_itself_comes_back_as_it_does_without_a_process(renderer: Renderer) -> None:
    with pytest.raises(RuntimeFailure, match="refuses this conversation: no"):
        renderer.render("{{ raise_exception('no') }}", USER)
    with pytest.raises(RuntimeFailure, match="drops the user message"):
        renderer.render("hello", USER)
    assert renderer.render("hello {{ bos_token }}", USER, {"bos_token": "<s>"}, check=False) == "hello <s>"
    for name in ("self", "template", "messages", "check"):
        with pytest.raises(RuntimeFailure, match="template"):
            renderer.render("{{ nothing.at.all }}", USER, {name: 1})
