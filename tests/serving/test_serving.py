"""What `serve` does before and around the model's server: templates tried, pages changed, addresses told."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from dfqs.errors import FormatError, RuntimeFailure
from dfqs.runtime.rendering import Renderer, RenderLimits, TemplateExcess
from dfqs.serving.addresses import urls_of
from dfqs.serving.front import FrontLimits
from dfqs.serving.http_head import HttpRefusal, parse_request_head
from dfqs.serving.inspection import NO_TEMPLATE, ChatInspection, templates_of
from dfqs.serving.page import own_pages, with_tools_off
from front_server import JSON_POST, fronted, status

PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TIGHT = RenderLimits(cpu_s=1, memory_bytes=96 << 20)


def ask(inspection: ChatInspection, path: str, document: dict[str, Any]) -> None:
    head = parse_request_head(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    asyncio.run(inspection(head, document))


@pytest.mark.parametrize(
    "template",
    [
        LOOP,
        "{% if tools %}" + LOOP + "{% endif %}" + PLAIN,
        "{% if messages[-1].role == 'user' and messages | length > 2 %}" + LOOP + "{% endif %}" + PLAIN,
        "{% if messages[0].content is not string %}{{ 'x' * 2000000000 }}{% endif %}" + PLAIN,
    ],
)
def test_a_template_that_would_hang_the_server_is_found_before_the_model_is_loaded(template: str) -> None:
    inspection = ChatInspection((template,), Renderer(TIGHT))

    with pytest.raises(TemplateExcess, match="takes more than"):
        inspection.probe()
    inspection.close()


def test_a_template_that_takes_too_much_on_one_word_only_is_found_when_the_word_comes() -> None:
    # Of memory, which is found out at once; that a loop is ended as well is shown above.
    inspection = ChatInspection(
        ("{% if 'magic' in messages[-1].content %}{{ 'x' * 2000000000 }}{% endif %}" + PLAIN,), Renderer(TIGHT)
    )
    inspection.probe()

    for path in ("/v1/chat/completions", "/apply-template", "/v1/chat/complet%69ons", "/v1/messages?beta=1"):
        ask(inspection, path, {"messages": [{"role": "user", "content": "hello"}]})
        with pytest.raises(TemplateExcess):
            ask(inspection, path, {"messages": [{"role": "user", "content": "magic"}]})
    with pytest.raises(TemplateExcess):
        ask(inspection, "/v1/responses", {"input": "magic"})
    hello = {"messages": [{"role": "user", "content": "hello"}]}
    with pytest.raises(TemplateExcess):
        kwargs = {"messages": [{"role": "user", "content": "magic"}]}
        ask(inspection, "/v1/chat/completions", {**hello, "chat_template_kwargs": kwargs})
    odds: list[Any] = [{"messages": 7}, 7, {"add_generation_prompt": []}]
    for odd in odds:
        ask(inspection, "/v1/chat/completions", {**hello, "chat_template_kwargs": odd})
    for untried in ({"self": 1}, {"template": "x"}):
        with pytest.raises(RuntimeFailure, match="chat template"):
            ask(inspection, "/v1/chat/completions", {**hello, "chat_template_kwargs": untried})
    bodies: list[Any] = [
        {"messages": 7},
        {"messages": [7]},
        {"input": {}},
        {"system": [], "messages": [{"role": None}]},
        {},
    ]
    for body in bodies:
        # In a sentence, where there is nothing that the template could make a prompt of.
        with contextlib.suppress(RuntimeFailure):
            ask(inspection, "/v1/messages", body)
    # Nothing is rendered for it.
    ask(inspection, "/v1/completions", {"prompt": "magic"})
    inspection.close()


@pytest.mark.parametrize(
    "stumble",
    [
        "{{ [].append(1) }}",
        "{{ 'x'.unknown() }}",
        "{{ 1 + 'x' }}",
        "{% if 'magic' in messages[-1].content %}{{ 1 / 0 }}{% endif %}",
    ],
)
def test_a_conversation_that_cannot_be_tried_here_does_not_reach_the_server(stumble: str) -> None:
    """The server's engine forgives what ours does not, and would go on to the loop."""
    inspection = ChatInspection((stumble + "{{ messages[0].content }}",), Renderer(TIGHT))
    inspection.probe()

    with pytest.raises(RuntimeFailure, match="template failed"):
        ask(inspection, "/v1/chat/completions", {"messages": [{"role": "user", "content": "magic"}]})
    inspection.close()


def test_conversations_that_the_server_puts_in_order_for_a_template_reach_it() -> None:
    strict = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content + '' }}{% for c in m.tool_calls or [] %}{% for k, v in c.function.arguments | items %}{{ k }}"
        "{% endfor %}{% endfor %}{% endfor %}"
    )
    inspection = ChatInspection((strict,))
    call = {"type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}
    user = {"role": "user", "content": "hello"}
    for messages in (
        [user],
        [{"role": "system", "content": "Be brief."}, user],
        [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        [user, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "12"}],
    ):
        ask(inspection, "/v1/chat/completions", {"messages": messages})
    inspection.close()


def test_the_template_that_the_server_takes_for_a_conversation_is_the_one_that_must_render() -> None:
    no_tools = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + PLAIN
    inspection = ChatInspection((no_tools, PLAIN))
    user = [{"role": "user", "content": "hello"}]

    ask(inspection, "/v1/chat/completions", {"messages": user, "tools": [{"type": "function"}]})
    ask(inspection, "/v1/chat/completions", {"messages": user})
    inspection.close()


def test_a_template_for_tools_is_tried_as_well() -> None:
    metadata = {"tokenizer.chat_template": PLAIN, "tokenizer.chat_template.tool_use": LOOP, "general.name": "x"}
    inspection = ChatInspection(templates_of(metadata), Renderer(TIGHT))

    with pytest.raises(TemplateExcess):
        inspection.probe()
    inspection.close()


@pytest.mark.parametrize(
    ("metadata", "refusal"),
    [
        ({}, NO_TEMPLATE),
        ({"tokenizer.chat_template": "  "}, NO_TEMPLATE),
        ({"tokenizer.chat_template": 7}, NO_TEMPLATE),
        ({"tokenizer.chat_template": "hello"}, "drops the user message, so no conversation is answered"),
    ],
)
def test_no_conversation_is_answered_by_a_template_that_is_not_there(metadata: dict[str, object], refusal: str) -> None:
    inspection = ChatInspection(templates_of(metadata))
    inspection.probe()

    with pytest.raises(HttpRefusal, match=refusal) as refused:
        ask(inspection, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
    assert refused.value.status == 400
    ask(inspection, "/v1/completions", {"prompt": "hello"})
    inspection.close()


def test_a_template_that_wants_another_kind_of_conversation_is_the_server_s_affair() -> None:
    inspection = ChatInspection(("{{ raise_exception('pictures only') }}",))
    inspection.probe()

    assert inspection.refusal is None
    inspection.close()


def test_the_front_answers_what_the_inspection_refuses(tmp_path: Path) -> None:
    async def refuse(_head: object, document: object) -> None:
        raise FormatError(f"{document} is nonsense")

    with fronted(tmp_path, inspect=refuse) as front:
        answer = front.send(JSON_POST + b"Content-Length: 2\r\n\r\n{}")

        assert status(answer) == 400
        assert b"{} is nonsense" in answer
        assert front.engine.seen == []


@pytest.mark.thorough
def test_the_page_offers_no_tools_until_somebody_switches_them_on(tmp_path: Path) -> None:
    page = with_tools_off(b"<html><head><meta></head>")
    assert page.startswith(b"<html><head><script>") and b'"LlamaUi.disabledToolCategories"' in page
    assert page.index(b"??") < page.index(b"setItem")
    assert with_tools_off(b"another page") == b"another page"

    # The rest of a second request, which does not come, is not waited for.
    with fronted(tmp_path, FrontLimits(head_s=2)) as front:
        front.front.pages = own_pages(tmp_path / "engine.sock")
        tools = front.get("/tools")
        assert (status(tools), tools.rpartition(b"\r\n\r\n")[2]) == (200, b"[]")
        called = front.send(
            JSON_POST.replace(b"/v1/chat/completions", b"/tools") + b"Content-Length: 2\r\n\r\n{}GET /x"
        )
        assert b"this server runs no tools" in called
        assert front.get("/").endswith(b"0 bytes")


def test_an_address_that_is_told_can_be_opened() -> None:
    assert urls_of("127.0.0.1", 80) == ("http://127.0.0.1:80", ())
    assert urls_of("::1", 80)[0] == "http://[::1]:80"
    assert urls_of("models.lan", 80)[0] == "http://models.lan:80"
    for anywhere, here in (("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80")):
        url, others = urls_of(anywhere, 80)
        assert url == here
        assert not any("0.0.0.0" in other or "127." in other or "[::]" in other for other in others)
