"""A deployment killed between any two changes to the disk: nothing of the user's is lost, and the same command ends it.

A child process is killed with SIGKILL before the n-th change that Python makes to the file system (told by its audit
events), for every n.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployments import MODEL_BYTES, Place, make_place, snapshot

from dfqs.targets.catalogue import find_target
from dfqs.targets.contract import Target
from dfqs.targets.kept import read_deployment

CHANGES = frozenset({"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"})
MINE = {
    ".pi/agent/models.json": '{\n  // mine\n  "providers": {"ollama": {"baseUrl": "x"}}\n}\n',
    ".config/lemonade/config.json": '{"port": 1}\n',
    ".config/lemonade/recipe_options.json": '{"user.mine": {"ctx_size": 5}}\n',
}


def killed_before(change: int, work: Callable[[], Any]) -> bool:
    """Do `work` in a child that is killed before its `change`-th change; whether it was killed."""
    child = os.fork()
    if child == 0:
        count = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            writes = (
                event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & (os.O_CREAT | os.O_TRUNC))
            )
            if event in CHANGES or writes:
                count += 1
                if count > change:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            work()
            os._exit(0)
        except BaseException:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the work failed"
    return os.WIFSIGNALED(status)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("DFQS_CACHE", str(tmp_path / "cache"))
    place = make_place(tmp_path)
    for name, text in MINE.items():
        path = place.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def assert_nothing_lost(place: Place, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Each of the user's files is as it was or as it is to be, whole; the model is untouched."""
    now = snapshot(place.home)
    for name in MINE:
        assert now[name] in (before[name], after[name]), name
    assert Path(place.model.path).read_bytes() == MODEL_BYTES


CASES = [("lemonade", "copy"), ("pi", None), ("lm-studio", "symlink")]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_killed_anywhere_a_deployment_is_ended_by_the_same_command_and_undone_from_any_state(
    name: str, way: Any, place: Place
) -> None:
    target: Target = find_target(name)
    ways = (way,) if way is not None else None
    before = snapshot(place.home)
    place.write(target, ways)
    after = snapshot(place.home)
    place.undo(target)
    assert snapshot(place.home) == before

    change = 0
    while killed_before(change, lambda: place.write(target, ways)):
        assert_nothing_lost(place, before, after)
        if change % 2:
            place.write(target, ways)
            assert without_partials(snapshot(place.home)) == after
        if read_deployment(place.directory(target)) is not None:
            place.undo(target)
        assert without_partials(snapshot(place.home)) == before, change
        change += 1
    assert change > 5


@pytest.mark.parametrize(("name", "way"), CASES)
def test_killed_anywhere_an_undo_is_ended_by_the_same_command(name: str, way: Any, place: Place) -> None:
    target: Target = find_target(name)
    ways = (way,) if way is not None else None
    before = snapshot(place.home)
    place.write(target, ways)
    after = snapshot(place.home)

    change = 0
    while killed_before(change, lambda: place.undo(target)):
        assert_nothing_lost(place, before, after)
        if read_deployment(place.directory(target)) is not None:
            place.undo(target)
        assert without_partials(snapshot(place.home)) == before, change
        place.write(target, ways)
        change += 1
    assert change > 2


def without_partials(found: dict[str, Any]) -> dict[str, Any]:
    """A killed writer's temporary file is removed by the next writer of the same name; it is nobody's loss."""
    return {name: data for name, data in found.items() if not name.endswith(".partial")}
