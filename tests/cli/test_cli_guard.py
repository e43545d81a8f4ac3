"""No verb destroys a file: not one that is there already, unless told to, and never one that it reads."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dfqs.cli.guard import check_output
from dfqs.cli.main import VERBS, run
from dfqs.demo import MODEL_NAME, _earlier_files, run_demo
from dfqs.demo_record import DemoRecord
from dfqs.errors import UsageError
from dfqs.progress import Progress
from dfqs.pull import Hub
from dfqs.records import write_json
from dfqs.report.record import check_report_place
from dfqs.storage.hashing import hash_file
from gguf_builder import write_small
from hub_server import FakeHub
from report_documents import MODEL, report_document
from shard_inputs import tiny_entries, tiny_tensors, write_shards

SET = ("s-00001-of-00002.gguf", "s-00002-of-00002.gguf")
NO_OUTPUT = {
    "cache",
    "config",
    "inspect",
    "verify",
    "find",
    "plan",
    "tune",
    "runtime",
    "run",
    "chat",
    "serve",
    "report",
    "conform",
    "deploy",
    "publish",
    "audit",
}
"""Verbs that write no file where the user says; `report` writes beside the results that it reads, `deploy` where the
systems look (tests/targets)."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One of everything that a verb reads, and a thesis."""
    write_small(tmp_path / "m.gguf")
    for name in ("imatrix.gguf", "other.gguf", "logits.gguf"):
        write_small(tmp_path / name, seed=name)
    for name in ("text.txt", "thesis.txt", "prompts.txt"):
        (tmp_path / name).write_text(f"{name}: years of work")
    (tmp_path / "report.json").write_text(json.dumps(report_document()))
    for name in ("key.pem", "c.pem", "r.pem"):
        (tmp_path / name).write_text(f"{name}: whoever has it signs in my name")
    (tmp_path / "recipe.toml").write_text('name = "mine"\n')
    write_shards(tmp_path, tiny_entries(), [tiny_tensors()[:3], tiny_tensors()[3:]], prefix="s")
    with FakeHub(files={"m.gguf": (tmp_path / "m.gguf").read_bytes()}) as hub:
        monkeypatch.setattr("dfqs.cli.pull.Hub", lambda retry: Hub(hub.endpoint, "none", retry))
        monkeypatch.chdir(tmp_path)
        yield tmp_path


class Call:
    """A verb's call that writes `-o`, and what it reads."""

    def __init__(self, words: str, option: str, *inputs: str, overwrite: bool = True) -> None:
        self.words, self.option, self.inputs, self.overwrite = words.split(), option, inputs, overwrite

    def arguments(self, target: str, *, overwrite: bool) -> list[str]:
        where = [target] if not self.option else [self.option, target]
        return [*self.words, *where, *(["--overwrite"] if overwrite and self.overwrite else [])]


CALLS = [
    Call("manifest m.gguf --shards s-00001-of-00002.gguf", "-o", "m.gguf", *SET),
    Call("attest m.gguf --key key.pem --certificate c.pem --certificate-chain r.pem", "-o", "m.gguf", "c.pem"),
    Call("attest s-00001-of-00002.gguf --key key.pem", "-o", "s-00001-of-00002.gguf", "s-00002-of-00002.gguf"),
    Call("route check m.gguf", "--out", "m.gguf"),
    Call("route trace m.gguf --prompts prompts.txt", "-o", "m.gguf", "prompts.txt"),
    Call("perplexity m.gguf --text text.txt", "--save", "m.gguf", "text.txt"),
    Call("perplexity s-00001-of-00002.gguf", "--save", "s-00001-of-00002.gguf", "s-00002-of-00002.gguf"),
    Call("forecast m.gguf --trace other.gguf", "--plot", "m.gguf", "other.gguf"),
    Call("imatrix m.gguf --corpus text.txt --add imatrix.gguf", "-o", "m.gguf", "text.txt", "imatrix.gguf"),
    Call("imatrix --add imatrix.gguf --add other.gguf", "-o", "imatrix.gguf", "other.gguf"),
    Call("quantize m.gguf --class Q8_0 --imatrix imatrix.gguf", "", "m.gguf", "imatrix.gguf"),
    Call("quantize m.gguf --class recipe.toml", "", "m.gguf", "recipe.toml"),
    Call("ladder m.gguf --classes Q8_0 --imatrix imatrix.gguf", ""),
    Call("merge s-00001-of-00002.gguf", "-o", "s-00001-of-00002.gguf", "s-00002-of-00002.gguf", overwrite=False),
    Call("merge s-00001-of-00002.gguf --consume", "-o", "s-00002-of-00002.gguf", overwrite=False),
    Call("repair m.gguf", "-o", "m.gguf", overwrite=False),
    Call("pull owner/model", "-o", overwrite=False),
    Call("card m.gguf --report report.json", "--out", "m.gguf", "report.json"),
    Call("card m.gguf --report report.json", "--bom", "m.gguf", "report.json"),
    Call("compare report.json report.json", "--html", "report.json"),
    Call("eval m.gguf", "-o", "m.gguf", overwrite=False),
    Call("demo", "--out", overwrite=False),
]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and not path.is_symlink()}


def links(source: Path) -> Iterator[Path]:
    """The file under its own name, a hard link's and a symlink's."""
    yield source
    hard, soft = source.with_name(f"hard-{source.name}"), source.with_name(f"soft-{source.name}")
    os.link(source, hard)
    yield hard
    soft.symlink_to(source)
    yield soft


def test_every_verb_that_writes_is_walked() -> None:
    assert {call.words[0] for call in CALLS} | {"split"} | NO_OUTPUT == set(VERBS)


def test_a_split_replaces_no_shard_that_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)

    assert run(["split", "m.gguf", "--max-tensors", "3", "-o", "s"]) == 2
    assert "s-00001-of-00002.gguf exists already" in capsys.readouterr().err
    assert contents(folder) == before


@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join(call.words))
def test_what_is_there_already_stays_unless_told_otherwise(call: Call, folder: Path) -> None:
    before = contents(folder)

    code = run(call.arguments("thesis.txt", overwrite=False))

    assert code in (2, 3)
    assert {name: before[name] for name in before} == {name: contents(folder).get(name) for name in before}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join(call.words))
def test_what_a_verb_reads_is_never_replaced_under_whatever_name(
    call: Call, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in call.inputs:
        for target in links(folder / name):
            before = contents(folder)

            code = run(call.arguments(target.name, overwrite=True))

            assert code in (2, 3), target
            assert contents(folder) == before, target
            assert target.is_symlink() == target.name.startswith("soft-")
            assert "internal error" not in capsys.readouterr().err


@pytest.mark.parametrize("call", [call for call in CALLS if call.words[0] != "demo"], ids=lambda c: " ".join(c.words))
def test_a_pipe_is_not_waited_for_nor_replaced(call: Call, folder: Path) -> None:
    os.mkfifo(folder / "pipe")

    assert run(call.arguments("pipe", overwrite=True)) in (2, 3)
    assert (folder / "pipe").is_fifo()


def test_a_shard_stands_for_its_whole_set(folder: Path) -> None:
    with pytest.raises(UsageError, match="both input and output"):
        check_output(folder / "s-00002-of-00002.gguf", [folder / "s-00001-of-00002.gguf"], overwrite=True)


@pytest.mark.parametrize(
    "words", ["quantize m.gguf out.gguf --class Q8_0", "pull owner/model -o out.gguf --no-cache"], ids=lambda w: w[:8]
)
def test_another_file_under_the_manifests_name_is_refused_before_the_work(words: str, folder: Path) -> None:
    (folder / "out.gguf.manifest.json").write_text("mine")

    assert run(words.split()) == 2
    assert (folder / "out.gguf.manifest.json").read_text() == "mine"
    assert not (folder / "out.gguf").exists()


def test_a_manifest_is_replaced_when_told_to(folder: Path) -> None:
    assert run(["manifest", "m.gguf", "-o", "thesis.txt", "--overwrite"]) == 0
    assert json.loads((folder / "thesis.txt").read_text())["file_name"] == "m.gguf"


@pytest.mark.parametrize("name", ["report.json", "report.md", "report.html"])
def test_an_evaluation_does_not_replace_somebody_elses_report(name: str, folder: Path) -> None:
    (folder / name).write_text("{}")

    with pytest.raises(UsageError, match=f"{name} exists already"):
        check_report_place(folder)
    assert run(["eval", "m.gguf", "-o", str(folder)]) == 2
    assert (folder / name).read_text() == "{}"


class Silent:
    def step(self, number: int, total: int, title: str) -> AbstractContextManager[Progress]:
        raise AssertionError(f"step {number} began")

    def say(self, line: str) -> None: ...


def demo_record(files: dict[str, str]) -> DemoRecord:
    return DemoRecord(
        dfqs_version="0", made_at="", model=MODEL, file_sha256=None, content_sha256="",
        prompt="", answer="", answer_tokens=0, decode_tokens_per_s=None, prompt_tokens_per_s=None, threads=1,
        omp_wait_policy="", steps=[], files=files,
    )  # fmt: skip


def changed(folder: Path) -> None:
    (folder / "report.json").write_text("another's")


def replaced_record(folder: Path) -> None:
    (folder / "demo.json").write_text("[]")


def linked(folder: Path) -> None:
    (folder / "report.md").rename(folder / "elsewhere")
    (folder / "report.md").symlink_to(folder / "elsewhere")


@pytest.mark.parametrize("spoil", [changed, replaced_record, linked])
def test_the_demonstration_replaces_only_what_it_made_itself(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    names = ("report.json", "report.md", "report.html", "demo.md", MODEL_NAME)
    for name in names:
        (tmp_path / name).write_text(f"of the demonstration: {name}")
    record = demo_record({name: hash_file(tmp_path / name) for name in names})
    write_json(tmp_path / "demo.json", record)

    assert _earlier_files(tmp_path) == record.files
    spoil(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="not of an earlier demonstration"):
        run_demo(tmp_path, Silent())

    assert contents(tmp_path) == before


@pytest.mark.parametrize("verb", [["demo", "--out"], ["eval", "--endpoint", "http://127.0.0.1:9/v1", "-o"]])
def test_a_file_where_a_directory_is_wanted_is_refused_in_words(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ended with the number of an operating system's error, and eval said that results were stored."""
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")

    assert run([*verb, str(thesis)]) == 2

    assert "is a file; name a directory" in capsys.readouterr().err
    assert thesis.read_text() == "years of work"
