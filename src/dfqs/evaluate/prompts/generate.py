"""Writes the reasoning set: 64 questions in 4 families, each answer computed beside its question.

The set is frozen: what counts is `reasoning.jsonl` and its hash in the manifest. This file is kept so that anybody can
see where every answer comes from; a test runs it and compares bytes. Draws come from SHA-256, not from `random`, whose
sequences Python does not promise to keep.

Run as `python -m dfqs.evaluate.prompts.generate DIRECTORY`.
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TypeVar

SEED = "dfqs-reasoning-1"
LEVELS = (1, 2, 3, 4)
ITEMS_PER_LEVEL = 4

NAMES = ("Ada", "Bilal", "Chen", "Dora", "Emeka", "Freya", "Goran", "Hana", "Imani", "Jonas", "Keiko", "Liam")
GOODS = ("apples", "pencils", "stamps", "marbles", "shells", "cards", "buttons", "walnuts")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
SHORT_WORDS = ("tree", "banana", "pepper", "kitten", "letter", "bottle", "mirror", "cheese")
LONG_WORDS = ("mississippi", "possession", "engineering", "committee", "independence", "bookkeeper", "parallelogram")
COMPARISONS = (("taller", "shorter", "tallest"), ("older", "younger", "oldest"), ("faster", "slower", "fastest"))

T = TypeVar("T")
Item = dict[str, Any]
Question = tuple[str, str, str, tuple[str, ...]]
"""(question, answer, kind, choices); a kind is `number`, `word` or `time`, choices are empty for an open answer."""


class Draw:
    """A stream of draws fixed by its seed."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._count = 0

    def below(self, limit: int) -> int:
        self._count += 1
        digest = hashlib.sha256(f"{self._seed}/{self._count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % limit

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def one(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """`count` different values in drawn order."""
        rest = list(values)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


def arithmetic(draw: Draw, level: int) -> Question:
    """Word problems of one to four steps, all in whole numbers."""
    first, second = draw.some(NAMES, 2)
    goods = draw.one(GOODS)
    if level == 1:
        have, more = draw.between(3, 20), draw.between(2, 20)
        if draw.below(2):
            return (
                f"{first} has {have} {goods} and finds {more} more. How many {goods} does {first} have now?",
                *_number(have + more),
            )
        return (
            f"{first} has {have + more} {goods} and gives {more} to {second}. How many {goods} does {first} have left?",
            *_number(have),
        )
    if level == 2:
        boxes, each, lost = draw.between(3, 9), draw.between(4, 12), draw.between(2, 11)
        text = (
            f"{first} buys {boxes} boxes with {each} {goods} in each box, and then loses {lost} {goods}. "
            f"How many {goods} are left?"
        )
        return text, *_number(boxes * each - lost)
    if level == 3:
        boxes, each, friends = draw.between(4, 9), draw.between(5, 15), draw.between(2, 4)
        extra = friends - boxes * each % friends + friends * draw.between(1, 5)
        text = (
            f"{first} has {boxes} boxes with {each} {goods} in each and {extra} loose {goods}. "
            f"{first} shares all of them equally among {friends} friends, "
            f"and each friend then gives one of the {goods} back to {first}. "
            f"How many {goods} does each friend have in the end?"
        )
        return text, *_number((boxes * each + extra) // friends - 1)
    crates, rows, each = draw.between(12, 29), draw.between(3, 8), draw.between(11, 19)
    spoilt, price, cost = draw.between(21, 98), draw.between(3, 9), draw.between(120, 480)
    text = (
        f"A shop receives {crates} crates. Every crate has {rows} rows of {each} {goods}. "
        f"{spoilt} {goods} are broken and thrown away. "
        f"The rest are sold at {price} coins each, and the shop paid {cost} coins for the delivery. "
        f"How many coins are left after the delivery is paid?"
    )
    return text, *_number((crates * rows * each - spoilt) * price - cost)


def ordering(draw: Draw, level: int) -> Question:
    """Who stands where, from comparisons that fix the whole order."""
    people = draw.some(NAMES, level + 2)
    more, less, most = draw.one(COMPARISONS)
    clues = [f"{a} is {more} than {b}." for a, b in itertools.pairwise(people)]
    if level >= 3:
        clues = [
            f"{b} is {less} than {a}." if draw.below(2) else clue
            for clue, a, b in zip(clues, people, people[1:], strict=False)
        ]
    clues = draw.some(clues, len(clues))
    rank = 0 if level <= 2 else draw.between(1, len(people) - 2)
    which = most if rank == 0 else f"number {rank + 1}, counted from the {most}"
    return f"{' '.join(clues)} Who is {which}?", people[rank], "word", tuple(sorted(people))


def calendar(draw: Draw, level: int) -> Question:
    """Weekdays, clock times and dates."""
    if level % 2 == 0 and draw.below(2):
        start, minutes = draw.between(6 * 60, 15 * 60), draw.between(20, 110) if level == 2 else draw.between(200, 500)
        text = (
            f"A train leaves at {_clock(start)} and travels for {minutes} minutes. "
            "At what time does it arrive? Use the 24-hour form HH:MM."
        )
        if level == 4:
            late = draw.between(15, 55)
            minutes += late
            text = text.replace("minutes. At", f"minutes. On the way it also stands still for {late} minutes. At")
        return text, _clock(start + minutes), "time", ()
    weekday = draw.below(7)
    if level == 1:
        days = draw.between(1, 6)
        return (
            f"Today is {WEEKDAYS[weekday]}. Which day of the week is it {days} day{'s' * (days > 1)} from now?",
            *_weekday(weekday + days),
        )
    if level == 2:
        days = draw.between(8, 30)
        return f"Today is {WEEKDAYS[weekday]}. Which day of the week was it {days} days ago?", *_weekday(weekday - days)
    start_day = date(2021, 1, 1) + timedelta(days=draw.below(1200))
    end_day = start_day + timedelta(days=draw.between(25, 60) if level == 3 else draw.between(100, 250))
    if draw.below(2):
        text = f"{_date(start_day)} is a {WEEKDAYS[start_day.weekday()]}. Which day of the week is {_date(end_day)}?"
        return text, *_weekday(end_day.weekday())
    text = f"How many days after {_date(start_day)} is {_date(end_day)}?"
    return text, *_number((end_day - start_day).days)


def sequence(draw: Draw, level: int) -> Question:
    """Number sequences, letters of words, and steps carried out one after the other."""
    variant = draw.below(2)
    if level == 1:
        if variant:
            start, step = draw.between(1, 15), draw.between(2, 9)
            return _next_number([start + step * k for k in range(6)])
        word = draw.one(SHORT_WORDS)
        return f"What is the last letter of the word '{word}'?", word[-1], "word", tuple("abcdefghijklmnopqrstuvwxyz")
    if level == 2:
        if variant:
            start, factor = draw.between(1, 5), draw.between(2, 3)
            return _next_number([start * factor**k for k in range(6)])
        word = draw.one(SHORT_WORDS)
        letter = draw.one(sorted(set(word)))
        return f"How many times does the letter '{letter}' occur in the word '{word}'?", *_number(word.count(letter))
    if level == 3:
        if variant:
            first, second = draw.between(1, 6), draw.between(3, 9)
            numbers = [first, second]
            while len(numbers) < 7:
                numbers.append(numbers[-1] + numbers[-2])
            return _next_number(numbers)
        word = draw.one(LONG_WORDS)
        letter = max(sorted(set(word)), key=word.count)
        return f"How many times does the letter '{letter}' occur in the word '{word}'?", *_number(word.count(letter))
    if variant:
        start, first_step, growth = draw.between(2, 9), draw.between(3, 6), draw.between(2, 4)
        return _next_number([start + first_step * k + growth * k * (k - 1) // 2 for k in range(7)])
    names = draw.some(NAMES, 5)
    row, moves = list(names), []
    for _ in range(4):
        a, b = draw.some(range(5), 2)
        moves.append(f"{row[a]} and {row[b]} swap places.")
        row[a], row[b] = row[b], row[a]
    place = draw.below(5)
    text = (
        f"Five people stand in a row, from left to right: {', '.join(names)}. {' '.join(moves)} "
        f"Who stands at place {place + 1} from the left now?"
    )
    return text, row[place], "word", tuple(sorted(names))


FAMILIES: dict[str, Callable[[Draw, int], Question]] = {
    "arithmetic": arithmetic,
    "ordering": ordering,
    "calendar": calendar,
    "sequence": sequence,
}


def reasoning_items() -> list[Item]:
    """The whole set. In its order every prefix of 16 is balanced over families and levels."""
    items: list[Item] = []
    seen: set[str] = set()
    for number in range(1, ITEMS_PER_LEVEL + 1):
        for level in LEVELS:
            for family, write in FAMILIES.items():
                draw = Draw(f"{SEED}/{family}/{level}/{number}")
                question, answer, kind, choices = write(draw, level)
                while question in seen:
                    question, answer, kind, choices = write(draw, level)
                seen.add(question)
                items.append(
                    {
                        "id": f"{family}-{level}-{number}",
                        "family": family,
                        "level": level,
                        "question": question,
                        "answer": answer,
                        "kind": kind,
                        "choices": list(choices),
                    }
                )
    return items


def jsonl(items: Sequence[Item]) -> bytes:
    """One item a line, keys in their order, ASCII."""
    return "".join(json.dumps(item) + "\n" for item in items).encode("ascii")


def _number(value: int) -> tuple[str, str, tuple[str, ...]]:
    return str(value), "number", ()


def _weekday(index: int) -> tuple[str, str, tuple[str, ...]]:
    return WEEKDAYS[index % 7], "word", WEEKDAYS


def _next_number(numbers: Sequence[int]) -> Question:
    *shown, answer = numbers
    return f"Which number comes next in this sequence: {', '.join(map(str, shown))}, ?", *_number(answer)


def _clock(minutes: int) -> str:
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def _date(day: date) -> str:
    return f"{MONTHS[day.month - 1]} {day.day}, {day.year}"


if __name__ == "__main__":
    (Path(sys.argv[1]) / "reasoning.jsonl").write_bytes(jsonl(reasoning_items()))
