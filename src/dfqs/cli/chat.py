"""`dfqs chat`: a conversation in the terminal."""

import sys
from typing import Annotated, Literal

import typer

from dfqs.cli.conversing import HELP, Conversation
from dfqs.cli.generating import (
    ContextOption,
    GrammarOption,
    JsonSchemaOption,
    MaxTokensOption,
    MinPOption,
    RepeatPenaltyOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    ThinkingBudgetOption,
    ThinkingOption,
    TopKOption,
    TopPOption,
    accept_any_bytes_on_stdin,
    check_template,
    make_sampling,
    open_chat,
)
from dfqs.cli.loading import Checking, Loading, note_streaming
from dfqs.cli.options import (
    ChatTemplate,
    Check,
    CheckManifest,
    Force,
    JsonLines,
    NoTuning,
    ObtainedModel,
    Ram,
    Threads,
    Verbose,
    Yes,
)
from dfqs.cli.output import note
from dfqs.cli.signals import Ended
from dfqs.cli.source import obtain_model
from dfqs.runtime.template_file import read_template

try:
    # Line editing and history for input(); some builds of Python come without it.
    import readline
except ImportError:
    readline = None  # type: ignore[assignment]


WhenFull = Annotated[
    Literal["ask", "forget"],
    typer.Option(
        "--when-full",
        help="Where the context is full: let you choose (/forget, /reset), or leave out the oldest exchanges.",
    ),
]


def command(
    model: ObtainedModel,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = 1024,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    min_p: MinPOption = 0.05,
    top_k: TopKOption = 0,
    repeat_penalty: RepeatPenaltyOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    grammar: GrammarOption = None,
    json_schema: JsonSchemaOption = None,
    thinking: ThinkingOption = None,
    thinking_budget: ThinkingBudgetOption = None,
    chat_template: ChatTemplate = None,
    when_full: WhenFull = "ask",
    ctx: ContextOption = None,
    threads: Threads = None,
    ram: Ram = None,
    force: Force = False,
    yes: Yes = False,
    check: Check = None,
    manifest: CheckManifest = None,
    no_tuning: NoTuning = False,
    verbose: Verbose = False,
    json_: JsonLines = False,
) -> None:
    """Talk with a model in the terminal. It remembers the conversation, and computes only what is new in it.

    Example: dfqs chat model.gguf --system "Answer briefly."
    """
    accept_any_bytes_on_stdin()
    how = Loading(ram, force, Checking(check, manifest), read_template(chat_template))
    checked = obtain_model(model, context_tokens=ctx, ram=ram, force=force, yes=yes)
    follow = (grammar, json_schema, thinking, thinking_budget)
    sampling = make_sampling(max_tokens, temperature, top_p, min_p, seed, top_k, repeat_penalty, stop, *follow)
    with open_chat(checked, ctx, threads, how, use_tuning=not no_tuning, verbose=verbose) as session:
        check_template(session)
        note(f"{checked.name}, context {session.info.context_tokens:,} tokens. {HELP}.")
        allow_pasting()
        forgets = when_full == "forget"
        talk(Conversation(session, system, sampling, as_json=json_, verbose=verbose, forgets=forgets))
        note_streaming(session.read_figures())


def talk(conversation: Conversation) -> None:
    """Until /exit or the end of input."""
    while True:
        try:
            text = read_message()
            if text and not conversation.take(text):
                return
        except EOFError:
            return
        except Ended:
            raise
        except KeyboardInterrupt:
            note("")
            note(HELP)


def read_message() -> str:
    """The next message from stdin, without the space around it: a line, or several where all but the last end with a
    backslash. In a terminal, what is pasted is one message, however many lines it has.

    Raises:
        EOFError: there is none.
    """
    lines: list[str] = []
    while True:
        try:
            line = input(("  " if lines else "> ") if sys.stdin.isatty() else "")
        except EOFError:
            if lines:
                break
            raise
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            break
    return "\n".join(lines).strip()


def allow_pasting() -> None:
    """Let the terminal tell what is pasted from what is typed; Python's readline comes with that switched off."""
    if readline is not None and "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")
