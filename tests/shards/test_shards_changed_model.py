"""A model that changes while it is split or repaired leaves no output of mixed bytes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqs.errors import FormatError, ShardError
from dfqs.shards import merge, plan_merge
from dfqs.shards.repair import plan_repair, repair
from dfqs.shards.split import plan_split, split
from inplace_cases import make_shards


def overwrite(path: Path) -> None:
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(state.st_size // 2)
        file.write(b"\xaa" * 1000)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replace(path: Path) -> None:
    state = path.stat()
    shutil.copy2(path, path.with_name("other"))
    overwrite(path.with_name("other"))
    path.with_name("other").replace(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


changes = pytest.mark.parametrize("change", [overwrite, replace])


@pytest.fixture(name="model")
def model_fixture(tmp_path: Path) -> Path:
    merge(plan_merge(make_shards(tmp_path / "in")[0]), tmp_path / "model.gguf")
    (tmp_path / "out").mkdir()
    return tmp_path / "model.gguf"


def once(do: Callable[[], None]) -> Callable[..., None]:
    done: list[bool] = []

    def progress(*_: object) -> None:
        if not done:
            done.append(True)
            do()

    return progress


@changes
@pytest.mark.parametrize("when", ["planned", "copied"])
def test_model_that_changes_is_not_split(change: Callable[[Path], None], when: str, model: Path) -> None:
    plan = plan_split(model, model.parent / "out" / "s", max_tensors=20)
    if when == "planned":
        change(model)

    with pytest.raises(ShardError, match=r"model\.gguf.*(another file|was changed)"):
        split(plan, progress=once(lambda: change(model)))

    assert list((model.parent / "out").iterdir()) == []


@changes
@pytest.mark.parametrize("when", ["planned", "copied"])
def test_damaged_model_that_changes_is_not_repaired(change: Callable[[Path], None], when: str, model: Path) -> None:
    with model.open("ab") as file:
        file.write(b"trailing")
    plan = plan_repair(model)
    if when == "planned":
        change(model)

    with pytest.raises(FormatError, match=r"model\.gguf.*changed or replaced"):
        repair(plan, model.parent / "out" / "m.gguf", progress=once(lambda: change(model)))

    assert list((model.parent / "out").iterdir()) == []


def test_pipe_named_like_a_partial_does_not_stop_a_split(model: Path) -> None:
    os.mkfifo(model.parent / "out" / ".s-00001-of-00003.gguf.00000000.partial")

    split(plan_split(model, model.parent / "out" / "s", max_tensors=20))

    assert len(list((model.parent / "out").glob("s-*.gguf"))) == 3
