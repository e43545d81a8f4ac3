"""`dfqs chat`: a conversation in the terminal."""

import contextlib
import sys

from dfqs.cli.documents.running import RunDocument
from dfqs.cli.generating import (
    Checking,
    ContextOption,
    GrammarOption,
    MaxTokensOption,
    MinPOption,
    RepeatPenaltyOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    accept_any_bytes_on_stdin,
    check_template,
    describe_rates,
    make_sampling,
    open_chat,
)
from dfqs.cli.loading import note_streaming
from dfqs.cli.options import Check, CheckManifest, Force, JsonLines, Model, NoTuning, Ram, Threads, Verbose
from dfqs.cli.output import note, print_json, write_text
from dfqs.cli.signals import Ended
from dfqs.errors import UsageError
from dfqs.runtime.chat import ChatSession
from dfqs.runtime.checks import check_model
from dfqs.runtime.requests import Message, Sampling

with contextlib.suppress(ImportError):
    # Line editing and history for input(); some builds of Python come without it.
    import readline  # noqa: F401

HELP = "/reset starts a new conversation, /exit (or Ctrl-D) leaves, Ctrl-C interrupts an answer"


def command(
    model: Model,
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
    ctx: ContextOption = None,
    threads: Threads = None,
    ram: Ram = None,
    force: Force = False,
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
    checked = check_model(model)
    sampling = make_sampling(max_tokens, temperature, top_p, min_p, seed, top_k, repeat_penalty, stop, grammar)
    checking, tuned = Checking(check, manifest), not no_tuning
    with open_chat(checked, ctx, threads, ram, checking, use_tuning=tuned, force=force, verbose=verbose) as session:
        check_template(session)
        note(f"{checked.name}, context {session.info.context_tokens:,} tokens. {HELP}.")
        Conversation(session, system, sampling, json_).talk()
        note_streaming(session.read_figures())


class Conversation:
    """Lines from stdin, answers to stdout."""

    def __init__(self, session: ChatSession, system: str | None, sampling: Sampling, as_json: bool) -> None:
        self._session = session
        self._sampling = sampling
        self._as_json = as_json
        self._opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._opening)

    def talk(self) -> None:
        """Until /exit or the end of input."""
        while True:
            try:
                line = read_line()
            except EOFError:
                return
            except Ended:
                raise
            except KeyboardInterrupt:
                note(f"\n{HELP}")
                continue
            if line == "/exit":
                return
            if line == "/reset":
                self._messages = list(self._opening)
                note("a new conversation")
            elif line.startswith("/"):
                note(HELP)
            elif line:
                self._answer(line)

    def _answer(self, line: str) -> None:
        pieces: list[str] = []

        def take(piece: str) -> None:
            pieces.append(piece)
            if not self._as_json:
                write_text(piece)

        self._messages.append({"role": "user", "content": line})
        try:
            answer = self._session.answer(self._messages, self._sampling, take)
            if self._as_json:
                print_json(RunDocument.of(self._session, answer, self._sampling, raw=False), indent=None)
            else:
                write_text("\n")
            note(describe_rates(answer, self._session))
        except Ended:
            raise
        except KeyboardInterrupt:
            write_text("\n")
            note("interrupted")
        except UsageError as error:
            note(f"{error}. /reset starts a new conversation.")
        if pieces:
            self._messages.append({"role": "assistant", "content": "".join(pieces)})
        else:
            self._messages.pop()


def read_line() -> str:
    """The next line from stdin, without the space around it.

    Raises:
        EOFError: there is none.
    """
    return input("> " if sys.stdin.isatty() else "").strip()
