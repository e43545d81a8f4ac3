"""A model's server that dies is started again, and not for ever."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from dfqs.errors import RuntimeFailure, WorkerCrash
from dfqs.runtime.worker import Worker
from dfqs.serving.engine import EngineFailed, EngineListening, ServeLimits, ServerSettings
from dfqs.serving.engine_state import EngineState
from dfqs.serving.supervision import Restarting, Supervision

Life = Callable[[Any, EngineState], None]


class Staged:
    """In place of a worker: its server's life as the next function has it."""

    def __init__(self, lives: list[Life], state: EngineState) -> None:
        self._lives, self._state = lives, state
        self.log_lines: tuple[str, ...] = ()
        self.pid = 0

    def __enter__(self) -> "Staged":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass

    def end(self, why: str) -> None:
        pass

    def reporting(self, hear: Any, **_: Any) -> "Staged":
        self._hear = hear
        return self

    def call(self, *_: Any) -> None:
        self._lives.pop(0)(self._hear, self._state)


def dies(hear: Any, state: EngineState) -> None:
    hear(EngineListening("passive", 1))
    raise WorkerCrash("llama.cpp died with SIGKILL", ("its log",))


def answers_and_dies(hear: Any, state: EngineState) -> None:
    hear(EngineListening("passive", 1))
    state.answered += 1
    raise WorkerCrash("llama.cpp died with SIGSEGV")


def does_not_start(hear: Any, state: EngineState) -> None:
    raise RuntimeFailure("no memory for it now")


def fails(hear: Any, state: EngineState) -> None:
    hear(EngineListening("passive", 1))
    hear(EngineFailed("the disk failed"))
    raise RuntimeFailure("the disk failed")


def stops(hear: Any, state: EngineState) -> None:
    hear(EngineListening("passive", 1))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfqs.serving.supervision.time.sleep", lambda _seconds: None)


def supervise(
    tmp_path: Path, lives: list[Life], restarts: int = 2
) -> tuple[Callable[[], None], EngineState, list[Restarting]]:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    state, heard = EngineState(), list[Restarting]()
    settings = ServerSettings(model, "m", limits=ServeLimits(restarts=restarts, stall_s=0))
    staged = Supervision(
        lambda: cast(Worker, Staged(lives, state)),
        settings,
        (model,),
        tmp_path,
        state,
        lambda _: None,
        lambda _: None,
        heard.append,
        lambda: None,
    )
    return staged.run, state, heard


def test_one_that_dies_is_started_again_with_longer_and_longer_waits(tmp_path: Path) -> None:
    run, state, heard = supervise(tmp_path, [dies, does_not_start, dies, stops], restarts=3)
    run()

    assert [(event.attempt, event.wait_s) for event in heard] == [(1, 0.5), (2, 1.0), (3, 2.0)]
    assert (state.restarts, state.epoch, state.final) == (3, 3, None)
    assert state.path == tmp_path / "engine-3.sock"
    assert state.failures == {1: "llama.cpp died with SIGKILL", 2: "llama.cpp died with SIGKILL"}


def test_one_that_only_dies_is_given_up_with_a_sentence(tmp_path: Path) -> None:
    run, state, heard = supervise(tmp_path, [dies] * 9)
    with pytest.raises(
        WorkerCrash, match="died with SIGKILL; it was started again 2 times in a row without"
    ) as gave_up:
        run()

    assert len(heard) == 2
    assert state.final == "llama.cpp died with SIGKILL"
    assert gave_up.value.log_lines == ("its log",)


def test_one_that_answers_between_its_deaths_is_started_as_often_as_it_takes(tmp_path: Path) -> None:
    run, _, heard = supervise(tmp_path, [*[answers_and_dies] * 9, stops])
    run()

    assert [event.attempt for event in heard] == [1] * 9


@pytest.mark.parametrize("life", [does_not_start, dies])
def test_what_never_worked_is_not_tried_again(tmp_path: Path, life: Life) -> None:
    run, _, heard = supervise(tmp_path, [life], restarts=0 if life is dies else 5)
    with pytest.raises((RuntimeFailure, WorkerCrash)):
        run()
    assert heard == []


def test_a_failure_with_a_word_of_its_own_is_final(tmp_path: Path) -> None:
    run, state, heard = supervise(tmp_path, [fails, stops])
    with pytest.raises(RuntimeFailure, match="the disk failed"):
        run()
    assert (heard, state.final) == ([], "the disk failed")


def test_another_model_under_its_name_is_not_served_in_its_place(tmp_path: Path) -> None:
    def replaced(hear: Any, state: EngineState) -> None:
        hear(EngineListening("passive", 1))
        (tmp_path / "model.gguf").write_bytes(b"GGUF of another")
        raise WorkerCrash("llama.cpp died with SIGBUS")

    run, _, heard = supervise(tmp_path, [replaced, stops])
    with pytest.raises(WorkerCrash, match="SIGBUS"):
        run()
    assert heard == []


def test_a_link_made_to_the_file_changes_nothing(tmp_path: Path) -> None:
    def linked(hear: Any, state: EngineState) -> None:
        hear(EngineListening("passive", 1))
        (tmp_path / "link.gguf").hardlink_to(tmp_path / "model.gguf")
        raise WorkerCrash("llama.cpp died with SIGABRT")

    run, _, heard = supervise(tmp_path, [linked, stops])
    run()
    assert len(heard) == 1
