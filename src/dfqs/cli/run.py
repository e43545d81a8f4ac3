"""`dfqs run`: one prompt answered."""

import sys
from typing import Annotated

import typer

from dfqs.cli.documents.running import RunDocument
from dfqs.cli.generating import (
    Checking,
    ContextOption,
    MaxTokensOption,
    MinPOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    TopPOption,
    accept_any_bytes_on_stdin,
    check_template,
    describe_rates,
    make_sampling,
    open_chat,
)
from dfqs.cli.loading import note_streaming
from dfqs.cli.options import Check, CheckManifest, Force, Json, Model, NoTuning, Ram, Threads, Verbose
from dfqs.cli.output import note, print_json, write_text
from dfqs.errors import UsageError
from dfqs.runtime.checks import check_model
from dfqs.runtime.requests import Prompt


def command(
    model: Model,
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="The prompt; - reads it from stdin.", show_default=False)
    ],
    system: SystemOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    seed: SeedOption = None,
    ctx: ContextOption = None,
    threads: Threads = None,
    ram: Ram = None,
    force: Force = False,
    check: Check = None,
    manifest: CheckManifest = None,
    no_tuning: NoTuning = False,
    verbose: Verbose = False,
    json_: Json = False,
) -> None:
    """Answer one prompt. The text goes to stdout as it comes, tokens per second to stderr at the end.

    Example: dfqs run model.gguf -p "Name three colours."
    """
    if raw and system is not None:
        raise UsageError("--system needs the chat template, and --raw does without it; leave one out")
    checked = check_model(model)
    accept_any_bytes_on_stdin()
    text = sys.stdin.read() if prompt == "-" else prompt
    sampling = make_sampling(max_tokens, temperature, top_p, min_p, seed)
    checking, tuned = Checking(check, manifest), not no_tuning
    with open_chat(checked, ctx, threads, ram, checking, use_tuning=tuned, force=force, verbose=verbose) as session:
        if not raw and not session.info.chat_template:
            if system is not None:
                check_template(session, system)
            note("note: this model has no chat template; the prompt is continued as plain text")
            raw = True
        request = text if raw else conversation(text, system)
        if json_:
            print_json(RunDocument.of(session, session.answer(request, sampling), sampling, raw=raw))
            return
        written = False

        def write(piece: str) -> None:
            nonlocal written
            written = True
            write_text(piece)

        try:
            answer = session.answer(request, sampling, write)
        finally:
            if written:
                write_text("\n")
        note(describe_rates(answer, session))
        note_streaming(session.read_figures())


def conversation(text: str, system: str | None) -> Prompt:
    """A user's message, after a system message if there is one."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    return [*messages, {"role": "user", "content": text}]
