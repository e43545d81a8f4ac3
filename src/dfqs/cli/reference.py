"""docs/cli.md, rendered from the program itself so that it cannot go stale."""

import contextlib
import io
import os
from collections.abc import Iterator

import typer.main

from dfqs.cli.main import VERBS, build_app

WIDTH = "100"
HEADER = """# Command line

Written by `scripts/write-docs` from the program; a test fails when it is not current.

Data goes to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 a check failed, 2 usage, 3 operational
failure (I/O, network, runtime), 4 nobody measured it (`compare`, `conform`), 128 + signal when one ended it
(130 Ctrl-C, 143 SIGTERM, 129 a closed terminal). `DFQS_DEBUG=1` shows a traceback with an error.
"""


def render_reference() -> str:
    """The whole document."""
    sections = [HEADER, "## dfqs\n\n" + _block([], None)]
    for verb in VERBS:
        sections.append(f"## dfqs {verb}\n\n" + _block([verb], verb))
        sections.extend(f"### dfqs {verb} {inner}\n\n" + _block([verb, inner], verb) for inner in _inner_verbs(verb))
    return "\n".join(sections)


def _inner_verbs(verb: str) -> list[str]:
    command = getattr(typer.main.get_command(build_app(verb)), "commands", {})[verb]
    return list(getattr(command, "commands", {}))


def _block(words: list[str], verb: str | None) -> str:
    text = io.StringIO()
    with _fixed_width(), contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        build_app(verb, plain_help=True)(args=[*words, "--help"], prog_name="dfqs")
    lines = (line.rstrip() for line in text.getvalue().strip().splitlines())
    return "```text\n" + "\n".join(lines) + "\n```\n"


@contextlib.contextmanager
def _fixed_width() -> Iterator[None]:
    saved = {name: os.environ.get(name) for name in ("COLUMNS", "TERMINAL_WIDTH", "NO_COLOR")}
    os.environ.update(COLUMNS=WIDTH, TERMINAL_WIDTH=WIDTH, NO_COLOR="1")
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
