"""Text from a session: the cache is used again and never wrongly, samplers keep their word, stops leave order."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import runtime_session_jobs
from dfqs.errors import UsageError
from dfqs.runtime import Worker
from dfqs.runtime.chat import ChatSession
from dfqs.runtime.checks import check_model
from dfqs.runtime.requests import Answer, ContextSettings, Sampling
from runtime_functions import WORKER_ENV

Job = Callable[..., Any]
PROMPT = "The quick brown fox jumps over the lazy dog. The quick brown fox"


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    with Worker(env=WORKER_ENV, threads=1) as worker:
        yield lambda name, *args: worker.call(getattr(runtime_session_jobs, name), *args)


@pytest.fixture(scope="module", params=["embedded_model", "tiny_deepseek4"])
def model(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def untimed(answer: Answer) -> Answer:
    return replace(answer, prompt_s=0.0, decode_s=0.0, reused_tokens=0)


class TestSampling:
    def test_temperature_zero_takes_the_likeliest_token_every_time(self, job: Job, model: Path) -> None:
        _, likeliest = job("greedy", model, PROMPT, 1, {"n_ctx": 512, "threads": 1, "flash_attention": "off"})

        assert job("sample", model, PROMPT, Sampling(temperature=0), 8) == likeliest * 8

    @pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}])
    def test_each_filter_at_its_strictest_leaves_the_likeliest_token(
        self, job: Job, model: Path, settings: dict[str, Any]
    ) -> None:
        likeliest = job("sample", model, PROMPT, Sampling(temperature=0), 1)

        assert job("sample", model, PROMPT, Sampling(temperature=5.0, seed=3, **settings), 8) == likeliest * 8

    def test_a_seed_repeats_the_draws_and_another_seed_does_not(self, job: Job, embedded_model: Path) -> None:
        draws = [job("sample", embedded_model, PROMPT, Sampling(temperature=1.5, seed=seed), 20) for seed in (1, 1, 2)]

        assert draws[0] == draws[1] != draws[2]
        assert len(set(draws[0])) > 1

    @pytest.mark.parametrize(
        "settings",
        [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 1.5}, {"min_p": -0.1}, {"seed": 2**32 - 1}],
    )
    def test_a_setting_out_of_range_is_refused(self, job: Job, embedded_model: Path, settings: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match="must be between"):
            job("sample", embedded_model, PROMPT, Sampling(**settings), 1)


class TestAnswers:
    def test_a_longer_version_of_a_prompt_costs_only_its_new_part_and_changes_no_answer(
        self, job: Job, model: Path
    ) -> None:
        sampling = Sampling(max_tokens=6)
        longer = PROMPT + " and the dog"
        (_, _), (second, _) = job("converse", model, [PROMPT, longer], sampling, 512)
        ((alone, _),) = job("converse", model, [longer], sampling, 512)

        assert untimed(second) == untimed(alone)
        assert alone.reused_tokens == 0

    def test_a_conversation_goes_on_from_the_cache(self, job: Job, embedded_model: Path) -> None:
        question = {"role": "user", "content": "Name three colours."}
        sampling = Sampling(max_tokens=5)
        ((first, _),) = job("converse", embedded_model, [[question]], sampling, 512)
        more = [question, {"role": "assistant", "content": first.text}, {"role": "user", "content": "And animals?"}]
        (_, (second, _)) = job("converse", embedded_model, [[question], more], sampling, 512)

        assert second.reused_tokens >= first.prompt_tokens

    def test_the_same_prompt_again_computes_one_token_where_the_cache_can_roll_back(
        self, job: Job, embedded_model: Path, tiny_deepseek4: Path
    ) -> None:
        for path, rolls_back in ((embedded_model, True), (tiny_deepseek4, False)):
            (first, _), (second, _) = job("converse", path, [PROMPT, PROMPT], Sampling(max_tokens=4), 512)
            assert untimed(first) == untimed(second)
            assert second.reused_tokens == (first.prompt_tokens - 1 if rolls_back else 0)

    def test_a_different_prompt_starts_from_nothing(self, job: Job, model: Path) -> None:
        (_, _), (second, _) = job("converse", model, [PROMPT, "Once upon a time"], Sampling(max_tokens=4), 512)
        ((alone, _),) = job("converse", model, ["Once upon a time"], Sampling(max_tokens=4), 512)

        assert untimed(second) == untimed(alone)

    def test_an_answer_ends_where_it_was_cut_and_says_by_what(self, job: Job, model: Path) -> None:
        ((cut, pieces),) = job("converse", model, [PROMPT], Sampling(max_tokens=3), 512)
        assert (cut.finish_reason, cut.generated_tokens) == ("length", 3)
        assert "".join(pieces) == cut.text

        long_prompt = "word " * 240
        ((full, _),) = job("converse", model, [long_prompt], Sampling(max_tokens=400), 256)
        assert full.finish_reason in ("context", "stop")
        assert full.prompt_tokens + full.generated_tokens <= 256

    def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(self, job: Job, model: Path) -> None:
        with pytest.raises(UsageError, match=r"the prompt has \d+ tokens and the context 256"):
            job("converse", model, ["word " * 400], Sampling(max_tokens=4), 256)

    def test_an_empty_prompt_is_refused(self, job: Job, model: Path) -> None:
        with pytest.raises(UsageError, match="the prompt is empty"):
            job("converse", model, [""], Sampling(max_tokens=4), 256)

    def test_a_stopped_answer_keeps_its_text_and_leaves_a_sound_cache(self, job: Job, model: Path) -> None:
        stopped, again, fresh = job("stop_between_pieces", model, PROMPT)

        assert stopped.finish_reason == "interrupted"
        assert fresh.text.startswith(stopped.text)
        assert untimed(again) == untimed(fresh)

    def test_rates_that_were_not_measured_are_none_and_not_zero(self) -> None:
        nothing = Answer("", "stop", prompt_tokens=9, reused_tokens=9, generated_tokens=1, prompt_s=0.1, decode_s=0.1)
        assert (nothing.prompt_tokens_per_s, nothing.decode_tokens_per_s) == (None, None)

        # 40 tokens of which 8 were cached in 2 s; 11 tokens are 10 steps in 0.5 s.
        some = Answer("", "stop", prompt_tokens=40, reused_tokens=8, generated_tokens=11, prompt_s=2.0, decode_s=0.5)
        assert (some.prompt_tokens_per_s, some.decode_tokens_per_s) == (16.0, 20.0)


def test_a_chat_session_from_the_caller_s_side_loads_answers_and_streams(embedded_model: Path) -> None:
    loaded: list[tuple[int, int | None]] = []
    pieces: list[str] = []
    with ChatSession(
        check_model(embedded_model),
        ContextSettings(n_ctx=512),
        threads=1,
        progress=lambda done, total=None, note="": loaded.append((done, total)),
    ) as session:
        answer = session.answer([{"role": "user", "content": "Hello"}], Sampling(max_tokens=5), pieces.append)

    size = embedded_model.stat().st_size
    assert loaded[-1] == (size, size)
    assert session.info.chat_template
    assert (session.info.context_tokens, session.info.threads) == (512, 1)
    assert "".join(pieces) == answer.text


def test_how_far_a_prompt_is_read_is_told_before_the_first_word_and_what_was_kept_counts_as_read(
    tiny_moe: Path,
) -> None:
    told: list[object] = []
    with ChatSession(tiny_moe, ContextSettings(n_ctx=512, n_batch=128, n_ubatch=64), threads=1) as session:

        def ask(text: str) -> Answer:
            told.clear()
            return session.answer(
                text, Sampling(max_tokens=3), told.append, progress=lambda done, total=None, note="": told.append(done)
            )

        first = ask("What is a colour? " * 30)
        read = [each for each in told if isinstance(each, int)]
        assert told[: len(read)] == read, "something was said before all was read"
        assert read == [*range(0, first.prompt_tokens, 64), first.prompt_tokens] and len(read) > 3
        longer = ask("What is a colour? " * 30 + "And a sound?")

    assert longer.reused_tokens > 0
    assert [each for each in told if isinstance(each, int)] == [longer.reused_tokens, longer.prompt_tokens]
