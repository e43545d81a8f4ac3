"""What `run` and `chat` share: their options, and the notes about a model."""

import contextlib
import io
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from dfqs.cli.drawing import late_bar, progress_bar
from dfqs.cli.loading import Loading
from dfqs.cli.output import note, warn
from dfqs.errors import RuntimeFailure, UsageError
from dfqs.model.files import ModelFiles
from dfqs.planning.use import choose_start
from dfqs.runtime.chat import ChatSession
from dfqs.runtime.json_grammar import grammar_of_schema
from dfqs.runtime.loading import with_template
from dfqs.runtime.requests import Answer, ContextSettings, Prompt, Sampling
from dfqs.storage.documents import parse_json, read_bounded, read_text
from dfqs.units import format_duration, format_number_of

MaxTokensOption = Annotated[int, typer.Option("--max-tokens", "-n", help="Longest answer, in tokens.", min=1)]
TemperatureOption = Annotated[
    float, typer.Option("--temp", help="0: always the likeliest token, so the same answer every time.", min=0)
]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Choose among the likeliest tokens of this mass.", min=0, max=1)
]
MinPOption = Annotated[
    float, typer.Option("--min-p", help="Leave out tokens less likely than this share of the likeliest.", min=0, max=1)
]
TopKOption = Annotated[int, typer.Option("--top-k", help="Choose among so many of the likeliest; 0: all.", min=0)]
RepeatPenaltyOption = Annotated[
    float,
    typer.Option(
        "--repeat-penalty", help="Make tokens of the last 64 less likely by this factor; 1: no.", min=0.01, max=100
    ),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", help="End the answer before this text; may be repeated.", show_default=False),
]
GrammarOption = Annotated[
    Path | None, typer.Option("--grammar", help="File of a grammar (GBNF) that the answer follows.", show_default=False)
]
JsonSchemaOption = Annotated[
    Path | None,
    typer.Option("--json-schema", help="File of a JSON schema that the answer follows.", show_default=False),
]
ThinkingOption = Annotated[
    Literal["on", "off"] | None,
    typer.Option("--thinking", help="Whether the model thinks first.", show_default="as its chat template has it"),
]
ThinkingBudgetOption = Annotated[
    int | None,
    typer.Option("--thinking-budget", help="End a thought after so many tokens.", min=1, show_default="none"),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Repeat a sampled answer.", min=0, show_default="random")
]
ContextOption = Annotated[
    int | None, typer.Option("--ctx", help="Context in tokens.", min=1, show_default="as trained, at most 4096")
]
SystemOption = Annotated[str | None, typer.Option("--system", help="System message.", show_default=False)]

GIVE_ONE = " (--chat-template FILE gives it a template)"
_SEEDS = 1 << 31
SCHEMA_LIMIT_BYTES = 1 << 20
TEXT_LIMIT_BYTES = 32 << 20
"""A million tokens have some 4 MB."""


def make_sampling(
    max_tokens: int,
    temperature: float,
    top_p: float,
    min_p: float,
    seed: int | None,
    top_k: int = 0,
    repeat_penalty: float = 1.0,
    stop: Sequence[str] | None = None,
    grammar: Path | None = None,
    json_schema: Path | None = None,
    thinking: str | None = None,
    thinking_budget: int | None = None,
) -> Sampling:
    """Sampling settings; without a seed one is drawn, so that the answer can be repeated.

    Raises:
        UsageError: the grammar or the schema cannot be read or followed, or two of these say different things.
    """
    if thinking == "off" and thinking_budget is not None:
        raise UsageError("--thinking off leaves no thought for --thinking-budget; leave one out")
    if seed is None:
        seed = secrets.randbelow(_SEEDS) if temperature > 0 else 0
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        repeat_penalty=repeat_penalty,
        grammar=_read_grammar(grammar, json_schema),
        stop=tuple(stop or ()),
        thinking=None if thinking is None else thinking == "on",
        thinking_tokens=thinking_budget,
    )


def _read_grammar(grammar: Path | None, json_schema: Path | None) -> str | None:
    if grammar is not None and json_schema is not None:
        raise UsageError("--json-schema is made into a grammar, so --grammar cannot stand beside it")
    if json_schema is not None:
        return grammar_of_schema(parse_json(read_bounded(json_schema, SCHEMA_LIMIT_BYTES), path=json_schema))
    return None if grammar is None else read_text(grammar, TEXT_LIMIT_BYTES, "grammar", lenient=True)


@contextlib.contextmanager
def open_chat(
    model: ModelFiles,
    n_ctx: int | None,
    threads: int | None,
    how: Loading,
    *,
    use_tuning: bool = True,
    verbose: bool = False,
) -> Iterator[ChatSession]:
    """A session, with a progress bar while it loads and its notices shown.

    Args:
        verbose: say which settings hold, and why.
    """
    if model.label is not None:
        note(f"note: {model.label}")
    context = ContextSettings(n_ctx=n_ctx)
    start, plan = choose_start(model, context, threads=threads, ram=how.ram, force=how.force, use_tuning=use_tuning)
    plan = how.checking.settled(model, plan)
    if verbose:
        note(start.reason)
    with contextlib.ExitStack() as stack:
        with progress_bar(f"loading {model.name}") as progress:
            session = ChatSession(
                model,
                start.context,
                threads=start.threads,
                omp_wait_policy=start.wait_policy,
                env=start.environment,
                order=with_template(plan.order, how.template),
                tuned=start.tuned is not None,
                progress=progress,
            )
            stack.enter_context(session)
        for notice in session.info.notices:
            warn(notice)
        yield session


def answer_aloud(
    session: ChatSession,
    prompt: Prompt,
    sampling: Sampling,
    write: Callable[[str], None],
    *,
    least_tokens: int = 1,
) -> Answer:
    """An answer as it comes, for who sits at a terminal: while a long prompt is read, how far that is.

    Args:
        write: called with pieces of the text.
        least_tokens: as `ChatSession.answer` has it.

    Raises:
        As `ChatSession.answer`.
    """
    with late_bar("reading the prompt", "tokens") as progress:
        return session.answer(prompt, sampling, write, least_tokens=least_tokens, progress=progress)


def check_template(session: ChatSession, system: str | None = None) -> None:
    """No template is made up for a model that has none, in any verb: it was never trained on it.

    Raises:
        RuntimeFailure: there is no chat template, so nothing that asks for one can be done.
    """
    if session.info.chat_template:
        return
    asked = "so it cannot converse" if system is None else "so it cannot be given a system message (--system)"
    raise RuntimeFailure(
        f"{session.model.path} has no chat template, {asked}; 'dfqs run --raw' continues a text with it{GIVE_ONE}"
    )


def accept_any_bytes_on_stdin() -> None:
    """Bytes that are no text in this locale become U+FFFD, and do not end the program."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def describe_rates(answer: Answer, session: ChatSession) -> str:
    """One line: how much, how fast, under which conditions."""
    info = session.info
    prompt = f"prompt {format_number_of(answer.prompt_tokens, 'token')}"
    if answer.reused_tokens:
        prompt += f" ({answer.reused_tokens:,} from the cache)"
    policy = "" if info.omp_wait_policy == "bounded" else f", {info.omp_wait_policy} wait policy"
    parts = [
        prompt + _rate(answer.prompt_tokens_per_s),
        f"answer {format_number_of(answer.generated_tokens, 'token')}" + _rate(answer.decode_tokens_per_s),
        f"loaded in {format_duration(info.load_s)}",
        f"{format_number_of(info.threads, 'thread')}{policy}",
    ]
    if cut := describe_end(answer, session):
        parts.append(cut)
    return "; ".join(parts)


def describe_end(answer: Answer, session: ChatSession) -> str | None:
    """Why an answer is not whole; None where it is."""
    if answer.finish_reason == "length":
        return "cut at --max-tokens"
    if answer.finish_reason == "context":
        return f"cut: the context of {session.info.context_tokens:,} tokens is full (--ctx)"
    return None


def _rate(tokens_per_s: float | None) -> str:
    return "" if tokens_per_s is None else f" at {tokens_per_s:.1f} tokens/s"
