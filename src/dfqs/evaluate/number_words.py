"""English number words: `fifty-two`, `two times`, `twice`, `minus eight`. Pure text."""

import re

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {
    **{word: number for number, word in enumerate(_SMALL)},
    **{word: 10 * number for number, word in enumerate(_TENS, 2)},
}
_SCALES = {"thousand": 1000, "million": 10**6, "billion": 10**9}
_ADVERBS = {"once": 1, "twice": 2, "thrice": 3}
_NEGATIVE = ("minus", "negative")


def number_of_words(text: str) -> int | None:
    """The first number that `text` has in words; None: it has none."""
    words = re.findall(r"[a-z]+", text.lower())
    for place, word in enumerate(words):
        if word in _ADVERBS:
            return _ADVERBS[word]
        if word in _VALUES:
            value = _from(words[place:])
            return -value if place and words[place - 1] in _NEGATIVE else value
    return None


def _from(words: list[str]) -> int:
    total = group = 0
    for place, word in enumerate(words):
        if word in _VALUES:
            group += _VALUES[word]
        elif word == "hundred":
            group = max(group, 1) * 100
        elif word == "dozen":
            group = max(group, 1) * 12
        elif word in _SCALES:
            total, group = total + max(group, 1) * _SCALES[word], 0
        elif word != "and" or place + 1 == len(words) or words[place + 1] not in _VALUES:
            break
    return total + group
