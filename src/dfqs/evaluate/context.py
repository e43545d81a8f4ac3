"""The growing document of the context metrics: what it says, where its facts lie, and when an answer is right.

One document grows: its beginning is the same at every length, so that a whole curve costs one prefill. It is a list of
short notes; every note states one fact (a code of four digits), every third one is followed by filler. A question
asks for one fact; the questions of a length ask facts at evenly spaced depths from 0 to 100 % of it. A guess
is right once in 9,000 times.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from dfqs.evaluate.prompts import ContextVocabulary

_CODE = re.compile(r"(?<!\d)\d{4}(?!\d)")
_STRIDE = 27_179
"""Odd and no multiple of 5: steps through all 40 x 40 x 40 names before one comes again."""


@dataclass(frozen=True, slots=True)
class Note:
    """One note: its text as it stands in the document (with the line break before it), and its fact."""

    index: int
    text: str
    question: str
    code: str


@dataclass(frozen=True, slots=True)
class Question:
    """One question at one length."""

    note: Note
    depth: float
    """0 is the document's beginning, 1 its end."""


def note(vocabulary: ContextVocabulary, index: int) -> Note:
    """The note at place `index`; the same for ever."""
    names = len(vocabulary.qualities) * len(vocabulary.animals) * len(vocabulary.places)
    place = _drawn(vocabulary, index * _STRIDE % names)
    code = 1000 + _hash(vocabulary.seed, "code", index) % 9000
    text = "\n" + vocabulary.fact.format(**place, code=code)
    if index % vocabulary.filler_every == vocabulary.filler_every - 1:
        text += " " + _filler(vocabulary, index)
    return Note(index, text, vocabulary.question.format(**place), str(code))


def fitting_notes(
    vocabulary: ContextVocabulary, count_tokens: Callable[[str], int], budget_tokens: int, start: int = 0
) -> int:
    """How many notes, beginning with note `start`, fit in `budget_tokens`; notes are counted one by one."""
    used = 0
    index = start
    while True:
        used += count_tokens(note(vocabulary, index).text)
        if used > budget_tokens:
            return index - start
        index += 1


def plan_questions(vocabulary: ContextVocabulary, notes: int, questions: int) -> tuple[Question, ...]:
    """Questions at depths 0 to 1 of a document of `notes` notes; fewer when it has fewer notes than questions."""
    if notes == 0:
        return ()
    count = min(questions, notes)
    if count == 1:
        return (Question(note(vocabulary, 0), 0.0),)
    places = [round(k * (notes - 1) / (count - 1)) for k in range(count)]
    return tuple(Question(note(vocabulary, place), place / (notes - 1)) for place in places)


def is_right(output: str, code: str) -> bool:
    """Right when the only code that the answer names is the one asked for."""
    return set(_CODE.findall(output)) == {code}


def document(vocabulary: ContextVocabulary, notes: int) -> str:
    """The first `notes` notes under the opening line."""
    return vocabulary.opening + "".join(note(vocabulary, index).text for index in range(notes))


def _drawn(vocabulary: ContextVocabulary, number: int) -> dict[str, str]:
    number, quality = divmod(number, len(vocabulary.qualities))
    number, animal = divmod(number, len(vocabulary.animals))
    return {
        "quality": vocabulary.qualities[quality],
        "animal": vocabulary.animals[animal],
        "place": vocabulary.places[number],
    }


def _filler(vocabulary: ContextVocabulary, index: int) -> str:
    parts = (vocabulary.subjects, vocabulary.verbs, vocabulary.objects, vocabulary.times)
    words = [part[_hash(vocabulary.seed, str(place), index) % len(part)] for place, part in enumerate(parts)]
    return " ".join(words) + "."


def _hash(seed: str, what: str, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{what}/{index}".encode()).digest()[:8], "big")
