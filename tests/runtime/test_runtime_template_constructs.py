"""Every construct that templates of models use, each in a small template of ours.

The text expected of 21 of them is what llama-server's own engine makes of them too (compared once with the
`/apply-template` of the pinned wheel); it cannot be asked for the other three, as it does not start with them.
"""

import pytest

from dfqs.runtime.template import render_chat

MESSAGES = [
    {"role": "user", "content": "Be <brief>."},
    {"role": "user", "content": '  Name "three" é  '},
    {"role": "assistant", "content": "<think>hm</think>Red"},
    {"role": "user", "content": "More"},
]
CONSTRUCTS = {
    "{% for m in messages %}{% generation %}{{ m.role[0] }}{% endgeneration %}{% endfor %}": "uuau",
    "{%- for m in messages -%} {%- generation -%} {{ m.role }} {%- endgeneration -%} {%- endfor -%}": (
        "useruserassistantuser"
    ),
    "{{ messages | length }}{{ messages[1:] | length }}{{ messages[-1]['content'] }}": "43More",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% if loop.last %}{% break %}{% endif %}"
    "{{ loop.index }}{{ loop.index0 }}{% endfor %}": "2132",
    "{% set ns = namespace(n=0, seen=false) %}{% for m in messages if m.role == 'user' %}"
    "{% set ns.n = ns.n + 1 %}{% set ns.seen = true %}{% endfor %}{{ ns.n }} {{ ns.seen }}": "3 True",
    "{{ messages[2].content.split('</think>')[-1] }}|{{ messages[1].content.strip() }}|"
    "{{ messages[1].content | trim }}": 'Red|Name "three" é|Name "three" é',
    "{{ 'a-b'.upper() }}{{ 'Xy'.lower() }}{{ 'ab'.replace('a', 'c') }}{{ 'ab'.startswith('a') }}"
    "{{ 'ab'.endswith('a') }}{{ 'abc'.rstrip('c') }}{{ 'abc'.lstrip('a') }}{{ 'a b'.title() }}": (
        "A-BxycbTrueFalseabbcA B"
    ),
    "{{ messages[0] | tojson }}": '{"role": "user", "content": "Be <brief>."}',
    "{{ messages[1].content | tojson }}": '"  Name \\"three\\" é  "',
    "{{ {'a': [1, 2], 'b': none} | tojson(indent=2) }}": '{\n  "a": [\n    1,\n    2\n  ],\n  "b": null\n}',
    "{% macro say(m, end='!') %}{{ m.role }}{{ end }}{% endmacro %}"
    "{{ say(messages[0]) }}{{ say(messages[1], end='?') }}": ("user!user?"),
    "{% if tools is defined and tools %}t{% else %}no tools{% endif %}{{ 'd' if documents else '-' }}": "no tools-",
    "{{ (messages | selectattr('role', 'equalto', 'user') | list) | length }}"
    "{{ messages | map(attribute='role') | join(',') }}": "3user,user,assistant,user",
    "{% if messages[0].content is string and messages[0].content is not mapping %}s{% endif %}"
    "{% if messages is iterable and messages[0] is mapping %}i{% endif %}"
    "{% if 3 is divisibleby 3 %}d{% endif %}": "sid",
    "{{ nothing | default('x') }}{{ '' | default('y', true) }}{{ 2 if nothing is not defined else 1 }}": "xy2",
    "{{ 7 // 2 }}{{ 7 % 2 }}{{ 2 * 3 + 1 }}{{ 'ab' ~ 1 }}{{ 'a' in 'abc' }}{{ not true }}": "317ab1TrueFalse",
    "{%- for k, v in {'a': 1, 'b': 2}.items() %}"
    "{{ k }}{{ v }}{% endfor %}{{ {'a': 5}.get('a') }}{{ {}.get('z', 0) }}": ("a1b250"),
    "{% for i in range(2, 8, 2) %}{{ i }}{% endfor %}{{ range(3) | list | length }}": "2463",
    "  {% if true %}\n  kept\n  {% endif %}\n{# gone #}\nlast": "  kept\nlast",
    "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}": "<s>Be <brief>.</s>",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set block %}text{% endset %}{{ block }}": "12text",
    "{{ ['b', 'a'] | sort | first }}{{ [1, 2] | last }}{{ 'abc'[::-1] }}{{ 'abc'[:2] }}{{ 'x' * 3 }}": "a2cbaabxxx",
    "{{ strftime_now('%Y') | length }}{{ '5' | int + 1 }}{{ 'a\nb' | indent(2) }}": "46a\n  b",
    "{% if not (messages | length) %}{{ raise_exception('empty') }}{% endif %}"
    "{% if add_generation_prompt %}go{% endif %}": "go",
}


@pytest.mark.parametrize("template", CONSTRUCTS)
def test_a_construct_gives_the_text_that_a_model_was_trained_on(template: str) -> None:
    assert render_chat(template, MESSAGES, bos_token="<s>", eos_token="</s>") == CONSTRUCTS[template]
