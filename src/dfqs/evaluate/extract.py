"""Finds the final answer in what a model wrote. Pure text; what it agrees with is `tests/data/extraction_labels.jsonl`.

A reader's rules: the last statement that calls itself the answer counts; without one, the last value of the right kind.
A sentence of the question said again answers nothing, and one that names two of the possible answers names none.
"""

import re
from collections import deque
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

SAID_AGAIN_WORDS = 3
"""A shorter sentence is an answer even when the question has its words: `18`, `Freya.`"""

STATEMENTS, STATEMENT_CHARACTERS = 200, 4096
"""Looked at: of the statements that call themselves the answer the last, and of each the beginning. A text that is made
to take long has a statement in every ten characters, each of them as long as the rest of the text."""

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_LATEX = re.compile(r"\\[a-zA-Z]+|[{}$*`_]|\\[()\[\]]")
_MARKER = re.compile(
    r"\banswers?\b[^.\n:]{0,40}?(?::|\b(?:is|was|would be)\b:?)|^[^\S\n]*####", re.IGNORECASE | re.MULTILINE
)
_SPACES = re.compile(r"[^\S\n]*")
_NOT_SPACE = re.compile(r"\S")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+|(?<=[.!?])$")
_NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w])")
_TIME = re.compile(r"(?<![\d:])([01]?\d|2[0-4]):([0-5]\d)(?![\d:])(?:\s*([ap])\.?m\b)?", re.IGNORECASE)
_DATE = re.compile(
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December) \d{1,2}"
    r"(?:st|nd|rd|th)?(?:, \d{4})?"
)


def extract_answer(output: str, kind: str, question: str, choices: Sequence[str] = ()) -> str | None:
    """The final answer in `output`, normalised; None when it gives none of that kind.

    Args:
        kind: `number`, `time` (HH:MM) or `word` (one of `choices`).
        question: as asked; its sentences are ignored when the output repeats them.
    """
    text = clean(output)
    statements = _stated(text)
    for stated in reversed(statements):
        found = _values(stated, kind, choices)
        if found is not None:
            return found
    if any(statements):
        return None
    return _last_value(text, kind, question, choices)


def clean(output: str) -> str:
    """Without thinking, emphasis and formula markup; `\\boxed{x}` becomes `answer: x`."""
    text = _BOXED.sub(r"\nanswer: \1\n", without_thinking(output))
    return _LATEX.sub("", text)


def without_thinking(output: str) -> str:
    """What stands outside `<think>` blocks; nothing, when one was opened and never closed."""
    return _THINKING.sub("", output).rpartition("</think>")[2]


def normalise_number(text: str) -> str | None:
    """`1,200.0` -> `1200`; None when it is no number."""
    try:
        value = Decimal(text.replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None
    if value != value.to_integral_value():
        return str(value.normalize())
    # Not through int, which refuses more than 4,300 digits.
    return f"{value.to_integral_value():f}" if value else "0"


def _stated(text: str) -> list[str]:
    """What follows each statement that calls itself the answer, first to last."""
    found = []
    for end in deque((match.end() for match in _MARKER.finditer(text)), maxlen=STATEMENTS):
        rest = _line(text, end)
        if not rest and (following := _NOT_SPACE.search(text, end)) is not None:
            rest = _line(text, following.start())
        if rest and not _MARKER.match(rest):
            found.append(_SENTENCE_END.split(rest, maxsplit=1)[0])
    return found


def _line(text: str, start: int) -> str:
    """From `start` to the end of the line, without space around it."""
    spaces = _SPACES.match(text, start)
    start = spaces.end() if spaces is not None else start
    end = text.find("\n", start, start + STATEMENT_CHARACTERS)
    return text[start : end if end >= 0 else start + STATEMENT_CHARACTERS].strip()


def _values(stated: str, kind: str, choices: Sequence[str]) -> str | None:
    """The one value that a statement gives."""
    if kind == "number":
        numbers = _NUMBER.findall(_without_dates(stated).rpartition("=")[2])
        return normalise_number(numbers[0]) if numbers else None
    if kind == "time":
        times = _times(stated)
        return times[-1] if times else None
    return _only_choice(stated, choices)


def _last_value(text: str, kind: str, question: str, choices: Sequence[str]) -> str | None:
    asked = _plain(question)
    said_again = max(STATEMENT_CHARACTERS, 4 * len(question))
    for sentence in reversed([part for part in _SENTENCE_END.split(text) if part.strip()]):
        plain = _plain(sentence) if len(sentence) <= said_again else ""
        if len(plain.split()) >= SAID_AGAIN_WORDS and plain in asked:
            continue
        if kind == "number":
            numbers = _NUMBER.findall(_without_dates(sentence))
            if numbers:
                return normalise_number(numbers[-1])
        elif kind == "time":
            times = _times(sentence)
            if times:
                return times[-1]
        elif _named(sentence, choices):
            return _only_choice(sentence, choices)
    return None


def _named(text: str, choices: Sequence[str]) -> list[str]:
    """The choices that `text` names, each once. A single letter counts when quoted, else when it stands alone."""
    if all(len(choice) == 1 for choice in choices):
        letters = re.findall(r"['\"‘’“”]([A-Za-z])['\"‘’“”]", text) or re.findall(
            r"(?<![\w'’])([A-Za-z])(?![\w'’])", text
        )
        return sorted({letter.lower() for letter in letters} & set(choices))
    return [choice for choice in choices if re.search(rf"\b{re.escape(choice)}\b", text, re.IGNORECASE)]


def _only_choice(text: str, choices: Sequence[str]) -> str | None:
    named = _named(text, choices)
    return named[0] if len(named) == 1 else None


def _times(text: str) -> list[str]:
    found = []
    for hours, minutes, half in _TIME.findall(text):
        hour = int(hours) % 12 + 12 * (half.lower() == "p") if half else int(hours)
        found.append(f"{hour % 24:02d}:{minutes}")
    return found


def _without_dates(text: str) -> str:
    return _DATE.sub("", text)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
