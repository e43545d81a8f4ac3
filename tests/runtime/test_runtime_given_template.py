"""A chat template of the user's own is tried before a model is loaded, and holds in every verb that renders."""

import hashlib
import json
import pickle
import urllib.request
from pathlib import Path

import pytest
from test_runtime_template import CHATML

from cli_processes import RunningDfqs
from dfqs.cli.main import run
from dfqs.errors import UsageError
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.model.files import open_model
from dfqs.model.listing import chat_template
from dfqs.runtime.chat import ChatSession
from dfqs.runtime.given_template import GivenTemplate
from dfqs.runtime.loading import InMemory, with_template
from dfqs.runtime.messages import TemplateDropsMessage, TemplateFailure
from dfqs.runtime.requests import ContextSettings, Sampling
from dfqs.runtime.template_file import TEMPLATE_LIMIT_BYTES, read_template

SYSTEM_FIRST = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
TOOLS_ONLY = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}{{ messages | tojson }}{{ tools | tojson }}"
UNUSABLE = {
    "empty": ("", "is empty"),
    "blank": (" \r\n\t\n", "is empty"),
    "a byte order mark alone": ("\ufeff", "is empty"),
    "NUL": ("{{ messages }}\0", "a character NUL"),
    "megabytes": ("x" * (TEMPLATE_LIMIT_BYTES + 1), "larger than a chat template may be"),
    "broken": ("{% if messages %}", r"the chat template t\.jinja failed \(TemplateSyntaxError"),
    "recursion": (
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        r"the chat template t\.jinja takes more than Python's stack",
    ),
    "out of the sandbox": (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages }}",
        r"the chat template t\.jinja failed \(SecurityError",
    ),
    "other files": ("{% include '/etc/passwd' %}", r"the chat template t\.jinja failed"),
    "a refusal of everything": ("{{ raise_exception('never') }}", "refuses this conversation: never"),
    "nothing of what is said": ("Hello", r"the chat template t\.jinja drops the user message"),
    "the name of one": ("chatml", r"the chat template t\.jinja drops the user message"),
}


@pytest.mark.parametrize(("text", "said"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_no_model_can_converse_by_is_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.jinja"
    path.write_bytes(text.encode())

    with pytest.raises(UsageError, match=said):
        read_template(path)


def test_what_is_no_text_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    wide = tmp_path / "wide.jinja"
    wide.write_bytes(CHATML.encode("utf-16"))

    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_template(wide)
    for path in (tmp_path, Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises(UsageError, match="is not a regular file" if path != tmp_path else "is a directory"):
            read_template(path)
    with pytest.raises(UsageError, match="no such file"):
        read_template(tmp_path / "none.jinja")
    assert read_template(None) is None


def test_the_mark_and_line_ends_of_another_system_change_no_prompt_and_no_condition(tmp_path: Path) -> None:
    plain, other = tmp_path / "plain.jinja", tmp_path / "wörld of templates.jinja"
    plain.write_bytes(CHATML.encode())
    other.write_bytes(b"\xef\xbb\xbf" + CHATML.replace("\n", "\r\n").encode())

    first, second = read_template(plain), read_template(other)

    assert first is not None and second is not None
    assert first.text == second.text == CHATML
    assert first.sha256 == second.sha256 == hashlib.sha256(CHATML.encode()).hexdigest()
    assert second.whose == "the chat template wörld of templates.jinja"


@pytest.mark.parametrize("text", [SYSTEM_FIRST, TOOLS_ONLY], ids=["system first", "with tools only"])
def test_a_template_for_some_conversations_is_one_all_the_same(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.jinja"
    path.write_text(text)

    assert read_template(path) == GivenTemplate(text, "t.jinja")


def test_failures_and_their_owner_cross_to_another_process() -> None:
    for error in (TemplateFailure("failed", "this one"), TemplateDropsMessage("user", "do without", "this one")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
        assert str(again).startswith("this one ")


def test_a_session_answers_by_the_template_that_was_given_and_by_the_models_own_where_it_is_the_same(
    embedded_model: Path,
) -> None:
    given = GivenTemplate("Q: {{ messages[-1].content }} A:", "qa.jinja")
    settings, shortly = ContextSettings(n_ctx=256), Sampling(max_tokens=2)
    asked = [{"role": "user", "content": "How many?"}]
    with ChatSession(embedded_model, settings, order=with_template(InMemory(), given)) as session:
        by_given = session.answer(asked, shortly)
        assert session.answer("Q: How many? A:", shortly).text == by_given.text
        assert session.info.given_template_sha256 == given.sha256
    own = own_template(embedded_model)
    with ChatSession(embedded_model, settings, order=with_template(InMemory(), GivenTemplate(own, "own"))) as session:
        assert session.info.given_template_sha256 is None
        assert session.answer(asked, shortly).prompt_tokens > by_given.prompt_tokens


def own_template(model: Path) -> str:
    """The model's template as people get it into a file, with a line's end."""
    return f"{chat_template(open_model(model))}\n"


def test_an_evaluation_records_the_template_that_was_given(embedded_model: Path) -> None:
    given = GivenTemplate(CHATML, "mine.jinja")

    with LocalAnswerer(embedded_model, max_context=512, order=with_template(CPU_ONLY, given)) as answerer:
        assert answerer.info.template_sha256 == given.sha256
        assert "the chat template is mine.jinja, which is not the model's own" in answerer.info.notices


def test_a_server_uses_the_template_that_was_given(embedded_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("Q: {{ messages[-1].content }} A:")
    words = ("--port", "0", "--json", "--ctx", "512", "--threads", "1", "--chat-template", path)
    with RunningDfqs("serve", embedded_model, *words) as running:
        document = json.loads(running.read_until("}\n"))
        body = json.dumps({"messages": [{"role": "user", "content": "How many?"}]}).encode()
        written = json.loads(post(f"{document['url']}/apply-template", body))

    assert document["template_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert written["prompt"] == "Q: How many? A:"


def post(url: str, body: bytes) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
        content: bytes = answer.read()
        return content


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "m.gguf", "hi", "--raw"), "--raw does without a chat template"),
        (("eval", "--endpoint", "http://127.0.0.1:1", "-o", "out"), "a server behind --endpoint has its chat template"),
        (("deploy", "pi", "m.gguf"), "--chat-template is for the server that --serve starts"),
    ],
)
def test_where_a_template_could_not_hold_it_is_refused(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.gguf").write_bytes(b"")
    Path("t.jinja").write_text(CHATML)

    assert run([*words, "--chat-template", "t.jinja"]) == 2
    assert said in capsys.readouterr().err
