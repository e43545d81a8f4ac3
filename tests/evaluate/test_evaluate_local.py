"""A model in a worker: an answer depends on its prompt alone, whatever was asked before and whatever is resumed."""

# A value that is None here fails the test by itself.
# mypy: disable-error-code="union-attr, operator, index, misc"

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dfqs.errors import RuntimeFailure
from dfqs.evaluate import jobs
from dfqs.evaluate.answerer import Asking, LengthFailure, LengthFault
from dfqs.evaluate.conditions import Numerics, differences
from dfqs.evaluate.context import GrowingDocument, plan_questions
from dfqs.evaluate.local import LocalAnswerer, document_numerics
from dfqs.evaluate.prompts import read_context_set
from dfqs.evaluate.run import Request, evaluate
from dfqs.evaluate.scores import Completion
from dfqs.evaluate.stages import BOUNDARY, CONTEXT, REASONING, SPEED
from dfqs.evaluate.store import Subject
from dfqs.evaluate.suites import Suite
from dfqs.gguf import read_header
from dfqs.model.files import open_model
from dfqs.progress import no_progress
from dfqs.report.record import build_report
from short_answers import complete_shortly
from v4_flash_stub import write_v4_flash_stub

VOCABULARY = read_context_set().items[0]
TINY = Suite("quick", 2, 2, (256, 512), 3, 8, 2, 32, 64)


@pytest.fixture(scope="module", params=["tiny_deepseek4", pytest.param("smollm2_gguf", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest) -> Any:
    """An architecture whose cache cannot be rolled back, and one whose can."""
    return request.getfixturevalue(request.param)


DOCUMENT = GrowingDocument(VOCABULARY, 0)


def ask(
    target: Any, length: int, keep: Any = slice(None), shorter: tuple[int, ...] = (), count: int = 3
) -> list[tuple[Completion, Any]]:
    """Answers with their likelihoods, to questions that are spread over kinds and depths."""
    lines = target.size(DOCUMENT, length).lines
    stops = tuple(target.size(DOCUMENT, each).lines for each in shorter)
    questions = plan_questions([DOCUMENT], [lines], count)[keep]
    answers: dict[int, Any] = {}
    target.ask(
        Asking(length, DOCUMENT, lines, stops, questions, 16), lambda index, *said: answers.update({index: said})
    )
    return [answers[index] for index in range(len(questions))]


@pytest.mark.slow
def test_answers_about_a_document_do_not_depend_on_what_was_asked_before(model: Any) -> None:
    with LocalAnswerer(model, threads=1, max_context=2048) as target:
        short, long = ask(target, 560), ask(target, 1100, shorter=(560,))
        again = ask(target, 560)
    with LocalAnswerer(model, threads=1, max_context=2048) as fresh:
        resumed = ask(fresh, 1100, slice(2, None), shorter=(560,))

    assert again == short
    assert resumed == long[2:]
    assert len({answer.text for answer, _ in long}) > 1


def test_a_curve_reads_each_document_once_and_answers_as_a_run_that_reads_it_for_every_question(model: Any) -> None:
    lengths = tuple(range(256, 467, 70))
    assert len(lengths) == 4
    with LocalAnswerer(model, threads=1, max_context=2048) as target:
        read, shared = 0, []
        for place, length in enumerate(lengths):
            shared.append(ask(target, length, shorter=lengths[:place], count=2))
            read += target.work.document
        longest = target.size(DOCUMENT, lengths[-1]).tokens
    with LocalAnswerer(model, threads=1, max_context=2048) as naive:
        for place in (1, 3):
            naive.ask(Asking(64, GrowingDocument(VOCABULARY, 1), 1, (), (), 16), lambda *_: None)
            alone = ask(naive, lengths[place], slice(1, 2), shorter=lengths[:place], count=2)
            assert alone == [shared[place][1]]
            assert naive.work.document == naive.size(DOCUMENT, lengths[place]).tokens

    assert read == longest <= lengths[-1]


def test_questions_of_a_kind_share_their_beginning_and_are_answered_as_if_each_were_alone(tiny_deepseek4: Path) -> None:
    with LocalAnswerer(tiny_deepseek4, threads=1, max_context=512) as target:
        together = ask(target, 400, count=20)
        work, size = target.work, target.size(DOCUMENT, 400)
        alone = ask(target, 400, slice(5, 6), count=20)

    assert alone == together[5:6]
    kinds = [question.kind for question in plan_questions([DOCUMENT], [size.lines], 20)]
    answers = [answer for answer, _ in together]
    stems = {kind: answer.stem_tokens or 0 for kind, answer in zip(kinds, answers, strict=True)}
    assert len(kinds) > len(stems) == 4 and min(stems.values()) >= 4
    own = [answer.prompt_tokens - size.tokens - stems[kind] for kind, answer in zip(kinds, answers, strict=True)]
    assert work.questions == sum(own) + sum(stems.values())


def test_a_length_includes_its_question_and_answer(tiny_deepseek4: Path) -> None:
    with LocalAnswerer(tiny_deepseek4, threads=1, max_context=2048) as target:
        used = [answer.prompt_tokens + answer.generated_tokens for answer, _ in ask(target, 400)]

    assert 400 - 120 < max(used) <= 400


def test_a_context_that_there_is_no_memory_for_is_made_smaller_and_only_longer_lengths_fail(
    tiny_moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalAnswerer(tiny_moe, threads=1, max_context=2048) as target:
        running = target._running

        def small(job: Any, *arguments: Any) -> Any:
            if job is jobs.open_context and arguments[1] > 1100:
                raise RuntimeFailure("cannot make a context")
            return running().call(job, *arguments)

        worker = SimpleNamespace(call=small, reporting=lambda *rest, **named: running().reporting(*rest, **named))
        monkeypatch.setattr(target, "_running", lambda: worker)
        ask(target, 600, count=1)
        with pytest.raises(LengthFailure) as failure:
            ask(target, 1500, count=1)

    assert target._context_tokens == 1024
    assert failure.value.fault is LengthFault.ALLOCATE


def test_a_document_of_a_million_tokens_is_computed_in_steps_that_memory_has_room_for(tmp_path: Path) -> None:
    path = tmp_path / "v4.gguf"
    write_v4_flash_stub(path)
    model = open_model(path)

    short, long = (document_numerics(model, length, Numerics()) for length in (65_536, 1 << 20))

    assert short == Numerics()
    assert long.document_ubatch == 64
    assert long.ubatch == 512
    # A condition where it differs, and nothing of it where it does not: earlier reports compare as before.
    assert "document_ubatch" not in short.model_dump()
    assert differences(short, long) == ("document_ubatch: None -> 64",)


def test_answers_in_narrower_steps_are_answers_of_the_same_numerics(
    tiny_deepseek4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalAnswerer(tiny_deepseek4, threads=1, max_context=2048) as target:
        wide = ask(target, 320)
    monkeypatch.setattr("dfqs.evaluate.local.SHORT_CONTEXT_TOKENS", 1)
    monkeypatch.setattr("dfqs.evaluate.local.COMPUTE_BYTES", 1)
    with LocalAnswerer(tiny_deepseek4, threads=1, max_context=2048) as target:
        assert target.info.numerics.document_ubatch == 64
        assert "64 tokens at a time" in " ".join(target.info.notices)
        narrow = ask(target, 320)

    assert [answer.prompt_tokens for answer, _ in narrow] == [answer.prompt_tokens for answer, _ in wide]
    for (_, one), (_, other) in zip(narrow, wide, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=0.05)


def test_answers_to_prompts_do_not_depend_on_their_order(tiny_deepseek4: Path) -> None:
    prompts = ["Count to three.", "Name a colour.", "Say yes."]
    with LocalAnswerer(tiny_deepseek4, threads=1, max_context=2048) as target:
        forwards = [target.complete(prompt, 6) for prompt in prompts]
        backwards = [target.complete(prompt, 6) for prompt in reversed(prompts)]

    assert forwards == backwards[::-1]


def test_a_length_beyond_the_trained_context_is_refused_and_reported(smollm2_gguf: Path) -> None:
    trained = read_header(smollm2_gguf).metadata["llama.context_length"]
    assert isinstance(trained, int)
    with LocalAnswerer(smollm2_gguf, threads=1, max_context=4 * trained) as target:
        assert target.info.context_tokens == trained
        assert f"{trained:,}" in target.info.notices[0]
        with pytest.raises(LengthFailure, match="trained for"):
            target.size(DOCUMENT, trained + 1)


def test_a_prompt_longer_than_the_context_is_cut_off_and_not_right(tiny_moe: Path) -> None:
    with LocalAnswerer(tiny_moe, threads=1, max_context=2048) as target:
        completion = target.complete("word " * 3000, 4)

    assert completion.finish_reason == "context"
    assert completion.refusal() == "truncated"


def test_a_worker_that_died_is_started_again(tiny_moe: Path) -> None:
    with LocalAnswerer(tiny_moe, threads=1, max_context=2048) as target:
        before = target.complete("Say yes.", 4)
        target.close()
        assert target.complete("Say yes.", 4) == before


def test_all_stages_of_a_local_model_end_in_a_report(
    tiny_deepseek4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalAnswerer, "complete", complete_shortly)
    stages = (REASONING, CONTEXT, BOUNDARY, SPEED)
    with LocalAnswerer(tiny_deepseek4, threads=1, max_context=512) as target:
        subject = Subject(kind="file", name=target.info.name, location=str(tiny_deepseek4))
        request = Request(TINY, stages, limit=2, threads=1)
        for _ in range(2):  # the second finds everything measured
            evaluate(target, subject, tiny_deepseek4, request, tmp_path, lambda stage: nullcontext(no_progress))
    report = build_report(tmp_path)

    assert report.details.reasoning.n == 2
    assert report.metrics.cpu_tokens_per_sec > 0
    assert report.details.speed.repeats == 2
    assert report.details.speed.latency_p50_s <= report.details.speed.latency_p99_s
    assert report.conditions.speed.threads == 1
    assert "not scores of the DFQS reference model" in report.statement
    assert report.conditions.score.template_sha256 is not None


def test_a_model_without_chat_template_is_asked_in_plain_text_and_the_report_can_say_so(
    tiny_moe: Path, tmp_path: Path
) -> None:
    without = tmp_path / "without.gguf"
    without.write_bytes(tiny_moe.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_nothing_", 1))
    with LocalAnswerer(without, threads=1, max_context=1024) as target:
        completion = target.complete("Say yes.", 4)

        assert target.info.template_sha256 is None
        assert "no chat template" in " ".join(target.info.notices)
        assert completion.finish_reason in ("stop", "length")


@pytest.mark.slow
@pytest.mark.parametrize("lines", [3, 6], ids=["reasoning", "context"])
def test_killed_with_minus_9_and_run_again_a_local_model_has_the_same_scores(
    smollm2_gguf: Path, tmp_path: Path, lines: int
) -> None:
    # Two notes, two reasoning items, then the plan and the questions of the first length.
    command = [sys.executable, "-m", "dfqs.cli.main", "eval", str(smollm2_gguf), "--suite", "quick", "--limit", "2"]
    command += ["--only", "reasoning,context", "-o"]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], start_new_session=True)
    results = tmp_path / "killed" / "run-1" / "results.jsonl"
    while not results.exists() or results.read_bytes().count(b"\n") < lines:
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "report.json").exists()

    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True)

    reports = [json.loads((tmp_path / name / "report.json").read_bytes()) for name in ("killed", "whole")]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert reports[0]["details"] == reports[1]["details"]
    texts = [
        [
            line
            for line in (tmp_path / name / "run-1" / "results.jsonl").read_text().splitlines()
            if "completion" in line
        ]
        for name in ("killed", "whole")
    ]
    assert texts[0] == texts[1]
