"""Entry point of `dfqs`: the table of verbs, and the one place where errors become messages and exit codes.

A verb's module is imported only when that verb is asked for, so that `dfqs --help` costs no more than Python and typer.
"""

import importlib
import inspect
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import IO, Annotated, Any

import typer

from dfqs import __version__
from dfqs.cli.completing import completed_words, mend_zsh
from dfqs.cli.output import STANDARD_OUTPUT, complain, complain_json, drop, err, print_plain
from dfqs.cli.signals import WORDS, exit_code, let_signals_go, received, take_signals
from dfqs.errors import DfqsError, UsageError, printable

VERBS: dict[str, str] = {
    "demo": "The whole flow on the embedded model, offline after the first fetch; ends with a report.",
    "pull": "Fetch a model's shards from the Hub straight into one file.",
    "cache": "List, fetch and remove the models of the Hub that are kept here.",
    "merge": "Make one file of a model's shards.",
    "split": "Make shards of one file.",
    "inspect": "Show what a model is: parameters, experts, bits per weight by role, class and tier.",
    "verify": "Check a model's structure and hashes, or prove it equal to its shards.",
    "manifest": "Write down a model's hashes and where it came from.",
    "attest": "Sign a model, and how it was made, so that others can check both.",
    "repair": "Make a correct file of a damaged one, where its bytes are all there.",
    "find": "Find GGUF files on this machine, and copies that could be freed.",
    "quantize": "Make an artifact of a deployment class out of a model.",
    "ladder": "Make several classes of a model, and measure each against it.",
    "imatrix": "Measure which weights matter, per expert, for quantizing.",
    "audit": "Spot-check a published quantization against its source, reading no more than it needs.",
    "perplexity": "Measure per-token loss, and divergence from a reference.",
    "plan": "Say whether a model fits, here or elsewhere, and with which settings.",
    "forecast": "Say how fast a model will be on this machine, by context and against memory.",
    "tune": "Find the settings that make a model fastest on this machine, and keep them.",
    "runtime": "Show which llama.cpp is used, and install or choose another build.",
    "run": "Answer one prompt.",
    "chat": "Talk with a model in the terminal.",
    "serve": "Serve a model over HTTP (OpenAI-compatible, with a web page) on this machine.",
    "eval": "Measure the five DFQS metrics.",
    "route": "Capture, check and compare expert routing.",
    "report": "Render an evaluation's report.",
    "compare": "Compare evaluations question by question, or say why they do not compare.",
    "conform": "Hold a model against the specification, clause by clause.",
    "card": "Write a model card for the Hub, of measured values alone.",
    "publish": "Publish a model to the Hub with its manifest, card and report.",
    "deploy": "Bring a model into the systems people already use.",
    "config": "Show and keep defaults: threads, context, where models are kept, which Hub.",
}
"""Verb -> one line of help, in the order that the data flows. `dfqs.cli.<verb>` holds `command` (or `app`, for a verb
with verbs of its own)."""

PANELS = {
    "demo": "Begin here",
    "pull": "Get a model, in one file",
    "inspect": "Know what it is",
    "quantize": "Make it smaller",
    "plan": "Will it fit, and how fast",
    "run": "Use it",
    "eval": "Measure it, and say what that means",
    "deploy": "Bring it to where it is used",
    "config": "dfqs itself",
}
"""Titles of groups of verbs in the help, each with the first of its verbs."""
ALSO = {"help": "Show the help of a verb: dfqs help run.", "version": "Print the version."}
"""Words that other programs have for --help and --version."""

MODEL_FIRST = (
    *("run", "chat", "serve", "tune", "plan", "forecast"),
    *("quantize", "ladder", "imatrix", "perplexity", "audit"),
)
"""Verbs whose first word is a model and that take long to load: nobody waits for that where there is no such file. Not
`eval`, which says what it would measure of a model that is yet to come (--dry-run)."""
TAKE_DEFAULTS = ("run", "chat", "serve")
"""Verbs whose options the user may keep. What is measured (eval, forecast, tune) is not changed by a file that nobody
thinks of."""

_WIDTH_DIGITS = 5
"""More are no terminal's."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
_KEPT = "nothing half-written stands under its final name"
_INTERRUPTED_MESSAGE = f"{WORDS[signal.SIGINT]}; {_KEPT}"


def build_app(
    requested: str | None,
    *,
    alone: bool = False,
    plain_help: bool = False,
    defaults: Mapping[str, Mapping[str, object]] | None = None,
) -> typer.Typer:
    """The typer application, with the module of the requested verb loaded and the others as names only.

    Args:
        alone: without the others, where nobody will see their names.
        plain_help: help as bare text (for docs/cli.md) and not in boxes.
        defaults: of a verb's parameters, which the user keeps; what is given on the command line comes before them.
    """
    app = typer.Typer(
        rich_markup_mode=None if plain_help else "rich",
        name="dfqs",
        help="Turn a sharded Mixture-of-Experts GGUF into one proven file that runs on a modest machine, and say "
        "honestly how well.\n\nExample: dfqs demo",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=not alone,
        context_settings={"help_option_names": ["-h", "--help"], "default_map": defaults},
    )
    app.callback()(_options)
    panel = ""
    for verb, help_text in (VERBS | ALSO).items():
        panel = PANELS.get(verb, panel)
        if verb != requested or verb in ALSO:
            if not alone:
                app.command(verb, help=help_text, rich_help_panel=panel)(_not_loaded)
            continue
        module = _verb_module(verb)
        if hasattr(module, "app"):
            # A verb that does something by itself too says more.
            callback = module.app.registered_callback
            own_help = inspect.getdoc(callback.callback) if callback else None
            app.add_typer(
                module.app, name=verb, short_help=help_text, help=own_help or help_text, rich_help_panel=panel
            )
        else:
            command = app.command(
                verb, short_help=help_text, cls=getattr(module, "Command", None), rich_help_panel=panel
            )
            command(module.command)
    return app


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 usage, 3 operational failure, 4 not measured."""
    _ready_streams()
    try:
        code = run(sys.argv[1:], take_signals)
    except KeyboardInterrupt:
        # A second one, while the first was being reported.
        code = INTERRUPTED
    let_signals_go()
    _drop_what_nobody_reads()
    sys.exit(code)


def run(arguments: list[str], before_the_verb: Callable[[], None] = lambda: None) -> int:
    """Run the command line; the one error boundary.

    Args:
        before_the_verb: called when the verb's module is loaded and its work is about to begin.

    Returns:
        The exit code.
    """
    _drop_odd_widths()
    arguments = _without_other_words(arguments)
    words = completed_words() if not arguments else None
    if words is not None or any(word.endswith("-completion") for word in arguments[:1]):
        mend_zsh()
    requested = next((word for word in words or arguments if not word.startswith("-")), None)

    def call() -> object:
        if arguments and requested == arguments[0] and requested not in VERBS and _is_model_name(requested):
            raise UsageError(f'a model stands behind its verb: dfqs run {printable(requested, 200)} "Hello"')
        alone = words is None and requested in VERBS and arguments[0] == requested
        defaults = {verb: _kept_defaults() for verb in TAKE_DEFAULTS if verb == requested}
        if words is None:
            _look_at_model(arguments)
        app = build_app(requested, alone=alone, defaults=defaults)
        before_the_verb()
        # Not standalone: what is wrong with the words of a command is reported by the same mouth as every other error.
        return app(args=arguments, prog_name="dfqs", standalone_mode=False)

    # Also where the words themselves are wrong, and no option of them was taken.
    return _guarded(call, as_json="--json" in itertools.takewhile(lambda word: word != "--", arguments))


def _look_at_model(arguments: list[str]) -> None:
    """Raises UsageError where a verb is given a model that is not there, as the verb itself would."""
    match arguments:
        case [verb, model, *rest] if (
            verb in MODEL_FIRST and not model.startswith("-") and not {"-h", "--help"} & {*rest}
        ):
            importlib.import_module("dfqs.cli.source").require_there(model)


def _drop_odd_widths() -> None:
    """What prints help makes numbers of these variables without a look at them."""
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        given = os.environ.get(name, "1")
        if not (given.isdecimal() and len(given) <= _WIDTH_DIGITS):
            del os.environ[name]


def _is_model_name(word: str) -> bool:
    """Whether a word that is no verb is a model's."""
    return word.startswith("hf:") or word.endswith(".gguf")


def _kept_defaults() -> Mapping[str, object]:
    """What the user keeps as defaults of options; only who has such options waits for the file to be read."""
    defaults: Mapping[str, object] = importlib.import_module("dfqs.config").option_defaults()
    return defaults


def _without_other_words(arguments: list[str]) -> list[str]:
    """The same said with options, as every verb knows them."""
    match arguments:
        case ["help", *verb]:
            return [*verb, "--help"]
        case ["version"]:
            return ["--version"]
    return arguments


def _guarded(call: Callable[[], Any], *, as_json: bool = False) -> int:
    stdout = _identity(sys.stdout)
    try:
        code = call()
    except SystemExit as end:
        # typer has its own answer to a broken pipe (exit 1, "a check failed").
        if isinstance(end.__context__, BrokenPipeError):
            return _end_of_pipe(end.__context__, stdout, as_json=as_json)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError as error:
        return _end_of_pipe(error, stdout, as_json=as_json)
    except (Exception, KeyboardInterrupt) as error:
        message, code = _words_of(error)
        # Without words at all the help was shown in place of a message.
        return _report(error, message, code, as_json=as_json) if message else code
    # typer has its own answer to Ctrl-C too: exit 130, not a word.
    if code == INTERRUPTED:
        return _report(KeyboardInterrupt(), _INTERRUPTED_MESSAGE, INTERRUPTED, as_json=as_json)
    return code if isinstance(code, int) else 0


def _words_of(error: BaseException) -> tuple[str, int]:
    """What is said about an error, and the exit code."""
    if isinstance(error, DfqsError):
        return error.sentence, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED_MESSAGE, INTERRUPTED
    if isinstance(error, MemoryError):
        return "out of memory", 3
    if isinstance(error, OSError):
        words: str = importlib.import_module("dfqs.cli.refusals").describe_refusal(error)
        return words, 3
    if hasattr(error, "format_message"):
        return _usage_words(error)
    return f"internal error: {type(error).__name__}: {error}. Set DFQS_DEBUG=1 to see where; please report it.", 3


def _end_of_pipe(error: BrokenPipeError, stdout: tuple[int, int] | None, *, as_json: bool) -> int:
    """Where it was the reader of stdout that went away (`dfqs ... | head`) there is nothing to say, and nobody to say
    it to; any other pipe that broke is an error like others.

    Args:
        stdout: what it was at the beginning; what prints help puts another in its place when its reader has gone.
    """
    if error.filename != STANDARD_OUTPUT and _identity(sys.stdout) == stdout:
        return _report(error, *_words_of(error), as_json=as_json)
    drop(sys.stdout)
    return 0


def _identity(stream: IO[str]) -> tuple[int, int] | None:
    try:
        state = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None
    return state.st_dev, state.st_ino


def _report(error: BaseException, message: str, code: int, *, as_json: bool) -> int:
    if (number := received()) is not None:
        # An error after it (of a terminal that is gone, say) came of it.
        message, code = f"{WORDS[number]}; {getattr(error, 'kept', _KEPT)}", exit_code(number)
    if os.environ.get("DFQS_DEBUG") == "1":
        err.print_text("".join(traceback.format_exception(error)).rstrip("\n"))
    lines = error.lines if isinstance(error, DfqsError) and number is None else ()
    if as_json:
        # pydantic is not on the way of a command that goes well, nor of help.
        failure = importlib.import_module("dfqs.cli.failure")
        told = "\n".join((message, *lines))
        complain_json(failure.describe_failure(error, told, code, interrupted=number is not None))
    else:
        complain(message, *lines)
    return code


def _usage_words(error: Any) -> tuple[str, int]:
    """What typer says of a command's words: an unknown option, a missing argument, a value that is none."""
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".").replace("No such command", "no such verb")
    if message and context is not None:
        message += f"{' See' if message.endswith('?') else '; see'} '{context.command_path} --help'"
    return message, error.exit_code


def _verb_module(verb: str) -> ModuleType:
    return importlib.import_module(f"dfqs.cli.{verb}")


def _not_loaded() -> None:
    raise AssertionError("a verb's module is loaded before it runs")


def _print_version(wanted: bool) -> None:
    if wanted:
        print_plain(f"dfqs {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        # Eager: it answers before typer asks for a verb.
        typer.Option("--version", "-V", help="Print the version and leave.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Options that stand before a verb."""


def _ready_streams() -> None:
    """Where the caller closed a standard stream (`dfqs ... <&-`) the next file or pipe would get its number, and the
    worker would then read and write the wrong thing. One that another program left non-blocking would refuse what is
    written faster than it is read."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            # The lowest free number is taken: the missing stream's own.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif os.name == "posix" and not os.get_blocking(number):
            os.set_blocking(number, True)


def _drop_what_nobody_reads() -> None:
    """What is still to be written to a terminal that is gone would end the interpreter with another exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            drop(stream)


if __name__ == "__main__":
    main()
