"""`dfqs eval` and `dfqs report` as a person calls them."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dfqs.cli.drawing import SHARE, _MinuteLines
from dfqs.cli.main import run
from dfqs.cli.output import err
from dfqs.evaluate import run as run_module
from dfqs.evaluate.endpoint import EndpointAnswerer
from dfqs.evaluate.run import Request, _measure_speed, evaluate
from dfqs.evaluate.scores import Completion
from dfqs.evaluate.speed import DecodeRun
from dfqs.evaluate.store import RunRecord, open_store
from dfqs.evaluate.suites import QUICK, Suite
from dfqs.hardware import read_machine
from dfqs.progress import no_progress
from dfqs.report.record import build_report
from evaluate_runs import CONDITIONS, SUBJECT
from evaluate_server import oracle, serve
from gguf_builder import write_small


def test_dry_run_says_what_would_be_measured_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", "missing.gguf", "-o", str(tmp_path / "out"), "--suite", "quick", "--dry-run", "--json"]) == 0

    plan = json.loads(capsys.readouterr().out)
    assert (plan["reasoning_items"], plan["context_lengths"]) == (16, [1024, 1536, 2048, 3072])
    assert not (tmp_path / "out").exists()
    # (16 + 12) x 512, 12 x 768 and 2 x 12 x 256 for the sets, 7 lengths x 40 x 32 for the contexts, 3 x (128 + 32) for
    # the speed.
    assert plan["generated_tokens_at_most"] == 14_336 + 9216 + 6144 + 8960 + 480

    assert run(["eval", "missing.gguf", "-o", str(tmp_path / "out"), "--suite", "quick", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "context_lengths: 1024, 1536, 2048, 3072\n" in said
    assert "[" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "out"], "give a MODEL file or --endpoint"),
        (["m.gguf", "--endpoint", "http://h", "-o", "out"], "one of the two"),
        (["m.gguf"], "-o DIRECTORY"),
        (["m.gguf", "-o", "out", "--only", "reasoning,maths"], "--only takes stages"),
        (["m.gguf", "-o", "out", "--suite", "huge"], "quick, standard"),
        (["m.gguf", "-o", "out", "--max-context", "100"], "--context is below"),
        (["m.gguf", "-o", "out", "--context", "long"], "no number of tokens; write it like 8192, 64k or 1M"),
        (["m.gguf", "-o", "out"], "no such file"),
        (["--endpoint", "ftp://h", "-o", "out"], "no address"),
    ],
)
def test_what_makes_no_sense_is_refused_as_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run(["eval", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("answers", "stored"), [(0, False), (2, True)])
def test_an_interrupted_run_says_that_it_goes_on_only_where_there_is_something_to_go_on_with(
    answers: int, stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = EndpointAnswerer.complete
    asked: list[Any] = []

    def interrupted(answerer: EndpointAnswerer, *question: Any) -> Completion:
        if len(asked) == answers:
            raise KeyboardInterrupt
        asked.append(question)
        return complete(answerer, *question)

    monkeypatch.setattr(EndpointAnswerer, "complete", interrupted)
    with serve(oracle()) as endpoint:
        arguments = ["eval", "--endpoint", endpoint.url, "-o", str(tmp_path / "out"), "--only", "reasoning"]
        assert run([*arguments, "--limit", "4"]) == 130

    assert ("the same command goes on with the rest" in capsys.readouterr().err) == stored


def test_an_endpoint_is_measured_and_its_report_can_be_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with serve(oracle()) as endpoint:
        arguments = ["eval", "--endpoint", endpoint.url, "-o", str(out), "--limit", "2", "--only", "reasoning,code"]
        assert run(arguments) == 0
    printed = capsys.readouterr()
    assert "reasoning_score           1.000" in printed.out
    assert "null" in printed.out
    before = json.loads((out / "report.json").read_bytes())
    (out / "report.json").unlink()

    assert run(["report", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "measured_at": ""} == {**before, "measured_at": ""}
    assert (out / "report.md").read_text().startswith("# fake: DFQS evaluation")


def test_nothing_answering_is_an_operational_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--endpoint", "http://127.0.0.1:9", "-o", str(tmp_path / "out")]) == 3
    assert "nothing answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_without_a_sandbox_the_code_score_is_null_with_the_remedy_and_nothing_generated_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with serve(oracle()) as endpoint:
        arguments = ["eval", "--endpoint", endpoint.url, "-o", str(tmp_path), "--limit", "2", "--only", "code"]
        assert run([*arguments, "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["code_score"] is None
    assert "apt-get install bubblewrap" in report["reasons"]["code_score"]
    assert endpoint.prompts == []


def test_speed_goes_on_after_the_repeats_that_were_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = DecodeRun(512, 1.0, (0.1,), 0, (), 1, "default", 0.0)
    asked = []

    def dies_after_one(path: Path, suite: Suite, threads: int, have: Any, on_run: Any, order: Any) -> None:
        asked.append(have)
        on_run(one)
        if len(asked) == 1:
            raise KeyboardInterrupt
        for _ in range(suite.decode_repeats - have - 1):
            on_run(one)

    monkeypatch.setattr(run_module, "measure_runs", dies_after_one)
    monkeypatch.setattr(run_module, "measure_copy_bandwidth", lambda threads: 1e9)
    planned = RunRecord(subject=SUBJECT, conditions=CONDITIONS, threads=1, curve_lengths=(1024,), decode_repeats=3)
    for attempt in range(2):
        with open_store(tmp_path, planned) as store:
            try:
                _measure_speed(tmp_path, store, Request(QUICK, threads=1), no_progress)
            except KeyboardInterrupt:
                assert attempt == 0
            stored = store.stage("speed")

    assert asked == [0, 1]
    assert list(stored) == ["repeat-1", "repeat-2", "repeat-3"]
    assert stored["repeat-3"]["decode_s"] == list(asdict(one)["decode_s"])


def test_repeats_of_another_machine_are_not_put_together_with_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A container that comes back with half of its CPUs: the same command, the same file, another speed.
    machine = read_machine()
    machines = [machine, machine.model_copy(update={"allowed_cpus": machine.allowed_cpus + 1})]
    monkeypatch.setattr(run_module, "measure_copy_bandwidth", lambda threads: 1e9 * machines[-1].allowed_cpus)
    monkeypatch.setattr(run_module, "read_machine", lambda: machines[-1])

    def measure(path: Path, suite: Suite, threads: int, have: Any, on_run: Any, order: Any) -> None:
        for _ in range(1 if len(machines) == 2 else suite.decode_repeats - have):
            on_run(DecodeRun(512, 1.0, (1.0 * len(machines),), 0, (), 1, "default", 0.0))

    monkeypatch.setattr(run_module, "measure_runs", measure)
    model = write_small(tmp_path / "m.gguf")
    with serve(oracle()) as endpoint, EndpointAnswerer(endpoint.url, max_context=3072) as target:

        def measure_all() -> Any:
            request = Request(QUICK, ("speed",))
            evaluate(target, SUBJECT, model, request, tmp_path, lambda _: nullcontext(no_progress))
            return build_report(tmp_path)

        assert "1 of 3 repeats" in measure_all().reasons["cpu_tokens_per_sec"]
        machines.pop()
        report = measure_all()

    assert report.details.speed.decode_spread == (1.0, 1.0)
    assert report.conditions.speed.allowed_cpus == machine.allowed_cpus
    assert report.details.speed.copy_bandwidth_bytes_per_s == 1e9 * machine.allowed_cpus


def test_a_log_gets_a_line_a_minute_with_a_rate_that_counts_only_what_was_measured_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A model that does half a token a second is silent for a quarter of an hour otherwise.
    said = []
    monkeypatch.setattr(err, "print", lambda line: said.append(line.text))
    clock = iter([0, 0, 30, 60, 119, 1000, 1100])
    progress = _MinuteLines("reasoning", "items", lambda: next(clock))

    progress(54, 64)
    progress(54, 64, "arithmetic-1-1, token 20 of 512")
    progress(54, 64, "arithmetic-1-1, token 40 of 512")
    progress(54, 64, "arithmetic-1-1, token 80 of 512")
    progress(56, 64, "ordering-1-1")
    progress(64, 64, "sequence-1-1")

    assert said == [
        "reasoning: 54 of 64 items, arithmetic-1-1, token 40 of 512",
        "reasoning: 56 of 64 items, 8 min 20 s each, 1 h 6 min left, ordering-1-1",
        "reasoning: 64 of 64 items, 1 min 50 s each, sequence-1-1",
    ]


def test_a_step_that_counts_bytes_and_then_layers_is_shown_as_a_share_and_not_as_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = []
    monkeypatch.setattr(err, "print", lambda line: said.append(line.text))
    clock = iter([0, 0, 50, 100, 200])
    progress = _MinuteLines("      ", SHARE, lambda: next(clock))

    progress(93_000_000, 93_000_000, "unpacking the source")
    progress(0, 30, "fitting experts")
    progress(10, 30, "fitting experts")
    progress(20, 30, "fitting experts")

    assert said == [
        "      33 %, 1 min 40 s left, fitting experts",
        "      67 %, 1 min 15 s left, fitting experts",
    ]


def test_progress_moves_inside_an_item_and_counts_what_was_stored_before_at_once(tmp_path: Path) -> None:
    seen = []

    @contextmanager
    def draw(stage: Any) -> Iterator[Any]:
        yield lambda done, total=None, note="": seen.append((done, total, note))

    def measure(url: str) -> None:
        seen.clear()
        with EndpointAnswerer(url, max_context=3072) as target:
            subject = SUBJECT.model_copy(update={"kind": "endpoint"})
            evaluate(target, subject, None, Request(QUICK, ("reasoning",)), tmp_path, draw)

    with serve(oracle()) as endpoint:
        measure(endpoint.url)
        assert seen[:3] == [(0, 28, ""), (0, 28, "arithmetic-1-1, token 1 of 512"), (1, 28, "arithmetic-1-1")]
        measure(endpoint.url)
        assert seen == [(28, 28, "")]
