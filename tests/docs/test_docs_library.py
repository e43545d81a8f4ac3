"""docs/library.md is a program that runs."""

import pydoc
import re
from pathlib import Path

import pytest

from dfqs.evaluate.local import LocalAnswerer
from dfqs.shards.split import plan_split, split
from short_answers import complete_shortly

PAGE = Path(__file__).parents[2] / "docs" / "library.md"


def test_the_program_in_the_library_page_runs_on_real_shards(
    embedded_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").mkdir()
    shards = split(plan_split(embedded_model, tmp_path / "shards" / "model", max_bytes=80_000_000))
    assert len(shards) == 3
    program = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalAnswerer, "complete", complete_shortly)

    exec(compile(program, str(PAGE), "exec"), {"__name__": "__main__"})

    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"3 shards, 302 tensors, [\d,]+ bytes", lines[0])
    assert re.fullmatch(r"[0-9a-f]{64}", lines[1])
    assert lines[2] == "model.gguf exists already and is not replaced; choose another name or remove it first"
    assert lines[-1] == "1.0"


def test_every_name_in_the_library_page_exists() -> None:
    names = set(re.findall(r"`(dfqs\.[\w.]+)`", PAGE.read_text(encoding="utf-8")))

    assert len(names) > 10
    assert not [name for name in names if pydoc.locate(name) is None]
