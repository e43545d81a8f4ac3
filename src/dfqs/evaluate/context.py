"""The growing documents of the context metrics: what they say, what is asked about them, and when an answer is right.

A document is a list of short lines, in blocks of seven. Its beginning is the same at every length, so that a whole
curve costs one prefill. Every block brings one of each kind of question:

- `single`: one fact, a code of four digits;
- `keys`: the same among near misses, two others that differ in one word;
- `chain`: a name that has the value of another, which has that of a third;
- `count`: how many sentences say one thing, one to five of them.

What a question needs lies up to 64 blocks before its block and never behind it, so it is whole at every length that has
the block. A question's depth is that of its block. Draws come from SHA-256.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dfqs.evaluate.prompts import ContextVocabulary

DEPTHS = 5
SINGLE, KEYS, CHAIN, COUNT = KINDS = ("single", "keys", "chain", "count")
LINES = 7
"""Of a block."""
ENDS = {SINGLE: 0, KEYS: 6, CHAIN: 5, COUNT: 6}
"""The line of its block with which a question can be answered."""
REACH_BLOCKS = 64
"""How far before its block a question's parts can lie."""
CODE_OPTIONS, MOST_COUNTED = 5, 5
"""Answers that are held against each other by likelihood."""

_CODE = re.compile(r"(?<!\d)\d{4}(?!\d)")
_NUMBER = re.compile(r"(?<![\d.,])\d+(?![\d]|[.,]\d)")
_WORDS = {
    word: str(value) for value, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven"))
}
_STRIDE = 27_179
"""Odd and no multiple of 5: steps through all names before one comes again."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one document."""

    document: int
    kind: str
    place: int
    """The block that it is about."""
    depth: float
    """0 is the document's beginning, 1 its end, in the steps in which depths are asked for."""
    text: str
    answer: str
    near_misses: tuple[str, ...]
    """Wrong answers of the same form, most of them right for another question about the same document."""

    @property
    def chance(self) -> float:
        """Of choosing the answer among all given."""
        return 1 / (1 + len(self.near_misses))


@dataclass(slots=True)
class GrowingDocument:
    """One seeded document; lines are made when they are asked for, and are the same for ever."""

    vocabulary: ContextVocabulary
    number: int
    _blocks: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def line(self, index: int) -> str:
        """A line as it stands in the document, with the line break before it."""
        block, place = divmod(index, LINES)
        if block not in self._blocks:
            self._blocks[block] = self._write_block(block)
        return self._blocks[block][place]

    def text(self, lines: int) -> str:
        """The opening and the first `lines` lines."""
        return self.vocabulary.opening + "".join(map(self.line, range(lines)))

    def question(self, kind: str, block: int, blocks: int, depth: float = 0.0) -> Question:
        """
        Args:
            blocks: of the document that have their question of this kind; near misses are taken from them.
        """
        if kind == CHAIN:
            text = self._question(kind).format(name=self._variable(block, 2))
        else:
            text = self._question(kind).format(**self._name(kind, block))
        if kind == COUNT:
            rings = self._rings(block)
            others = tuple(str(count) for count in range(1, MOST_COUNTED + 1) if count != rings)
            return Question(self.number, kind, block, depth, text, str(rings), others)
        answer = self._answer(kind, block)
        return Question(self.number, kind, block, depth, text, answer, self._near_misses(kind, block, blocks, answer))

    def stem(self, kind: str) -> str:
        """What every question of a kind begins with."""
        return self._question(kind).partition("{")[0]

    def _question(self, kind: str) -> str:
        words = self.vocabulary
        return {
            SINGLE: words.question,
            KEYS: words.key_question,
            CHAIN: words.chain_question,
            COUNT: words.count_question,
        }[kind]

    def _write_block(self, block: int) -> tuple[str, ...]:
        words, code = self.vocabulary, self._code
        (quality, other_quality), animal, (place, other_place) = self._group(block)
        key, copy = words.key_fact, words.chain_copy
        lines = [
            words.fact.format(**self._name(SINGLE, block), code=code("single", block)),
            words.chain_value.format(name=self._variable(block, 0), code=code("value", block)),
            key.format(quality=quality, animal=animal, place=other_place, code=code("miss 1", block)),
            copy.format(name=self._variable(block, 1), other=self._variable(self._before("copy 1", block), 0)),
            key.format(quality=quality, animal=animal, place=place, code=code("key", block)),
            copy.format(name=self._variable(block, 2), other=self._variable(self._before("copy 2", block), 1)),
            key.format(quality=other_quality, animal=animal, place=place, code=code("miss 2", block)),
        ]
        for index in range(LINES):
            if (block * LINES + index) % words.filler_every == words.filler_every - 1:
                lines[index] += " " + self._filler(block * LINES + index)
        for later in range(block, block + REACH_BLOCKS):
            for ring in range(self._rings(later)):
                if self._before(f"ring {ring}", later) == block:
                    place_in_block = self._hash(f"line {ring}", later) % LINES
                    lines[place_in_block] += " " + words.counted.format(**self._name(COUNT, later))
        return tuple("\n" + line for line in lines)

    def _answer(self, kind: str, block: int) -> str:
        if kind == CHAIN:
            block = self._before("copy 1", self._before("copy 2", block))
        return self._code({SINGLE: "single", KEYS: "key", CHAIN: "value"}[kind], block)

    def _near_misses(self, kind: str, block: int, blocks: int, answer: str) -> tuple[str, ...]:
        """Codes that the document gives for something else, the nearest first; invented ones when it has too few."""
        found = dict.fromkeys([self._code("miss 1", block), self._code("miss 2", block)] if kind == KEYS else [])
        for distance in range(1, min(blocks, REACH_BLOCKS)):
            for other in (block - distance, block + distance):
                if 0 <= other < blocks:
                    found[self._code({SINGLE: "single", KEYS: "key", CHAIN: "value"}[kind], other)] = None
            if len(found) > CODE_OPTIONS:
                break
        for number in range(CODE_OPTIONS):
            found[self._code(f"invented {number}", block)] = None
        found.pop(answer, None)
        return tuple(found)[: CODE_OPTIONS - 1]

    def _name(self, kind: str, block: int) -> dict[str, str]:
        words = self.vocabulary
        if kind == KEYS:
            (quality, _), animal, (place, _) = self._group(block)
            return {"quality": quality, "animal": animal, "place": place}
        names = len(words.qualities) * len(words.animals) * len(words.places)
        start = (self.number * len(KINDS) + KINDS.index(kind)) * 7919
        number, quality_index = divmod((block + start) * _STRIDE % names, len(words.qualities))
        place_index, animal_index = divmod(number, len(words.animals))
        return {
            "quality": words.qualities[quality_index],
            "animal": words.animals[animal_index],
            "place": words.places[place_index],
        }

    def _group(self, block: int) -> tuple[tuple[str, str], str, tuple[str, str]]:
        """Names that differ in one word: no two blocks share a group, so no key has two codes."""
        words = self.vocabulary
        pairs = len(words.qualities) // 2
        groups = pairs * len(words.animals) * (len(words.places) // 2)
        number, pair = divmod((block + self.number * 7919) * _STRIDE % groups, pairs)
        place, animal = divmod(number, len(words.animals))
        qualities = words.qualities[2 * pair : 2 * pair + 2]
        places = words.places[2 * place : 2 * place + 2]
        if self._hash("turned", block) % 2:
            qualities, places = qualities[::-1], places[::-1]
        return (qualities[0], qualities[1]), words.animals[animal], (places[0], places[1])

    def _variable(self, block: int, step: int) -> str:
        syllables = self.vocabulary.syllables
        count = len(syllables)
        number = (block * 3 + step + self.number * 7919) * _STRIDE % count**3
        return (syllables[number % count] + syllables[number // count % count] + syllables[number // count**2]).upper()

    def _rings(self, block: int) -> int:
        return 1 + self._hash("rings", block) % MOST_COUNTED

    def _before(self, what: str, block: int) -> int:
        """A block from the second half of what lies before, or the block itself; at most `REACH_BLOCKS` away."""
        return block - self._hash(what, block) % (min(block // 2, REACH_BLOCKS - 1) + 1)

    def _code(self, what: str, block: int) -> str:
        return str(1000 + self._hash(what, block) % 9000)

    def _filler(self, index: int) -> str:
        words = self.vocabulary
        parts = (words.subjects, words.verbs, words.objects, words.times)
        return " ".join(part[self._hash(str(place), index) % len(part)] for place, part in enumerate(parts)) + "."

    def _hash(self, what: str, index: int) -> int:
        seed = f"{self.vocabulary.seed}/{self.number}/{what}/{index}"
        return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")


def fitting_lines(document: GrowingDocument, count_tokens: Callable[[int, str], int], budget_tokens: int) -> int:
    """How many lines of a document fit in `budget_tokens`.

    Args:
        count_tokens: of a line, given its index and text; lines are counted one by one.
    """
    used = index = 0
    while True:
        used += count_tokens(index, document.line(index))
        if used > budget_tokens:
            return index
        index += 1


def plan_questions(documents: Sequence[GrowingDocument], lines: Sequence[int], count: int) -> tuple[Question, ...]:
    """`count` questions, of every document, kind and depth as many as the count allows; fewer about short documents.

    Args:
        lines: how many each document has.
    """
    depths = max(DEPTHS, -(-count // (len(documents) * len(KINDS))))
    found = [
        question
        for document, size in zip(documents, lines, strict=True)
        for kind in KINDS
        for question in _kind_questions(document, kind, size, depths)
    ]
    if len(found) <= count:
        return tuple(found)
    return tuple(found[place * len(found) // count] for place in range(count))


def is_right(output: str, question: Question) -> bool:
    """Right when the only value of its form that an answer names is the one asked for."""
    if question.kind != COUNT:
        return set(_CODE.findall(output)) == {question.answer}
    named = {number.lstrip("0") or "0" for number in _NUMBER.findall(output)}
    named |= {_WORDS[word] for word in re.findall(r"[a-z]+", output.lower()) if word in _WORDS}
    return named == {question.answer}


def _kind_questions(document: GrowingDocument, kind: str, lines: int, depths: int) -> list[Question]:
    blocks = (lines - 1 - ENDS[kind]) // LINES + 1
    count = min(depths, blocks)
    if count <= 1:
        return [document.question(kind, 0, blocks)] if count == 1 else []
    places = [round(step * (blocks - 1) / (count - 1)) for step in range(count)]
    return [document.question(kind, place, blocks, step / (count - 1)) for step, place in enumerate(places)]
