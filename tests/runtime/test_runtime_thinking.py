"""Thinking is asked for where a template has a switch, and ended where it takes more tokens than it may."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqs.cli.generating import make_sampling
from dfqs.errors import UsageError
from dfqs.gguf import read_header, string
from dfqs.gguf.writer import encode_header
from dfqs.runtime.chat import ChatSession
from dfqs.runtime.requests import ContextSettings, Sampling
from dfqs.runtime.thinking import ThoughtBudget
from fixtures_moe import write_tiny_moe

SWITCH = (
    "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    "{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
)
ASKED = [{"role": "user", "content": "one two three"}]


def with_template(source: Path, path: Path, template: str) -> Path:
    header = read_header(source)
    kept = [header.raw_entry(entry) for entry in header.entries if entry.name != "tokenizer.chat_template"]
    added = string("tokenizer.chat_template", template)
    head = encode_header([*kept, added], [(tensor.name, tensor.shape, tensor.type) for tensor in header.tensors])
    path.write_bytes(head + source.read_bytes()[header.data_offset :])
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    return write_tiny_moe(tmp_path_factory.mktemp("thinking") / "tiny.gguf", smollm2_gguf, "qwen3moe")


@pytest.fixture(scope="module")
def session(tiny: Path) -> Iterator[ChatSession]:
    path = with_template(tiny, tiny.with_name("thinks.gguf"), SWITCH)
    with ChatSession(path, ContextSettings(n_ctx=256), threads=1) as opened:
        yield opened


def test_a_thought_that_takes_its_tokens_is_ended_and_the_answer_goes_on(session: ChatSession) -> None:
    free = session.answer(ASKED, Sampling(max_tokens=40))
    pieces: list[str] = []
    short = session.answer(ASKED, Sampling(max_tokens=40, thinking_tokens=6), pieces.append)

    assert "</think>" not in free.text
    thought, ended, answer = short.text.partition("\n</think>\n\n")
    assert ended and free.text.startswith(thought) and answer
    assert "".join(pieces) == short.text
    assert short.generated_tokens == free.generated_tokens == 40
    # What the cache holds is what was said: the same question again computes its last token alone.
    again = session.answer(ASKED, Sampling(max_tokens=40, thinking_tokens=6))
    assert again.text == short.text


def test_the_switch_of_a_template_is_pressed(session: ChatSession) -> None:
    on, off, unasked = (
        session.answer(ASKED, Sampling(max_tokens=1, thinking=asked)).prompt_tokens for asked in (True, False, None)
    )

    assert on == unasked < off


def test_an_end_that_has_no_room_is_cut(session: ChatSession) -> None:
    answer = session.answer(ASKED, Sampling(max_tokens=8, thinking_tokens=6))

    assert answer.generated_tokens == 8 and answer.finish_reason == "length"


def test_a_template_without_a_switch_is_not_said_to_obey_it(tiny: Path) -> None:
    path = with_template(tiny, tiny.with_name("plain.gguf"), "{% for m in messages %}{{ m.content }}{% endfor %}")
    with (
        ChatSession(path, ContextSettings(n_ctx=256), threads=1) as session,
        pytest.raises(UsageError, match="no switch for thinking"),
    ):
        session.answer(ASKED, Sampling(max_tokens=1, thinking=False))


def ended_after(pieces: list[str], tokens: int, prompt_end: str = "") -> int | None:
    budget = ThoughtBudget(tokens, prompt_end)
    return next((count for count, piece in enumerate(pieces, 1) if budget.add(piece) is not None), None)


def test_a_thought_is_seen_wherever_it_begins_and_nothing_else_is_taken_for_one() -> None:
    words = [" w"] * 30
    assert ended_after(words, 5, "<think>\n") == 5
    assert ended_after(["<th", "ink>", *words], 5) == 6
    assert ended_after(["\n", "[THINK]", *words], 5) == 6
    assert ended_after(words, 5, "<think>\n\n</think>\n\n") is None
    assert ended_after(words, 5) is None
    assert ended_after([*words, "<think>", *words], 5) is None
    assert ended_after(["<think>", "a", "</think>", *words], 5) is None
    assert ended_after(["<|channel|>", "analysis", *words], 5) == 6
    assert ThoughtBudget(1, "<|START_THINKING|>").add("x") == "\n<|END_THINKING|>\n\n"


def test_options_that_say_opposite_things_are_refused() -> None:
    with pytest.raises(UsageError, match="leave one out"):
        make_sampling(8, 0.0, 1.0, 0.0, None, thinking="off", thinking_budget=5)
    asked = make_sampling(8, 0.0, 1.0, 0.0, None, thinking="on", thinking_budget=5)
    assert (asked.thinking, asked.thinking_tokens) == (True, 5)
