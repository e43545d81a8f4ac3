"""Finds the final answer in what a model wrote. Pure text; what it agrees with is `tests/data/answer_labels.jsonl`.

A reader's rules, in this order: the last line that gives the answer in the form that was asked for (`Answer: ...`), as
corrected after it; else the last statement that calls itself the answer; else the last sentence with a value of the
right kind. What belongs to a question that the model made up afterwards is not looked at. A sentence of the question
said again answers nothing.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dfqs.evaluate.markup import plain_text
from dfqs.evaluate.thoughts import without_thinking
from dfqs.evaluate.values import NOTHING, UNCLEAR, Reading, normalise_number, read_value

__all__ = ["extract_answer", "normalise_number", "without_thinking"]

SAID_AGAIN_WORDS = 3
"""A shorter sentence is an answer even when the question has its words: `18`, `Freya.`"""

STATEMENTS, STATEMENT_CHARACTERS = 200, 4096
"""Looked at: of the statements that call themselves the answer the last, and of each the beginning. A text that is made
to take long has a statement in every ten characters, each of them as long as the rest of the text."""
TEXT_CHARACTERS = 1 << 14
"""Looked at, from the end: no answer within the caps is longer, thoughts left out."""
CORRECTIONS = 5
"""Looked for behind so many of the last statements."""
SENTENCES = 400
"""Looked at, from the last, where no statement calls itself the answer."""

_LINE = re.compile(
    r"^[^\S\n]*(?:[>#*\-\d.)\"({]{1,8}[^\S\n]{0,8}){0,3}(?:(?:so|thus|therefore|hence),?[^\S\n]+)?(?:(?:the|my|your)[^\S\n]+)?"
    r"(?:(?:final|correct|corrected|revised|updated|right)[^\S\n]+)?(?:_?answer\"?|ans|(?<=final )result|"
    r"correction|antwort|réponse|respuesta|risposta|resposta|答案|答え|ответ)[^\S\n]*(?:[:：=]|[-–—](?=[^\S\n]))"
    r"|^[^\S\n]*####",
    re.IGNORECASE | re.MULTILINE,
)
"""The form that was asked for, and what comes near to it."""
_HEADING = re.compile(
    r"^[^\S\n]*(?:#+[^\S\n]*)?(?:the[^\S\n]+)?(?:final[^\S\n]+)?answer[^\S\n]*$", re.IGNORECASE | re.MULTILINE
)
_SAID = re.compile(
    r"\banswers?\b[^.\n:]{0,40}?(?::|\b(?:is|was|would be|must be|should be)\b(?!\s+(?:based|correct|right|wrong|"
    r"given|found|obtained|in the form))"
    r":?)",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    r"\b(?:wait|actually|hold on|hmm|oops|sorry, (?:i|that|the)|correction|scratch that|no,(?! (?:need|problem))|"
    r"my mistake|i made an? (?:mistake|error)|that(?:'s| is) "
    r"(?:wrong|not right|incorrect))\b",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"\b(?:(?<!not )correct[.!]|(?:that|it|this) (?:is|was|'s) (?:correct|right)|confirmed|matches|checks out|"
    r"stays|stands)",
    re.IGNORECASE,
)
_NEXT_QUESTION = re.compile(
    r"^[^\w\n]{0,12}(?:(?:(?:next|new|another)\s+)?(?:question|problem|exercise|example|task)\b[^\n:]{0,20}[:.]|(?:q|human|user|"
    r"assistant|instruction)\s*\d*\s*:)",
    re.IGNORECASE | re.MULTILINE,
)
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|im_start|eot_id|endoftext|end_of_text|user|assistant|end_of_turn|end▁of▁sentence)\|>|</s>|"
    r"<end_of_turn>|<｜end▁of▁sentence｜>"
)
_SENTENCE_END = re.compile(
    r"(?<=[!?])\s+|(?<![ap]\.m\.)(?<!i\.e\.)(?<!e\.g\.)(?<!\d\.)(?<=\.)\s+|(?<=\d\.)\s+(?=[A-Z])|\n+|(?<=[.!?])$"
)
_NOT_SPACE = re.compile(r"\S")
_HEDGE = re.compile(
    r"\b(?:could also|not sure|don't know|do not know|not enough information|cannot (?:be )?determine|unable to|"
    r"it depends)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is looked for."""

    kind: str
    question: str
    choices: Sequence[str]

    def read(self, text: str) -> Reading:
        percent = "percent" in self.question or "%" in self.question
        return read_value(text, self.kind, self.choices, percent)


def extract_answer(output: str, kind: str, question: str, choices: Sequence[str] = ()) -> str | None:
    """The final answer in `output`, normalised; None when it gives none of that kind.

    Args:
        kind: `number`, `time` (HH:MM), `word` (one of `choices`) or `text` (one word, in letters as written).
        question: as asked; its sentences are ignored when the output repeats them.
    """
    asked = _Asked(kind, question, choices)
    text = plain_text(_own_turn(without_thinking(output))[-TEXT_CHARACTERS:])
    text = _without_next_question(text)
    stated = False
    for pattern in (_LINE, _HEADING, _SAID):
        for count, (start, statement) in enumerate(reversed(list(_statements(text, pattern)))):
            stated = True
            corrected = _correction(text, start, asked) if count < CORRECTIONS else None
            if corrected is not None:
                return corrected
            found = asked.read(statement)
            if found is NOTHING:
                continue
            return found if isinstance(found, str) else None
    return None if stated else _last_value(text, asked)


def _own_turn(text: str) -> str:
    """What comes before the model's end mark, where it wrote on behind it."""
    for match in _END_OF_TURN.finditer(text):
        if text[: match.start()].strip():
            return text[: match.start()]
    return text


def _without_next_question(text: str) -> str:
    first = next((end for pattern in (_LINE, _SAID) for end, _ in _statements(text, pattern, last=False)), None)
    if first is None:
        return text
    following = _NEXT_QUESTION.search(text, first)
    return text[: following.start()] if following is not None else text


def _statements(text: str, pattern: "re.Pattern[str]", last: bool = True) -> Iterator[tuple[int, str]]:
    """What follows each match, to the end of its sentence, and where that begins."""
    ends = (match.end() for match in pattern.finditer(text))
    for end in deque(ends, maxlen=STATEMENTS) if last else ends:
        rest, place = _line(text, end)
        if not rest and (following := _NOT_SPACE.search(text, end)) is not None:
            rest, place = _line(text, following.start())
        if rest and not _LINE.match(rest) and not _SAID.match(rest):
            sentence = _SENTENCE_END.split(rest, maxsplit=1)[0]
            yield place, sentence


def _line(text: str, start: int) -> tuple[str, int]:
    """From `start` to the end of the line without space around it, and where that begins."""
    end = text.find("\n", start, start + STATEMENT_CHARACTERS)
    line = text[start : end if end >= 0 else start + STATEMENT_CHARACTERS]
    return line.strip(), start + len(line) - len(line.lstrip())


def _correction(text: str, place: int, asked: _Asked) -> str | None:
    """The value that what follows a statement puts in its place; None: nothing is taken back."""
    behind = text[place : place + STATEMENT_CHARACTERS]
    taken_back = _CORRECTED.search(behind)
    if taken_back is None:
        return None
    if _CONFIRMED.search(behind, taken_back.end()):
        return None
    for sentence in reversed(_sentences(behind[taken_back.start() :])):
        found = asked.read(sentence)
        if isinstance(found, str):
            return found
    return None


def _sentences(text: str) -> list[str]:
    return [part for part in deque(_SENTENCE_END.split(text), maxlen=SENTENCES) if part and part.strip()]


def _last_value(text: str, asked: _Asked) -> str | None:
    question = _words(asked.question)
    said_again = max(STATEMENT_CHARACTERS, 4 * len(asked.question))
    sentences = _sentences(text)
    if any(_HEDGE.search(sentence) for sentence in sentences[-3:]):
        return None
    for sentence in reversed(sentences):
        plain = _words(sentence) if len(sentence) <= said_again else ""
        if len(plain.split()) >= SAID_AGAIN_WORDS and plain in question:
            continue
        found = asked.read(sentence[:said_again])
        if asked.kind == "text" and found is UNCLEAR:
            continue
        if found is not NOTHING:
            return found if isinstance(found, str) else None
    return None


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
