"""`dfqs run`: one prompt answered."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dfqs.cli.documents.running import RunDocument
from dfqs.cli.generating import (
    GIVE_ONE,
    TEXT_LIMIT_BYTES,
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
    answer_aloud,
    check_template,
    describe_end,
    describe_rates,
    make_sampling,
    open_chat,
)
from dfqs.cli.loading import Checking, Loading, note_streaming
from dfqs.cli.options import (
    ChatTemplate,
    Check,
    CheckManifest,
    Force,
    Json,
    NoTuning,
    ObtainedModel,
    Ram,
    Threads,
    Verbose,
    Yes,
)
from dfqs.cli.output import note, print_json, write_text
from dfqs.cli.source import obtain_model
from dfqs.errors import UsageError
from dfqs.runtime.chat import ChatSession
from dfqs.runtime.requests import Answer, Prompt, Sampling
from dfqs.runtime.template_file import read_template
from dfqs.storage.documents import read_text

PromptOption = Annotated[
    str | None,
    typer.Option("--prompt", "-p", help="The prompt; - reads it from stdin, as does a pipe alone.", show_default=False),
]
PromptArgument = Annotated[
    str | None, typer.Argument(metavar="[prompt]", help="The prompt, as --prompt.", show_default=False)
]
PromptFileOption = Annotated[
    Path | None, typer.Option("--file", "-f", help="Read the prompt from a file.", show_default=False)
]


def command(
    model: ObtainedModel,
    text: PromptArgument = None,
    prompt: PromptOption = None,
    prompt_file: PromptFileOption = None,
    system: SystemOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    top_k: TopKOption = 0,
    repeat_penalty: RepeatPenaltyOption = 1.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    grammar: GrammarOption = None,
    json_schema: JsonSchemaOption = None,
    thinking: ThinkingOption = None,
    thinking_budget: ThinkingBudgetOption = None,
    chat_template: ChatTemplate = None,
    ctx: ContextOption = None,
    threads: Threads = None,
    ram: Ram = None,
    force: Force = False,
    yes: Yes = False,
    check: Check = None,
    manifest: CheckManifest = None,
    no_tuning: NoTuning = False,
    verbose: Verbose = False,
    json_: Json = False,
) -> None:
    """Answer one prompt. The text goes to stdout as it comes; -v says at the end how fast it came.

    Example: dfqs run model.gguf "Name three colours."
    """
    needs = [name for name, value in (("--system", system), ("--thinking", thinking)) if value is not None]
    if raw and needs:
        raise UsageError(f"{needs[0]} needs the chat template, and --raw does without it; leave one out")
    if raw and chat_template is not None:
        raise UsageError("--raw does without a chat template; leave it or --chat-template out")
    # First: no model is fetched for a prompt that is not there.
    asked = read_prompt(text, prompt, prompt_file)
    follow = (grammar, json_schema, thinking, thinking_budget)
    sampling = make_sampling(max_tokens, temperature, top_p, min_p, seed, top_k, repeat_penalty, stop, *follow)
    how = Loading(ram, force, Checking(check, manifest), read_template(chat_template))
    checked = obtain_model(model, context_tokens=ctx, ram=ram, force=force, yes=yes)
    with open_chat(checked, ctx, threads, how, use_tuning=not no_tuning, verbose=verbose) as session:
        if not raw and not session.info.chat_template:
            if system is not None:
                check_template(session, system)
            note(f"note: this model has no chat template; the prompt is continued as plain text{GIVE_ONE}")
            raw = True
        request = asked if raw else conversation(asked, system)
        if json_:
            print_json(RunDocument.of(session, session.answer(request, sampling), sampling, raw=raw))
            return
        answer = _answer_aloud(session, request, sampling)
        if said := describe_rates(answer, session) if verbose else describe_end(answer, session):
            note(said)
        note_streaming(session.read_figures())


def _answer_aloud(session: ChatSession, request: Prompt, sampling: Sampling) -> Answer:
    """Write the answer as it comes; whatever ends it, the terminal goes on with a line of its own."""
    written = False

    def write(piece: str) -> None:
        nonlocal written
        written = True
        write_text(piece)

    try:
        return answer_aloud(session, request, sampling, write)
    finally:
        if written:
            write_text("\n")


def conversation(text: str, system: str | None) -> Prompt:
    """A user's message, after a system message if there is one."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    return [*messages, {"role": "user", "content": text}]


def read_prompt(text: str | None, option: str | None, file: Path | None) -> str:
    """The prompt from wherever it is: an argument, `--prompt`, a file, or a pipe.

    Raises:
        UsageError: it is given twice or not at all, or the file is no text.
    """
    given = [value for value in (text, option, file) if value is not None]
    if len(given) > 1:
        raise UsageError("the prompt is given more than once; leave all but one of [prompt], --prompt and --file")
    if file is not None:
        return read_text(file, TEXT_LIMIT_BYTES, "prompt", lenient=True)
    if given and given != ["-"]:
        return str(given[0])
    if not given and sys.stdin.isatty():
        raise UsageError("there is no prompt; give one behind the model, with --file, or through a pipe")
    accept_any_bytes_on_stdin()
    if asked := sys.stdin.read():
        return asked
    raise UsageError("there is no prompt: stdin is empty; give one behind the model, with --prompt or with --file")
