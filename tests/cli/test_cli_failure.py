"""What a program gets when a command fails under --json: one document, and a word for what went wrong."""

import json
import os
from pathlib import Path

import pytest

from dfqs import errors
from dfqs.cli import main as cli_main
from dfqs.cli.failure import OTHER_KINDS, ErrorDocument, describe_failure
from dfqs.cli.main import run
from dfqs.errors import (
    DfqsError,
    EndpointError,
    EndpointFault,
    FormatError,
    SpaceError,
    UnsupportedGGUF,
    UsageError,
    WorkerCrash,
)

KINDS = {
    "DfqsError": "failed",
    "UsageError": "usage",
    "AlreadyDone": "done-already",
    "FormatError": "format",
    "TruncatedGGUF": "truncated",
    "UnsupportedGGUF": "unsupported",
    "ShardError": "shards",
    "IntegrityError": "integrity",
    "SpaceError": "no-space",
    "NetworkError": "network",
    "EndpointError": "endpoint",
    "RuntimeFailure": "runtime",
    "NonFiniteLogits": "non-finite",
    "WorkerCrash": "worker-crash",
    "SandboxUnavailable": "no-sandbox",
}


def test_the_kinds_of_failure_are_the_ones_that_programs_know() -> None:
    classes = {
        name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, DfqsError)
    }

    # A kind never changes and never goes; a new class brings its own.
    assert {name: vars(value).get("kind") for name, value in classes.items()} == KINDS
    assert not set(KINDS.values()) & set(OTHER_KINDS)


def failure_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> ErrorDocument:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    document = json.loads(captured.err)
    assert next(iter(document)) == "schema"
    assert document["exit_code"] == code != 0
    return ErrorDocument.model_validate(document)


def test_a_failure_under_json_is_one_document_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\3\0\0\0" + bytes(3))

    found = failure_of(capsys, "inspect", broken, "--json")

    assert (found.kind, found.path, found.exit_code) == ("truncated", str(broken), 3)
    assert found.offset is not None
    assert found.message.startswith(str(broken))


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-verb", "--json"],
        ["inspect", "--json", "--no-such-option"],
        ["inspect", "--json"],
        ["split", "x.gguf", "-o", "y", "--max-tensors", "many", "--json"],
        ["merge", "/no/such-00001-of-00002.gguf", "--in-place", "--consume", "--json"],
        ["merge", "/no/such-00001-of-00002.gguf", "--json"],
    ],
    ids=" ".join,
)
def test_wrong_words_under_json_are_a_document_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = failure_of(capsys, *words)

    assert (found.kind, found.exit_code) == ("usage", 2)


def test_without_json_a_failure_stays_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    # What follows -- are words that only look like options.
    for words in (["inspect", "/no/such.gguf"], ["inspect", "--", "--json"]):
        assert run(words) == 2
        assert capsys.readouterr().err.startswith("dfqs: ")


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (KeyboardInterrupt(), "interrupted", 130),
        (MemoryError(), "no-memory", 3),
        (OSError(5, "Input/output error", "/dev/x"), "os", 3),
        (ZeroDivisionError("division by zero"), "internal", 3),
        (SpaceError("full"), "no-space", 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_way_to_end_has_its_kind(
    error: BaseException, kind: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli_main, "build_app", fail)

    found = failure_of(capsys, "inspect", "x", "--json")

    assert (found.kind, found.exit_code) == (kind, code)
    assert found.path == ("/dev/x" if kind == "os" else None)


def test_what_an_error_knows_is_in_its_document() -> None:
    unsupported = UnsupportedGGUF("big-endian", code="big-endian", fix="Convert it.", path="m", offset=4, name="k")
    described = describe_failure(unsupported, str(unsupported), 3, interrupted=False)
    assert (described.kind, described.code, described.hint) == ("unsupported", "big-endian", "Convert it.")
    assert (described.path, described.offset, described.name) == ("m", 4, "k")

    crash = describe_failure(WorkerCrash("it died", ("a", "b")), "it died\n  a", 3, interrupted=False)
    assert (crash.message, crash.log) == ("it died", ("a", "b"))

    silent = describe_failure(EndpointError("no answer", EndpointFault.SILENT), "no answer", 3, interrupted=False)
    assert (silent.kind, silent.code) == ("endpoint", "silent")
    assert describe_failure(UsageError("x"), "hung up", 129, interrupted=True).kind == "interrupted"


def test_a_name_of_any_bytes_can_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf"))
    path.write_bytes(b"GGUF")

    found = failure_of(capsys, "inspect", path, "--json")

    assert "\\udcff.gguf" in (found.path or "")
    assert isinstance(FormatError("x", path=path).path, Path)
