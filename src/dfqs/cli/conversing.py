"""A conversation in the terminal: its messages, and the commands that change it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from dfqs.cli.documents.running import ConversationDocument, RunDocument, SpokenMessage
from dfqs.cli.generating import answer_aloud, describe_end, describe_rates
from dfqs.cli.output import note, print_json, write_text
from dfqs.cli.signals import Ended
from dfqs.errors import DfqsError, UsageError
from dfqs.records import read_json, write_json
from dfqs.runtime.chat import ChatSession
from dfqs.runtime.requests import Answer, ContextFull, Message, Sampling
from dfqs.runtime.sampling import check_sampling
from dfqs.units import format_number_of

HELP = "/help lists what else can be said, /exit (or Ctrl-D) leaves, Ctrl-C interrupts an answer"
_COMMANDS = {
    "/reset": "a new conversation, under the same system message",
    "/system TEXT": "another system message, for this conversation too",
    "/undo": "take back the last question and its answer",
    "/forget": "leave out the oldest question and its answer, where the context is full",
    "/regenerate": "take back the last answer, and answer again with another seed",
    "/set NAME VALUE": "temp, top-p, top-k, min-p, repeat-penalty, max-tokens or seed",
    "/save FILE": "write the conversation down",
    "/load FILE": "go on with one that was saved",
    "/exit": "leave",
}
_LEAVING = ("/exit", "/quit", "/bye")
"""The first is told of; the others are what people's fingers know from elsewhere."""
_ROOM = 4
"""One part in so many of the context is for the answer, before older exchanges are left out."""
_SETTINGS: dict[str, tuple[str, Callable[[str], int | float]]] = {
    "temp": ("temperature", float),
    "top-p": ("top_p", float),
    "top-k": ("top_k", int),
    "min-p": ("min_p", float),
    "repeat-penalty": ("repeat_penalty", float),
    "max-tokens": ("max_tokens", int),
    "seed": ("seed", int),
}


class Conversation:
    """What was said so far, and how the next answer is made."""

    def __init__(
        self,
        session: ChatSession,
        system: str | None,
        sampling: Sampling,
        *,
        as_json: bool,
        verbose: bool,
        forgets: bool = False,
    ) -> None:
        self._session = session
        self._sampling = sampling
        self._as_json = as_json
        self._verbose = verbose
        self._forgets = forgets
        """Where the context is full, the oldest exchanges are left out, and nobody is asked."""
        self._system = system
        self._messages: list[Message] = []
        self._unanswered: str | None = None
        """A question that the context had no room for."""

    def take(self, text: str) -> bool:
        """One message or command; whether the conversation goes on. A "/" that begins no command begins a message."""
        word, _, rest = text.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/system": self._change_system,
            "/undo": self._undo,
            "/forget": self._forget,
            "/regenerate": self._regenerate,
            "/set": self._set,
            "/save": self._save,
            "/load": self._load,
        }
        if text in _LEAVING:
            return False
        if word not in commands:
            self._ask(text)
            return True
        try:
            commands[word](rest.strip())
        except (DfqsError, OSError) as error:
            # Said wrongly, or a file that cannot be used: the conversation is as it was.
            note(str(error))
        return True

    def _ask(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        self._unanswered = None
        self._answer(text)

    def _answer(self, question: str) -> None:
        """Answer the last question; without a word of an answer, the question is taken back."""
        pieces: list[str] = []

        def take(piece: str) -> None:
            pieces.append(piece)
            if not self._as_json:
                write_text(piece)

        try:
            answer = self._ask_model(take)
            if self._as_json:
                print_json(RunDocument.of(self._session, answer, self._sampling, raw=False), indent=None)
            else:
                write_text("\n")
            if said := describe_rates(answer, self._session) if self._verbose else describe_end(answer, self._session):
                note(said)
        except Ended:
            raise
        except KeyboardInterrupt:
            write_text("\n")
            note("interrupted")
        except ContextFull as error:
            self._unanswered = question
            note(f"{error}. /forget leaves out the oldest exchange and asks again, /reset starts a new conversation.")
        except UsageError as error:
            note(str(error))
        if pieces:
            self._messages.append({"role": "assistant", "content": "".join(pieces)})
        else:
            self._messages.pop()

    def _ask_model(self, take: Callable[[str], None]) -> Answer:
        """The answer to all that was said, or to what of it leaves an answer its room.

        Raises:
            ContextFull: nothing may be left out, or nothing is left that could be.
        """
        opening: list[Message] = [] if self._system is None else [{"role": "system", "content": self._system}]
        context = self._session.info.context_tokens
        least = min(self._sampling.max_tokens, context // _ROOM) if self._forgets else 1
        before = [*self._messages]
        while True:
            older = len(self._messages) > 1
            try:
                said = [*opening, *self._messages]
                ask = self._session.answer if self._as_json else partial(answer_aloud, self._session)
                return ask(said, self._sampling, take, least_tokens=least if older else 1)
            except ContextFull:
                if not (self._forgets and older):
                    if len(before) > len(self._messages):
                        self._messages = before
                        note("what was left out is back: the question alone is too long")
                    raise
                note(f"the context of {context:,} tokens is full; left out: {self._messages[0]['content']}")
                del self._messages[:2]

    def _help(self, _: str) -> None:
        for command, meaning in _COMMANDS.items():
            note(f"{command:<18}{meaning}")
        note("A message of several lines is pasted, or its lines end with a backslash.")

    def _reset(self, _: str) -> None:
        self._messages = []
        note("a new conversation")

    def _change_system(self, text: str) -> None:
        self._system = text or None
        note("the system message is another" if text else "no system message")

    def _undo(self, _: str) -> None:
        note(f"taken back: {self._take_back()}")

    def _forget(self, _: str) -> None:
        if not self._messages:
            raise UsageError("there is nothing older to leave out")
        note(f"left out: {self._messages[0]['content']}")
        del self._messages[:2]
        if self._unanswered is not None:
            self._ask(self._unanswered)

    def _regenerate(self, _: str) -> None:
        question = self._take_back()
        self._sampling = replace(self._sampling, seed=self._sampling.seed + 1)
        self._ask(question)

    def _take_back(self) -> str:
        if not self._messages:
            raise UsageError("nothing was said yet")
        del self._messages[-1]
        return self._messages.pop()["content"]

    def _set(self, words: str) -> None:
        name, _, value = words.partition(" ")
        if name not in _SETTINGS:
            raise UsageError(f"/set knows {', '.join(_SETTINGS)}; it was given {name or 'nothing'!r}")
        field, read = _SETTINGS[name]
        try:
            changed = replace(self._sampling, **{field: read(value)})  # type: ignore[arg-type]
        except ValueError:
            raise UsageError(f"{value!r} is no value for {name}") from None
        check_sampling(changed)
        self._sampling = changed
        note(f"{name} is {getattr(changed, field)}")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs the name of a file")
        spoken = tuple(SpokenMessage(**message) for message in self._messages)
        write_json(Path(name), ConversationDocument(system=self._system, messages=spoken))
        note(f"saved in {name}")

    def _load(self, name: str) -> None:
        if not name:
            raise UsageError("/load needs the name of a file")
        loaded = read_json(Path(name), ConversationDocument)
        self._system, self._messages = loaded.system, [dict(message) for message in loaded.messages]
        note(f"{format_number_of(len(self._messages) // 2, 'exchange')} loaded")
