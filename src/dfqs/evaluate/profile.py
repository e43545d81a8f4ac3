"""Scores the small sets behind the capability profile (specification, section 6): each answer by rules that a program
can check. What a rule cannot see (taste, style, truth of prose) is not measured.
"""

import json
import re
import unicodedata
from collections.abc import Callable

from dfqs.evaluate.prompts import Check, ProfileItem
from dfqs.evaluate.scores import Completion, ScoredItem, Verdict
from dfqs.evaluate.stages import PROFILE

FLUENT_SHARE = 0.7
"""Of the runs of four words that a text has, so many must be different: less is going round in circles."""
LETTERS_SHARE = 0.6
"""Of a text's characters so many must be letters or spaces."""


def score_profile(item: ProfileItem, completion: Completion) -> ScoredItem:
    """Right when every check holds."""
    place: dict[str, str | int | float] = {"row": item.row, "level": item.level}
    refusal = completion.refusal()
    if refusal is not None:
        return ScoredItem(stage=PROFILE, item=item.id, verdict=refusal, completion=completion, place=place)
    text = completion.text.strip()
    broken = next((check for check in item.checks if not holds(check, text)), None)
    return ScoredItem(
        stage=PROFILE,
        item=item.id,
        verdict=Verdict.RIGHT if broken is None else Verdict.WRONG,
        detail="" if broken is None else f"does not hold: {broken.describe()}",
        completion=completion,
        place=place,
    )


def holds(check: Check, text: str) -> bool:
    """Whether a text keeps to one rule."""
    return _RULES[check.kind](check, text)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def _plain(text: str) -> str:
    """Without case, punctuation and marks over letters."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    return " ".join(re.findall(r"\w+(?:['’]\w+)?", bare)).replace("’", "'")


def _has_word(text: str, word: str) -> bool:
    """As a word of its own, also in the plural."""
    return re.search(rf"(?<!\w){re.escape(word)}(?:s|es|'s)?(?!\w)", text, re.IGNORECASE) is not None


def _is_fluent(check: Check, text: str) -> bool:
    words = _words(text)
    runs = [tuple(words[place : place + 4]) for place in range(len(words) - 3)]
    letters = sum(c.isalpha() or c.isspace() for c in text)
    varied = not runs or len(set(runs)) >= FLUENT_SHARE * len(runs)
    return varied and letters >= LETTERS_SHARE * len(text) and text.rstrip("\"'”’*_ )")[-1:] in (".", "!", "?")


def _is_json(check: Check, text: str) -> bool:
    bare = re.sub(r"^```\w*\n|\n?```$", "", text)
    try:
        return bool(json.loads(bare) == check.value)
    except (ValueError, RecursionError):
        return False


_RULES: dict[str, Callable[[Check, str], bool]] = {
    "equals": lambda check, text: text.strip() in check.values,
    "contains": lambda check, text: all(_has_word(text, value) for value in check.values),
    "contains_any": lambda check, text: any(f" {_plain(value)} " in f" {_plain(text)} " for value in check.values),
    "lacks": lambda check, text: not any(value.lower() in text.lower() for value in check.values),
    "starts": lambda check, text: text.startswith(tuple(check.values)),
    "ends": lambda check, text: text.rstrip(".").endswith(tuple(check.values)),
    "lines": lambda check, text: len(_lines(text)) == check.count,
    "line_starts": lambda check, text: (
        len(_lines(text)) == len(check.values)
        and all(line.startswith(start) for line, start in zip(_lines(text), check.values, strict=True))
    ),
    "words": lambda check, text: check.least <= len(_words(text)) <= check.most,
    "lower": lambda check, text: text == text.lower(),
    "count": lambda check, text: text.count(str(check.value)) == check.count,
    "matches": lambda check, text: any(re.fullmatch(value, text) for value in check.values),
    "json": _is_json,
    "fluent": _is_fluent,
}
