"""Wrong answers that look like the right one: of the same kind, as long, and never equal. Pure, and always the same.

What an item's near misses are follows from the item alone: a candidate's place in the draw is a hash of the item's id
and of itself. `VERSION` changes whenever another near miss could come out.
"""

import hashlib
from collections.abc import Callable, Iterator
from itertools import pairwise

from dfqs.evaluate.prompts import ReasoningItem
from dfqs.records import sha256_of

VERSION = 1
COUNT = 3
"""Beside each right answer, where there are so many."""
DAY_MINUTES = 24 * 60


def near_misses(item: ReasoningItem, count: int = COUNT) -> tuple[str, ...]:
    """Wrong answers to an item; fewer than `count`, or none, where it has no more.

    - `number`: one digit is another by 1 or 2 (a single one by up to 3), or two neighbouring ones are swapped; sign
      and length stay.
    - `time`: 1, 10 or 60 minutes earlier or later, round the clock.
    - `word`: the other choices.
    - `text`: two neighbouring letters are swapped, or one is the next of the alphabet.
    """
    makers: dict[str, Callable[[ReasoningItem], Iterator[str]]] = {"number": _numbers, "time": _times, "text": _texts}
    maker = _choices if item.choices else makers.get(item.kind, _texts)
    answer = _plain(item.answer)
    found = {_plain(other): other for other in maker(item) if _plain(other) != answer}
    drawn = sorted(found.values(), key=lambda other: hashlib.sha256(f"{item.id}\n{other}".encode()).digest())
    return tuple(drawn[:count])


def set_hash() -> str:
    """Names how near misses are made, beside the hashes of the sets that they are made of."""
    return sha256_of(["dfqs near misses", VERSION, COUNT])


def _plain(answer: str) -> str:
    return answer.strip().casefold()


def _choices(item: ReasoningItem) -> Iterator[str]:
    yield from item.choices


def _numbers(item: ReasoningItem) -> Iterator[str]:
    answer = item.answer
    places = [place for place, letter in enumerate(answer) if letter.isascii() and letter.isdigit()]
    for place in places:
        for step in (-3, -2, -1, 1, 2, 3) if len(places) == 1 else (-2, -1, 1, 2):
            digit = int(answer[place]) + step
            # A leading zero would be another way to write a shorter number.
            least = 1 if place == places[0] and len(places) > 1 else 0
            if least <= digit <= 9:
                yield f"{answer[:place]}{digit}{answer[place + 1 :]}"
    for first, second in pairwise(places):
        if second == first + 1 and not (first == places[0] and answer[second] == "0"):
            yield _swapped(answer, first)


def _times(item: ReasoningItem) -> Iterator[str]:
    head, *rest = item.answer.split(":")
    if not head.isdigit() or not rest or not rest[0].isdigit():
        yield from _numbers(item)
        return
    minutes = int(head) * 60 + int(rest[0])
    for step in (-60, -10, -1, 1, 10, 60):
        hours, left = divmod((minutes + step) % DAY_MINUTES, 60)
        yield ":".join([f"{hours:0{len(head)}d}", f"{left:0{len(rest[0])}d}", *rest[1:]])


def _texts(item: ReasoningItem) -> Iterator[str]:
    answer = item.answer
    for place in range(len(answer) - 1):
        yield _swapped(answer, place)
    for place, letter in enumerate(answer):
        if letter.isascii() and letter.isalpha():
            following = "a" if letter in "zZ" else chr(ord(letter.lower()) + 1)
            yield answer[:place] + (following.upper() if letter.isupper() else following) + answer[place + 1 :]


def _swapped(text: str, place: int) -> str:
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
