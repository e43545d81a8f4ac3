"""Every verb whose work goes on after a kill has one way to give that up, of one name."""

from pathlib import Path

import pytest
import typer.main

from dfqs.cli.main import VERBS, build_app, run
from dfqs.inplace import is_unfinished
from dfqs.inplace import merge as inplace
from dfqs.inplace.mover import Mover
from dfqs.shards import plan_merge
from inplace_cases import shards_fixture  # noqa: F401 - fixtures
from shard_inputs import sha256

SOURCE = Path(__file__).parents[2] / "src" / "dfqs"
KEPT_BY = {
    "pull/journal.py": ("pull",),
    "inplace/journal.py": ("merge",),
    "quantize/journal.py": ("quantize", "ladder"),
    "quantize/checkpoint.py": ("imatrix",),
    "evaluate/store.py": ("eval",),
}
"""Where a journal is, and the verbs that keep one."""
RESUMABLE = {verb for verbs in KEPT_BY.values() for verb in verbs}


def options_of(verb: str) -> set[str]:
    command = typer.main.get_command(build_app(verb))
    assert hasattr(command, "commands")
    return {option for parameter in command.commands[verb].params for option in parameter.opts}


def test_every_journal_belongs_to_a_verb_that_is_walked_here() -> None:
    kept = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if "JournalKind(" in path.read_text(encoding="utf-8") and path.parent.name != "storage"
    }

    assert kept == set(KEPT_BY)


@pytest.mark.parametrize("verb", VERBS)
def test_the_verbs_that_go_on_after_a_kill_are_those_with_restart(verb: str) -> None:
    assert ("--restart" in options_of(verb)) is (verb in RESUMABLE)


class Killed(BaseException):
    """As kill -9: nothing is tidied up."""


@pytest.mark.parametrize("moved", [False, True])
def test_restart_of_a_merge_puts_the_shards_back_and_begins_anew_or_says_why_it_cannot(
    moved: bool,
    shards: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["merge", str(shards[0]), "-o", str(tmp_path / "out.gguf")]
    assert run(["merge", str(shards[0]), "-o", str(tmp_path / "plain.gguf")]) == 0
    commit = Mover._commit

    def kill(mover: Mover, *arguments: object) -> None:
        if moved:
            commit(mover, *arguments)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Mover, "_commit", kill)
        inplace.merge_inplace(
            inplace.plan_inplace(plan_merge(shards[0]), tmp_path / "out.gguf", "consume", window_bytes=1 << 12)
        )
    assert is_unfinished(tmp_path / "out.gguf")

    code = run([*command, "--restart"])

    if moved:
        assert code == 3 and "cannot be undone" in capsys.readouterr().err
        assert run([*command, "--consume"]) == 0
    else:
        assert code == 0 and all(shard.exists() for shard in shards)
    assert sha256(tmp_path / "out.gguf") == sha256(tmp_path / "plain.gguf")
    assert not is_unfinished(tmp_path / "out.gguf")
