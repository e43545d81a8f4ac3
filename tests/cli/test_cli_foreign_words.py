"""Words from outside (keys, file names, arguments, a server's answers) reach the screen as words: a terminal obeys none
of them, and none is read as markup."""

import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_processes import RunningDfqs
from dfqs.cli import drawing, output
from dfqs.cli.drawing import progress_bar
from dfqs.cli.main import VERBS, run
from dfqs.gguf import GGMLType, string, u32
from dfqs.pull import Hub
from gguf_builder import SMALL_KEYS, write_small
from hub_server import FakeHub
from shard_inputs import tiny_entries, tiny_tensors, write_shards

EVIL = "evil [/b] \x1b]0;owned\x07 \x1b[2J \x9b2J \x7f \r \x00 :smile: \u202e \u2066"
SAID = EVIL.replace("\x00", "")
"""As an argument, which cannot hold a NUL."""
EVIL_FILE = "m[b]\x1b[2J\x9b2J\x7f\r\u202e" + os.fsdecode(b"\xff")
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
OUR_OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AK]|\r(?=[\n\x1b]|$)")
"""Colours, and what moves a progress bar."""
KEYS = [
    string("general.architecture", "llama"),
    string("general.name", EVIL),
    string("general.description", EVIL),
    string("dfqs.class", EVIL),
    string("tokenizer.chat_template", EVIL),
    *(entry for entry in SMALL_KEYS if not entry.name.startswith("general.")),
]


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder in which everything has a hostile name and says hostile things of itself."""
    folder = tmp_path / f"folder {EVIL_FILE}"
    folder.mkdir()
    write_small(folder / f"{EVIL_FILE}.gguf", keys=KEYS)
    write_small(folder / "plain.gguf")
    write_small(folder / f"twin {EVIL_FILE}.gguf", keys=KEYS)
    write_small(folder / "stranger.gguf", keys=[string("general.architecture", EVIL), u32(f"{EVIL}.block_count", 1)])
    hostile = [(f"blk.0.{EVIL[:30]}.weight", (64, 10), GGMLType.F32)]
    write_small(folder / "tensors.gguf", keys=KEYS, tensors=hostile)
    (folder / "broken.gguf").write_bytes((folder / "tensors.gguf").read_bytes()[:-40])
    (folder / f"{EVIL_FILE}.txt").write_text(EVIL)
    (folder / "manifest.json").write_text(json.dumps({"schema": EVIL, EVIL: EVIL}))
    tensors = tiny_tensors()
    write_shards(folder, tiny_entries(), [tensors[:3], tensors[3:]], prefix=f"shard {EVIL_FILE}")
    return folder


def cases(folder: Path) -> dict[str, list[list[Any]]]:
    """Verb -> calls that meet the hostile words; most end in a refusal, which is where words are quoted."""
    model, text, missing = folder / f"{EVIL_FILE}.gguf", folder / f"{EVIL_FILE}.txt", folder / f"none {EVIL_FILE}.gguf"
    others = [folder / "stranger.gguf", folder / "tensors.gguf", folder / "broken.gguf", missing, text]
    shard = next(folder.glob("shard*-00001-of-*"))
    every = [model, *others]
    return {
        "demo": [["--out", text]],
        "pull": [[SAID], [f"owner/{SAID}@{SAID}", "-o", folder, "--retries", "0"]],
        "cache": [["add", SAID], ["remove", SAID], ["remove", f"owner/{SAID}"], [SAID]],
        "merge": [
            *[[path] for path in every],
            [shard, "--dry-run"],
            [shard, "--window", SAID],
            [shard, "-o", missing],
        ],
        "split": [*[[path, "-o", folder / f"parts {EVIL_FILE}", "--max-tensors", "2"] for path in every]],
        "inspect": [
            *[[path] for path in every],
            [shard],
            [f"hf:{SAID}"],
            [model, "--keys", "--tensors", "--tokenizer"],
            [folder / "tensors.gguf", "--tensors"],
            [model, "--diff", folder / "tensors.gguf"],
            [model, "--diff", missing],
        ],
        "verify": [
            *[[path] for path in every],
            [model, "--hash"],
            [model, "--manifest", folder / "manifest.json"],
            [model, "--against", shard],
            [model, "--attestation", folder / "manifest.json", "--public-key", text],
        ],
        "attest": [*[[path, "--key", text] for path in every], [model], ["--new-key", missing], [shard, "--key", SAID]],
        "manifest": [*[[path, "--dry-run"] for path in every], [model, "--dry-run", "--shards", shard]],
        "repair": [
            *[[path, "-o", folder / f"fixed {EVIL_FILE}.gguf"] for path in every],
            *[[path, "-o", folder / f"said {EVIL_FILE}.gguf", "--dialect", "upstream"] for path in every],
        ],
        "find": [[folder], [missing]],
        "quantize": [*[[path, "--dry-run"] for path in every], [model, missing, "--class", SAID]],
        "ladder": [*[[path, folder / "ladder", "--classes", SAID] for path in every]],
        "audit": [
            *[[path, "--source", model, "--seed", "1"] for path in others],
            [missing, "--source", SAID],
            [model, "--source", model, "--imatrix", text, "--seed", "1"],
            [model, "--source", folder / "plain.gguf", "--seed", "1"],
        ],
        "imatrix": [*[[path, "-o", missing, "--dry-run"] for path in every], [model, "-o", model]],
        "perplexity": [*[[path, "--dry-run"] for path in every], [model, "--reference", text, "--text", text]],
        "runtime": [["use", SAID], ["use", missing], ["install", SAID], ["install", "--library", folder]],
        "run": [*[[path, "-p", SAID] for path in others]],
        "chat": [*[[path] for path in others]],
        "plan": [*[[path] for path in every], [model, "--ctx", SAID], [model, "--kv", SAID], [model, "--ram", SAID]],
        "forecast": [[missing], [text], [model, "--ctx", SAID], [model, "--plot", text]],
        "tune": [*[[path] for path in others], [model, "--show"], [model, "--budget", SAID]],
        "serve": [*[[path, "--host", SAID] for path in others]],
        "eval": [*[[path, "-o", folder / EVIL_FILE] for path in others], ["--endpoint", SAID, "-o", folder]],
        "route": [
            *[["check", path] for path in others],
            ["trace", model, "-o", text],
            ["stats", text],
            ["diff", text, missing],
            ["pressure", model, "--lengths", SAID],
        ],
        "config": [["set", SAID, SAID], ["set", "threads", SAID], ["unset", SAID], [SAID]],
        "report": [[folder], [missing], [text]],
        "conform": [
            [model, "--report", folder],
            [folder / "stranger.gguf", "--report", text],
            [missing, "--report", text],
        ],
        "card": [
            [model, "--report", folder],
            [folder / "stranger.gguf", "--report", text, "--repo", SAID],
            [model, "--report", text, "--author", SAID, "--out", folder / f"R {EVIL_FILE}.md"],
            [missing, "--report", text, "--base-model", SAID],
        ],
        "publish": [[model, SAID], [missing, "owner/name"], [model, "owner/name", "--report", text]],
        "compare": [[folder, missing], [text, text], [missing]],
        "deploy": [
            *[["--list", path] for path in every],
            *[["jan", path, "--dry-run", "--name", SAID] for path in every],
            ["pi", model, "--dry-run", "--endpoint", SAID],
            ["lm-studio", model, "--undo"],
            [SAID, model],
        ],
    }


def assert_words_only(written: str) -> None:
    assert not OBEYED.search(written), ascii(written)
    assert "internal error" not in written


@pytest.mark.thorough
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_lets_a_foreign_word_command_the_terminal(
    verb: str, terminal: bool, evil: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfqs.pull.hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("TERM", "xterm-256color")
    kind = Terminal if terminal else io.TextIOWrapper
    calls = cases(evil)[verb]
    if not terminal:
        # JSON is written past everything that asks what it is written to.
        calls = [call for arguments in calls for call in (arguments, [*arguments, "--json"])]
    calls += [[f"--{SAID}"], [f"--{SAID}={SAID}"], [SAID] * 5, ["--threads", SAID], ["--output", SAID, "--max-size"]]
    for arguments in calls:
        raw = io.BytesIO()
        stream = kind(raw, encoding="utf-8", newline="\n", write_through=True)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        run([verb, *map(str, arguments)])
        written = raw.getvalue().decode()
        assert_words_only(OUR_OWN.sub("", written) if terminal else written)


def test_a_chat_template_goes_into_a_pipe_as_it_is_and_commands_no_terminal(
    evil: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {}
    for kind in (io.TextIOWrapper, Terminal):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", kind(raw, encoding="utf-8", newline="\n", write_through=True))
        assert run(["inspect", str(evil / f"{EVIL_FILE}.gguf"), "--template"]) == 0
        written[kind] = raw.getvalue().decode()

    assert written[io.TextIOWrapper] == f"{EVIL}\n"
    assert_words_only(written[Terminal])


def test_a_verb_or_option_that_does_not_exist_is_quoted_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run([SAID]), run([f"--{SAID}"]), run(["merge", "a", "--window"]), run(["route", SAID])] == [2, 2, 2, 2]

    printed = capsys.readouterr()
    assert_words_only(printed.out + printed.err)
    assert "\\x1b]0;owned\\x07" in printed.err


def test_a_pull_ends_well_where_a_name_in_the_repository_looks_like_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_small(tmp_path / "small.gguf").read_bytes()
    with FakeHub(files={"a[/x].gguf": data}) as hub:
        monkeypatch.setattr("dfqs.cli.pull.Hub", lambda retry: Hub(hub.endpoint, "none", retry))
        code = run(["pull", hub.repo, "-o", str(tmp_path / "out.gguf"), "--no-cache"])

    assert code == 0
    assert_words_only("".join(capsys.readouterr()))


def test_a_name_like_markup_or_an_escape_is_drawn_beside_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", Terminal(raw, encoding="utf-8", newline="\n", write_through=True))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(drawing, "err", output.SafeConsole(stderr=True))
    with progress_bar(f"loading {EVIL}", "items") as progress:
        progress(1, 2, EVIL)

    written = raw.getvalue().decode()
    assert "evil [/b]" in written
    assert_words_only(OUR_OWN.sub("", written))


@pytest.mark.parametrize(
    "say",
    [output.note, output.warn, output.complain, output.print_plain, output.out.print, output.err.print],
    ids=lambda f: f.__qualname__,
)
def test_every_way_to_say_something_shows_controls_as_numbers(
    say: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    say(f"{EVIL}\udc80")

    printed = "".join(capsys.readouterr())
    assert_words_only(printed)
    for shown in ("evil [/b]", "\\x1b]0;owned\\x07", "\\x9b2J", "\\x7f", "\\x00", ":smile:", "\\u202e", "\\udc80"):
        assert shown in printed


def test_json_for_programs_has_no_control_characters_either(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({EVIL: [EVIL, "\udc80"]})

    printed = capsys.readouterr().out
    assert printed.isascii()
    assert_words_only(printed)
    assert json.loads(printed) == {EVIL: [EVIL, "\udc80"]}


def test_what_the_locale_cannot_write_is_shown_as_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))

    output.out.print("café ✓")

    assert raw.getvalue() == b"caf\\xe9 \\u2713\n"


def test_a_real_terminal_gets_the_words_of_a_model_as_words(evil: Path) -> None:
    with RunningDfqs("inspect", evil / f"{EVIL_FILE}.gguf", terminal=True) as running:
        seen = running.read_until("output")
        running.wait()

    assert "evil [/b]" in seen
    assert_words_only(OUR_OWN.sub("", seen))
