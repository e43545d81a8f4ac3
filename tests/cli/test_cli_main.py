"""The command line's frame: exit codes, one error boundary, and a help that costs nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfqs.cli import main as cli_main
from dfqs.cli.main import VERBS, run
from dfqs.errors import DfqsError, FormatError, IntegrityError, UsageError, WorkerCrash
from shard_inputs import write_model

HEAVY = ("numpy", "scipy", "huggingface_hub", "matplotlib", "pydantic", "xllamacpp", "jinja2", "httpx")
UNSEEN = (*HEAVY, "dfqs.records", "dfqs.inplace", "dfqs.quantize", "dfqs.shards.plain_merge", "rich", "ctypes")
UNSEEN_AT_A_LOOK = ("dfqs.storage.atomic", "dfqs.gguf.writer", "dfqs.model.hashes", "dfqs.runtime.worker", "hashlib")
"""What a file that is in order is looked at without; one that is not is explained by what repairs it."""


def dfqs(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dfqs.cli.main", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=120,
    )


def test_help_lists_every_verb_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from dfqs.cli.main import run; code = run(['--help']);"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules];"
        "print('HEAVY', heavy, 'CODE', code)"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "HEAVY [] CODE 0" in result.stdout
    for verb in VERBS:
        assert verb in result.stdout


@pytest.mark.parametrize("json_", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_look_at_a_file_loads_neither_what_checks_documents_nor_what_computes(
    verb: str, json_: list[str], tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model.gguf")
    unseen = UNSEEN + (UNSEEN_AT_A_LOOK if verb == "inspect" else ())
    code = (
        "import sys; from dfqs.cli.main import run; code = run(sys.argv[1:]);"
        f"found = [m for m in {unseen!r} if m in sys.modules]; print('LOADED', found, 'CODE', code)"
    )

    command = [sys.executable, "-c", code, verb, str(model), *json_]
    result = subprocess.run(command, capture_output=True, text=True, check=True)

    # `verify` has something to say about keys that are not there.
    assert result.stdout.endswith(f"LOADED [] CODE {int(verb == 'verify')}\n"), result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0

    text = capsys.readouterr().out
    if verb != "route":
        assert "Example" in text
        assert "--json" in text


@pytest.mark.parametrize(
    "arguments", [[], ["no-such-verb"], ["inspect"], ["inspect", "--no-such-option", "x"]], ids=lambda a: " ".join(a)
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    assert dfqs(*arguments).returncode == 2


def test_a_verb_that_is_misspelt_or_forgotten_is_helped_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run([word]) for word in ("insepct", "model.gguf", "nonsense")] == [2, 2, 2]

    misspelt, forgotten, nonsense = capsys.readouterr().err.splitlines()
    assert misspelt == "dfqs: no such verb 'insepct'. Did you mean 'inspect'? See 'dfqs --help'"
    assert forgotten == 'dfqs: a model stands behind its verb: dfqs run model.gguf "Hello"'
    assert nonsense == "dfqs: no such verb 'nonsense'; see 'dfqs --help'"


def test_version() -> None:
    result = dfqs("--version")

    assert (result.returncode, result.stdout) == (0, "dfqs 0.1.0\n")


@pytest.mark.parametrize(
    "error, code, message",
    [
        (UsageError("no"), 2, "dfqs: no\n"),
        (FormatError("bad", path="f", offset=7, name="t"), 3, "dfqs: f at byte 7: 't': bad\n"),
        (WorkerCrash("died", ("a", "b")), 3, "dfqs: died\nlast lines of its log:\n  a\n  b\n"),
        (OSError(5, "Input/output error", "f"), 3, "dfqs: f: Input/output error\n"),
        (KeyboardInterrupt(), 130, "dfqs: interrupted; nothing half-written stands under its final name\n"),
    ],
)
def test_error_becomes_one_message_and_its_exit_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert cli_main._guarded(fail) == code
    assert capsys.readouterr().err == message


def test_unexpected_error_is_no_traceback_unless_asked_for(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing.gguf")

    plain, debug = dfqs("inspect", missing), dfqs("inspect", missing, DFQS_DEBUG="1")

    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert plain.returncode == debug.returncode == 2


def test_every_error_has_an_exit_code_of_the_convention() -> None:
    pending = [DfqsError]
    while pending:
        error = pending.pop()
        assert error.exit_code in (2, 3, cli_main.INTERRUPTED)
        pending.extend(error.__subclasses__())
    assert issubclass(IntegrityError, DfqsError)


@pytest.mark.parametrize("loading", ["dfqs.cli.main", "typer", "dfqs.cli.inspect"])
def test_interrupt_while_the_command_line_loads_is_no_traceback(loading: str) -> None:
    code = f"""if True:
        import os, signal, sys
        from dfqs.__main__ import main

        class Interrupting:
            def find_spec(self, name, path, target=None):
                if name == {loading!r}:
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Interrupting())
        sys.argv[1:] = ["inspect", "nothing.gguf"]
        main()
    """

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (130, "dfqs: interrupted before anything was done\n")


def test_reader_that_goes_away_is_not_an_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m dfqs.cli.main --help | head -c 1"

    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)

    assert "Traceback" not in result.stderr
    assert "dfqs:" not in result.stderr
