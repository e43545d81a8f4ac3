"""What a model is shown while its weights' importance is measured.

The mix that dfqs ships is small and its own: conversations, prose, two dozen languages, code in eight languages besides
Python (modules of this package as they once were), and worked arithmetic from a seeded generator. It is frozen: what
was measured on it yesterday compares with what is measured tomorrow. It touches many experts with few tokens; for a
model of hundreds of experts bring more text (`--corpus`). Nothing of it is in any prompt set of `dfqs eval`, nor in the
held-out text that `dfqs perplexity` reads.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.records import canonical_json
from dfqs.storage.documents import read_text

DATA = Path(__file__).parent / "data"
NAME = "dfqs-calibration-1"
"""Another mix gets another number."""
PROBLEMS = 120
_PIECE_CHARACTERS = 1 << 20
MAX_TEXT_BYTES = 32 << 20
"""Of a file of the user's text: some ten million tokens. In memory a text can take four times as much, and more than
once."""

Message = tuple[str, str]
"""(role, text)"""


@dataclass(frozen=True, slots=True)
class Stream:
    """Text of one kind. Streams are interleaved, so that any prefix of a measurement has seen all of them."""

    kind: str
    documents: tuple[str, ...] = ()
    conversations: tuple[tuple[Message, ...], ...] = ()
    """Rendered with the model's own chat template, where it has one."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """What will be shown, and what to call it."""

    name: str
    streams: tuple[Stream, ...]

    @property
    def sha256(self) -> str:
        """Hash of all text, whatever model reads it: of its canonical JSON, which is never in memory as a whole."""
        digest = hashlib.sha256()
        for piece in self._canonical_pieces():
            digest.update(piece)
        return digest.hexdigest()

    def _canonical_pieces(self) -> Iterator[bytes]:
        """`canonical_json` of [kind, documents, conversations] of each stream."""
        for number, stream in enumerate(self.streams):
            yield (b"," if number else b"[") + b"[" + canonical_json(stream.kind) + b",["
            for place, document in enumerate(stream.documents):
                yield b',"' if place else b'"'
                for at in range(0, len(document), _PIECE_CHARACTERS):
                    yield canonical_json(document[at : at + _PIECE_CHARACTERS])[1:-1]
                yield b'"'
            yield b"]," + canonical_json([list(messages) for messages in stream.conversations]) + b"]"
        yield b"]" if self.streams else b"[]"


def shipped_corpus() -> Corpus:
    """The mix that comes with dfqs."""
    return Corpus(
        NAME,
        (
            Stream("chat", conversations=_conversations(_read("chat.txt"))),
            Stream("prose", _paragraphs("prose.txt")),
            Stream("languages", _paragraphs("languages.txt")),
            Stream("code", (_read("code.txt"), _read("python.txt"))),
            Stream("maths", tuple(worked_problems(PROBLEMS))),
        ),
    )


def heldout_text() -> str:
    """Text for measuring perplexity; no sentence of it is in the calibration mix."""
    return _read("heldout.txt")


def read_corpus(paths: Sequence[Path]) -> Corpus:
    """A user's own text files, one stream each.

    Raises:
        UsageError: a file is missing, no UTF-8 text, empty, no regular file, or larger than 32 MiB.
    """
    streams = []
    for path in paths:
        text = read_text(path, MAX_TEXT_BYTES, "corpus")
        if not text.strip():
            raise UsageError(f"{path} has no text in it")
        streams.append(Stream(path.name, (text,)))
    return Corpus(", ".join(path.name for path in paths), tuple(streams))


def worked_problems(count: int) -> list[str]:
    """Arithmetic with every step written out, always the same for a count."""
    chooser = random.Random(5)
    problems = []
    for number in range(1, count + 1):
        a, b, c = chooser.randint(12, 97), chooser.randint(3, 19), chooser.randint(2, 9)
        problems.append(f"Problem {number}. {chooser.choice(_PROBLEMS)(a, b, c)}")
    return problems


def _shopping(a: int, b: int, c: int) -> str:
    paid = (a * b // 100 + 1) * 100
    return (
        f"A shop sells lamps at {a} euros. Somebody buys {b} of them and pays with {paid} euros. What is the change?\n"
        f"{b} lamps cost {b} * {a} = {a * b} euros. The change is {paid} - {a * b} = {paid - a * b} euros."
    )


def _equation(a: int, b: int, c: int) -> str:
    right = c * b + a
    return (
        f"Solve {c}x + {a} = {right}.\nSubtract {a} on both sides: {c}x = {right - a}. Divide by {c}: "
        f"x = {b}. Check: {c} * {b} + {a} = {right}."
    )


def _train(a: int, b: int, c: int) -> str:
    return (
        f"A train travels {a * c} km in {c} hours, and then {b} hours at {a + 10} km/h. What is its mean speed?\n"
        f"The second part is {b} * {a + 10} = {b * (a + 10)} km, so the whole way is {a * c + b * (a + 10)} km in "
        f"{b + c} hours. The mean speed is {(a * c + b * (a + 10)) / (b + c):.2f} km/h."
    )


def _division(a: int, b: int, c: int) -> str:
    product = a * b + c % b
    return (
        f"Divide {product} by {b} with remainder.\n{b} * {product // b} = {b * (product // b)}, and "
        f"{product} - {b * (product // b)} = {product % b}. So {product} = {b} * {product // b} + {product % b}."
    )


def _area(a: int, b: int, c: int) -> str:
    return (
        f"$\\int_0^{{{c}}} ({b} x^2 + {a})\\,dx = \\left[\\tfrac{{{b}}}{{3}} x^3 + {a} x\\right]_0^{{{c}}} = "
        f"\\tfrac{{{b * c**3}}}{{3}} + {a * c}$, which is about {b * c**3 / 3 + a * c:.3f}."
    )


_PROBLEMS = (_shopping, _equation, _train, _division, _area)


def _read(name: str) -> str:
    return (DATA / name).read_text(encoding="utf-8")


def _paragraphs(name: str) -> tuple[str, ...]:
    return tuple(_read(name).strip().split("\n\n"))


def _conversations(text: str) -> tuple[tuple[Message, ...], ...]:
    """`role: text` turns, conversations parted by `---`."""
    conversations = []
    for block in text.strip().split("\n---\n"):
        turns: list[Message] = []
        for line in block.split("\n"):
            role, separator, rest = line.partition(": ")
            if separator and role in ("user", "assistant"):
                turns.append((role, rest))
            else:
                turns[-1] = (turns[-1][0], f"{turns[-1][1]}\n{line}")
        conversations.append(tuple(turns))
    return tuple(conversations)
