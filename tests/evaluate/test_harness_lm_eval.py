"""The model that lm-evaluation-harness gets: its interface, with requests as the harness makes them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dfqs.errors import UsageError
from dfqs.evaluate.harnesses.lm_eval import HarnessModel
from dfqs.evaluate.harnesses.loading import open_session
from dfqs.evaluate.likelihood import Continuation
from harness_inputs import Cache, Request, items

CHOICES = [(item["question"], choice) for item in items(2) for choice in item["choices"]]


@pytest.fixture(scope="module")
def model(tiny_deepseek4: Path) -> Iterator[HarnessModel]:
    found = HarnessModel(open_session(tiny_deepseek4, context=320, chunk=64, threads=1), "tiny.gguf")
    found.cache_hook = Cache()
    yield found
    found.session.__exit__(None, None, None)


@pytest.fixture
def cache(model: HarnessModel) -> Cache:
    found = Cache()
    model.cache_hook = found
    return found


def test_choices_are_scored_in_their_order_and_kept_as_they_come(model: HarnessModel, cache: Cache) -> None:
    found = model.loglikelihood([Request(pair) for pair in CHOICES])

    scores = model.session.score(CHOICES)
    assert found == [(score.logprob, score.is_greedy) for score in scores]
    assert sorted((args, result) for _, args, result in cache.kept) == sorted(zip(CHOICES, found, strict=True))


def test_a_context_that_is_too_long_loses_its_beginning(model: HarnessModel, cache: Cache) -> None:
    (long,) = model.session.encode([("word " * 400, "end")])
    cut = Continuation(long.context[-(320 + 1 - len(long.continuation)) :], long.continuation)

    (found,) = model.loglikelihood([Request(("word " * 400, "end"))])

    assert found[0] == model.session.score_tokens([cut])[0].logprob
    with pytest.raises(UsageError, match="does not fit a context of 320"):
        model.loglikelihood([Request(("a", " word" * 400))])


def test_whole_texts_are_predicted_from_the_first_token_on(model: HarnessModel, cache: Cache) -> None:
    text = "A text of a few words."

    found = model.loglikelihood_rolling([Request((text,))])

    (ids,) = model.session.tokenize([text])
    whole = Continuation((model.prefix_token_id,), tuple(ids))
    assert found == [pytest.approx(model.session.score_tokens([whole])[0].logprob, abs=1e-9)]
    assert cache.kept == [("loglikelihood_rolling", (text,), found[0])]


def test_text_is_written_greedily_up_to_a_word_and_the_same_in_any_company(model: HarnessModel, cache: Cache) -> None:
    prompts = ["Once upon a time", "Once upon a midnight", CHOICES[0][0]]
    (whole,) = model.generate_until([Request((prompts[0], {"until": [], "max_gen_toks": 12}))])
    word = whole[len(whole) // 2 :][:3]

    options = {"until": [word], "max_gen_toks": 12, "do_sample": False}
    found = model.generate_until([Request((prompt, options)) for prompt in prompts])

    assert whole
    assert found[0] == whole[: whole.index(word)]
    assert len(found) == 3
    assert all(word not in text for text in found)
    (prompt,) = model.session.tokenize(prompts[:1], add_special=True)
    (greedy,) = model.session.generate([model._generation(prompt, {"max_gen_toks": 5})])
    assert all(token.is_greedy for token in greedy.tokens)
    # A token that follows one is predicted as a score says it is, up to the last bits of a batch of one.
    (score,) = model.session.score_tokens([Continuation(tuple(prompt), (greedy.tokens[0].token,))])
    assert greedy.tokens[0].logprob == pytest.approx(score.logprob, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True}, "only greedy"),
        ({"temperature": 0.7}, "only greedy"),
        ({"max_gen_toks": 900}, "do not fit"),
    ],
)
def test_what_is_not_done_is_refused_and_not_done_otherwise(
    model: HarnessModel, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        model.generate_until([Request(("Once", options))])


def test_conversations_are_written_by_the_template_in_the_file(model: HarnessModel) -> None:
    template = model.chat_template(True)

    rendered = model.apply_chat_template([{"role": "user", "content": "What is it?"}])

    assert template
    assert "What is it?" in rendered
    assert rendered.endswith("assistant\n")
    assert model.chat_template(False) is None
    assert model.tokenizer_name.startswith("dfqs-tiny.gguf-")
