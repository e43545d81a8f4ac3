"""Likelihoods: equal to a plain computation, whatever is scored beside them, before them, or on shared beginnings."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import likelihood_jobs
from dfqs.errors import NonFiniteLogits, UsageError
from dfqs.evaluate.likelihood import Continuation, ContinuationScore, LikelihoodSession, plan_rolling
from dfqs.gguf import read_header
from dfqs.runtime import Worker
from dfqs.runtime.logprobs import score_rows
from dfqs.runtime.scoring import MINIMUM_WIDTH, branch_start
from fixtures_moe import write_tiny_moe
from runtime_functions import WORKER_ENV

CHUNK = 32
WORDS = random.Random(7)


def tokens(count: int) -> tuple[int, ...]:
    return tuple(WORDS.randrange(300, 4000) for _ in range(count))


def contexts_that_share() -> list[Continuation]:
    """Every kind: beginnings of one and two whole pieces in common, narrow rests, one token, long continuations."""
    first, second = tokens(CHUNK + 12), tokens(2 * CHUNK)
    contexts = [
        *((*first, *tokens(length)) for length in (1, 10)),
        (*first[:CHUNK], *tokens(3)),
        *(second[:CHUNK] + tokens(CHUNK)[:length] for length in (1, 5, 9)),
        (*second, *tokens(12)),
        first[:1],
        first[:5],
    ]
    asked = [Continuation(context, tokens(length)) for context in contexts for length in (1, 4)]
    return [*asked, Continuation(first[:20], tokens(CHUNK + 3)), Continuation(first[:2], first[2:44])]


ASKED = contexts_that_share()


@pytest.fixture(scope="module", params=["tiny_deepseek4", "tiny_moe"])
def model(request: pytest.FixtureRequest) -> Path:
    """An architecture whose cache cannot be rolled back, and one whose can."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def session(model: Path) -> Iterator[LikelihoodSession]:
    with LikelihoodSession(model, context_tokens=128, chunk_tokens=CHUNK, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def scores(session: LikelihoodSession) -> list[ContinuationScore]:
    return session.score_tokens(ASKED)


def test_scores_are_those_of_a_plain_loop_over_whole_texts(model: Path, scores: list[ContinuationScore]) -> None:
    with Worker(env=WORKER_ENV, threads=1) as worker:
        truth = worker.call(likelihood_jobs.plain_scores, model, [(each.context, each.continuation) for each in ASKED])

    for score, (logprobs, greedy) in zip(scores, truth, strict=True):
        assert [token.logprob for token in score.tokens] == pytest.approx(logprobs, abs=1e-9)
        assert [token.is_greedy for token in score.tokens] == greedy
        assert score.logprob == pytest.approx(sum(logprobs), abs=1e-9)


def test_a_score_does_not_depend_on_what_is_scored_beside_or_before_it(
    session: LikelihoodSession, scores: list[ContinuationScore]
) -> None:
    order = random.Random(3).sample(range(len(ASKED)), 6)

    alone = [session.score_tokens([ASKED[index]])[0] for index in order]

    assert alone == [scores[index] for index in order]


def test_an_interrupted_call_leaves_nothing_behind_that_changes_a_score(
    session: LikelihoodSession, scores: list[ContinuationScore]
) -> None:
    def interrupt(_index: int, _score: ContinuationScore) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.score_tokens(ASKED[3:], on_score=interrupt)

    assert session.score_tokens(ASKED[3:9]) == scores[3:9]


def test_shared_beginnings_are_computed_once_and_answers_of_one_token_are_one_branch(
    tiny_deepseek4: Path,
) -> None:
    beginning, end = tokens(2 * CHUNK), tokens(20)
    asked = [Continuation((*beginning, token), (answer,)) for token in end for answer in range(1000, 1004)]

    with LikelihoodSession(tiny_deepseek4, context_tokens=128, chunk_tokens=CHUNK, threads=1) as session:
        session.score_tokens(asked)
        work = session.work

    # The last token of a context is computed with its branch.
    assert work.computed_tokens == 2 * CHUNK + len(end) * MINIMUM_WIDTH
    assert work.alone_tokens == len(asked) * (2 * CHUNK + 1)


def test_the_most_probable_tokens_are_told_at_each_position(session: LikelihoodSession, model: Path) -> None:
    text = tokens(20)
    with Worker(env=WORKER_ENV, threads=1) as worker:
        truth = worker.call(likelihood_jobs.plain_top, model, text, 5)

    (score,) = session.score_tokens([Continuation(text[:4], text[4:])], top=5)

    assert [[other for other, _ in token.top] for token in score.tokens] == truth[3:-1]
    assert all(list(token.top) == sorted(token.top, key=lambda each: -each[1]) for token in score.tokens)
    assert all(token.logprob <= token.top[0][1] <= 0 for token in score.tokens)


@pytest.mark.parametrize(
    ("context", "continuation", "message"),
    [
        ((1,) * 120, (1,) * 10, "129 tokens to score, 128 fit"),
        ((), (1,), "at least one token each"),
        ((1,), (), "at least one token each"),
        ((1,), (1 << 30,), "outside the vocabulary"),
        ((-1, 1), (1,), "outside the vocabulary"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_the_session_goes_on(
    session: LikelihoodSession,
    scores: list[ContinuationScore],
    context: tuple[int, ...],
    continuation: tuple[int, ...],
    message: str,
) -> None:
    with pytest.raises(UsageError, match=message):
        session.score_tokens([ASKED[0], Continuation(context, continuation)])

    assert session.score_tokens(ASKED[:1]) == scores[:1]


def test_numbers_that_are_none_are_no_score(tmp_path: Path, smollm2_gguf: Path) -> None:
    path = write_tiny_moe(tmp_path / "model.gguf", smollm2_gguf, "olmoe")
    header = read_header(path)
    (norm,) = (info for info in header.tensors if info.name == "output_norm.weight")
    with path.open("r+b") as file:
        file.seek(header.data_offset + norm.offset)
        file.write(np.float32(np.nan).tobytes())

    with LikelihoodSession(path, threads=1) as session, pytest.raises(NonFiniteLogits):
        session.score([("Once upon", " a time")])


def test_text_is_split_as_the_harness_does_it(session: LikelihoodSession) -> None:
    def split(context: str, continuation: str) -> tuple[list[int], list[int]]:
        (found,) = session.encode([(context, continuation)])
        return list(found.context), list(found.continuation)

    (whole, context) = session.tokenize(["Question: 2+2? Answer: 4", "Question: 2+2? Answer:"])

    assert split("Question: 2+2? Answer:", " 4") == (context, whole[len(context) :])
    assert split("Question: 2+2? Answer: ", "4") == (context, whole[len(context) :])
    # The context is encoded by itself, whatever becomes of its end together with what follows.
    (apart, joined) = session.tokenize(["Question: under", "Question: understand it"])
    assert split("Question: under", "stand it") == (apart, joined[len(apart) :])
    assert split("", "Hello there")[0] == [session.opened.prefix_token]
    assert split("<|im_start|>user\nHi<|im_end|>\n", "x")[0][0] == 1
    with pytest.raises(UsageError, match="no token of its own"):
        session.encode([("Question", "")])


def test_a_text_of_several_windows_scores_each_token_once(session: LikelihoodSession, model: Path) -> None:
    text = "\n".join(f"Note {index}: the number of the day is {index * 7 % 101}." for index in range(12))
    (ids,) = session.tokenize([text])
    limit = session.opened.limit_tokens
    assert len(ids) > limit
    rest = len(ids) - limit
    first = ((session.opened.prefix_token,), tuple(ids[:limit]))
    second = (tuple(ids[-limit - 1 : limit]), tuple(ids[limit:]))
    with Worker(env=WORKER_ENV, threads=1) as worker:
        truth = worker.call(likelihood_jobs.plain_scores, model, [first, second])

    (found,) = session.rolling([text])

    assert (found.tokens, found.windows) == (len(ids), 2)
    assert len(second[0]) + rest - 1 == limit
    assert found.logprob == pytest.approx(sum(sum(logprobs) for logprobs, _ in truth), abs=1e-6)
    with pytest.raises(UsageError, match="empty text"):
        session.rolling([""])


def test_windows_are_those_of_the_harness() -> None:
    # The example of its documentation: ten tokens, four at a time.
    windows = [(each.context, each.continuation) for each in plan_rolling(range(10), -1, 4)]

    assert windows == [((-1,), (0, 1, 2, 3)), ((3,), (4, 5, 6, 7)), ((5, 6, 7), (8, 9))]


@given(st.integers(1, 60), st.integers(1, 20))
def test_every_token_of_a_text_is_predicted_once_from_all_that_fits_before_it(count: int, limit: int) -> None:
    windows = list(plan_rolling(range(count), -1, limit))

    assert [token for window in windows for token in window.continuation] == list(range(count))
    for window in windows:
        read = (*window.context, *window.continuation[:-1])
        assert read == tuple(range(window.continuation[-1] - len(read), window.continuation[-1]))
        assert len(read) == min(limit, count)


@given(st.integers(1, 2000), st.integers(2 * MINIMUM_WIDTH, 300))
def test_no_piece_of_a_context_is_narrow(length: int, chunk: int) -> None:
    start = branch_start(length, chunk)

    assert 0 <= start < length
    assert start % chunk == 0 or start % chunk >= MINIMUM_WIDTH
    assert length - start <= MINIMUM_WIDTH


def test_a_sum_of_many_small_probabilities_is_taken_in_double_precision() -> None:
    # 100,000 equal logits: each token has a probability of 1/100,000, which a float32 sum of exponentials misses.
    row = np.full((1, 100_000), 11.7, np.float32)

    (score,) = score_rows(row, [17])

    assert score.logprob == pytest.approx(-np.log(100_000), abs=1e-12)
    assert not score.is_greedy
    (first,) = score_rows(row, [0], top=3)
    assert first.is_greedy
    assert [token for token, _ in first.top] == [0, 1, 2]


def test_a_token_that_the_model_rules_out_has_no_likelihood() -> None:
    (score,) = score_rows(np.array([[0.0, -np.inf]], np.float32), [1])

    assert score.logprob == -np.inf
