"""Reads the one value that a statement gives: a number, a clock time, one of several words, a text. Pure text.

`NOTHING` and `UNCLEAR` differ: a statement without any value ("Answer: see above") lets an earlier one speak, one that
names alternatives, a range, a bound, what it is not, or a sum that is not worked out, is an answer that says nothing.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from enum import Enum
from itertools import islice

from dfqs.evaluate.number_words import number_of_words


class Unread(Enum):
    """Why a statement gives no value."""

    NOTHING = "nothing"
    UNCLEAR = "unclear"


NOTHING, UNCLEAR = Unread.NOTHING, Unread.UNCLEAR
Reading = str | Unread

VALUES = 50
"""Looked at in one part of a statement."""
JOINED_CHARACTERS = 80
LONGEST_NUMBER = 60
"""Characters; a longer one is no answer of ours, and some have a million digits."""

_GROUPED = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}|\d{1,3}(?:[ '’]\d{3})+(?![\d'’])(?:[.,]\d+)?"
_CONTINENTAL = r"\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,3}(?:\.\d{3}){2,}"
NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-+]\s?|\b(?:minus|negative)\s)?[$€£¥¤]?(?P<value>{_CONTINENTAL}|{_GROUPED}|"
    rf"\d+(?:\.\d+)?)(?![\d])"
    r"(?P<exponent>[eE][-+]?\d{1,3}\b|\s*[×x*]\s*10\s*\^?\s*-?\d{1,2}\b)?"
    r"(?P<unit>\s?(?:%|percent\b|dozen\b|hundred\b|thousand\b|million\b|billion\b))?"
)
_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
TIME = re.compile(
    r"(?<![\d:.])(?P<hours>\d{1,2})(?::|h|\.(?=\d\d(?![\d.])))(?P<minutes>\d{2})(?::\d{2})?(?![\d:])"
    r"(?:\s*(?:in the\s)?(?P<half>[ap])(?:\.?\s?m\b\.?|fternoon))?",
    re.IGNORECASE,
)
_SPOKEN_TIME = re.compile(
    r"(?:(\d{1,2})\s*(?:hours?|hrs?|h)\b)?[\s,]*(?:and\s+)?(?:(\d{1,3})\s*(?:minutes?|mins?|m)\b)?", re.IGNORECASE
)
_BARE_TIME = re.compile(r"\W*([01]\d|2[0-3])([0-5]\d)\s*(?:hours|h)?\W*", re.IGNORECASE)

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
    r"Nov(?:ember)?|Dec(?:ember)?)"
)
_DATE = re.compile(
    rf"\b{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?\b|\b\d{{1,2}} {_MONTH}\b\.?(?: \d{{4}})?|"
    rf"\b\d{{4}}-\d\d-\d\d\b"
    rf"|\b{_MONTH} \d{{4}}\b"
)
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_REASONS = re.compile(
    r"(?:\b(?:because|since|as (?:the|there|it|he|she|they|we|this|you)|which|where|given that|for a total|due to|"
    r"considering|not counting|excluding|after (?:\w+ing|she|he|they|\w+ (?:gives|gave|loses|lost)))\b|;).*",
    re.IGNORECASE | re.DOTALL,
)
_IN_OTHER_WORDS = re.compile(
    r",? ?\b(?:i\.e\.|that is|in other words|so|thus|therefore|hence|or rather)(?:,|:)?\s", re.IGNORECASE
)
_RESULTS = re.compile(
    r"=|→|⇒|->|=>|:(?=\s)|\b(?:is|are|was|were|equals?|equal to|(?<!she )(?<!he )(?<!who )gives?|gets?|makes?|"
    r"yields?|leaves?|leaving|has|"
    r"have|had|totals?|becomes?|arrives?(?: at)?|results? in|comes? to|left with|end(?:s|ed)? (?:up )?with|"
    r"'s)(?![\w'])",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not|neither|cannot be|can't be|isn't|never|nor|rather than|instead of|no longer|except(?: for)?|"
    r"other than|any(?:one|body|thing) but|every(?:one|body|thing) but)\s+(?:be\s+)?",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"(?:\b(?:more|less|greater|fewer|larger|smaller|higher|lower|other) than|\bat (?:least|most)|\b(?:over|under|"
    r"above|below|"
    r"between|either|up to|no more than|minimum|maximum|exceeds?)|[<>≥≤≠±√]|\b(?:half(?: of)?|double|"
    r"square(?: root)? of))\s*(?:\w+\s)?[$€£]?$",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(
    r"^\W{0,3}(?:\w{1,12}\W{1,2}){0,3}?(?:or|and/or|/|to|through)\b\W*$|^\s*(?:/|-|–|—|,|\||and|&|±|vs\.?|"
    r"versus)\s*$|^[^.]{0,30}\bor\b",
    re.IGNORECASE,
)
_OPERATOR = re.compile(
    r"^\s*(?:[\w ]{0,12}?)\s*[-+*/×÷·^](?=\s*\(?\s*$)|\b(?:plus|minus|times|divided by|multiplied by|mod)\b",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"\b(?:unknown|not known|cannot be (?:determined|known)|can't be determined|impossible to (?:say|tell|know|"
    r"determine)|undetermined"
    r"|none of (?:these|the above)|n/a|not (?:sure|enough|certain|possible)|don't know|do not know|"
    r"cannot (?:determine|say|tell)|unclear)\b",
    re.IGNORECASE,
)


def read_value(stated: str, kind: str, choices: Sequence[str], percent: bool = False) -> Reading:
    """The one value of `kind` in a statement.

    Args:
        kind: `number`, `time` (HH:MM), `word` (one of `choices`) or `text` (one word, letters as written).
        percent: the question asks for percent, and `25%` is 25.
    """
    if _REFUSED.search(stated):
        return UNCLEAR
    if kind == "text":
        return _text(stated)
    stated = _DATE.sub(" ", stated)
    read: Callable[[str], Reading]
    if kind == "number":
        read = lambda part: _number(part, percent)  # noqa: E731
    elif kind == "time":
        read = _time
    else:
        read = lambda part: _word(part, choices)  # noqa: E731
        compared = _compared(stated, choices)
        if compared is not None:
            return compared
    outside = _BRACKETS.sub(lambda match: f" {match[0][1:-1]} " if match[0][1:4] in ("or ", "and") else " ", stated)
    found = _weigh(outside, read)
    worked_out = re.search(r"\(\s*=([^()]*)\)", stated)
    if found is UNCLEAR and worked_out is not None:
        return _weigh(worked_out[1], read)
    if found is NOTHING and outside != stated:
        found = _weigh(re.sub(r"[()\[\]]", " ", stated), read)
    return found


def _weigh(stated: str, read: Callable[[str], Reading]) -> Reading:
    """Reads the statement without its reasons; of what follows words for a result, the last that has a value."""
    stated = _REASONS.sub("", stated) if read(_REASONS.sub("", stated)) is not NOTHING else stated
    head, *rest = _IN_OTHER_WORDS.split(stated, maxsplit=1)
    first = _parts(head, read)
    if (
        rest
        and not TIME.search(head)
        and len(NUMBER.findall(head)) > 1
        and isinstance(second := _parts(rest[0], read), str)
    ):
        return second
    if not isinstance(first, str) and rest:
        later = _parts(rest[0], read)
        return later if later is not NOTHING else first
    return first


def _parts(stated: str, read: Callable[[str], Reading]) -> Reading:
    parts = _RESULTS.split(stated)
    unclear = False
    for part in reversed(parts):
        found = read(part)
        if isinstance(found, str):
            # What begins with its value is read from its beginning: "8 pencils are left of 20", "8 = 20 - 12".
            first = read(parts[0])
            if part is not parts[0] and isinstance(first, str) and _leads(parts[0]):
                return first if not _is_equation(stated) or _is_bare(parts[0]) else found
            return found
        unclear = unclear or found is UNCLEAR
    return UNCLEAR if unclear else NOTHING


def _leads(part: str) -> bool:
    return re.match(r"^\W*\d", part) is not None


def _is_equation(stated: str) -> bool:
    return re.search(r"=|→|⇒|->", stated) is not None


def _is_bare(part: str) -> bool:
    return re.fullmatch(r"[^\w]*[\d.,']+\s*\w{0,12}[^\w]*", part) is not None


def normalise_number(text: str) -> str | None:
    """`1,200.0` -> `1200`; None when it is no number."""
    try:
        value = Decimal(text.replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None
    if not value.is_finite():
        return None
    if value != value.to_integral_value():
        return str(value.normalize())
    # Not through int, which refuses more than 4,300 digits.
    return f"{value.to_integral_value():f}" if value else "0"


def _number(part: str, percent: bool) -> Reading:
    found = list(islice(NUMBER.finditer(part), VALUES))
    if not found:
        spoken = number_of_words(part)
        if spoken is None:
            return NOTHING
        return UNCLEAR if _NEGATION.search(part) or re.search(r"\bor\b", part) else str(spoken)
    denied = [match for match in found if _denied(part, match.start())]
    said = [match for match in found if match not in denied]
    if not said:
        return UNCLEAR
    match = said[0]
    if _BOUND.search(part[: match.start()].rstrip() + " "):
        return UNCLEAR
    behind = part[match.end() :]
    if match["value"] == "10" and (power := re.match(r"\s*\^\s*(\d{1,2})(?!\d)", behind)):
        return str(10 ** int(power[1]))
    if len(said) > 1:
        between = _between(part, match.end(), said[1].start("value"))
        if _OPERATOR.search(between):
            return UNCLEAR
        if _ALTERNATIVE.search(between):
            values = {_value(each, percent) for each in said}
            return _value(match, percent) if len(values) == 1 else UNCLEAR
    if re.match(r"\s*(?:\^|/\s*\d|[×*·÷]\s*\w|\+|or (?:more|less|fewer)\b)|:\d|[²³⁰⁴-⁹]", behind):
        return UNCLEAR
    if re.match(r"[A-Za-z]", behind) and not re.match(r"(?:st|nd|rd|th|km|kg|cm|m|g|h|s|min|x(?=\s))\b", behind):
        return UNCLEAR
    return _value(match, percent)


def _value(match: "re.Match[str]", percent: bool) -> Reading:
    digits = match["value"]
    if len(digits) > LONGEST_NUMBER:
        return UNCLEAR
    if re.fullmatch(_CONTINENTAL, digits):
        digits = digits.replace(".", "").replace(",", ".")
    digits = re.sub(r"[ '’,]", "", digits)
    value = Decimal(digits)
    exponent = match["exponent"]
    if exponent:
        power = int(re.sub(r"^(?:[eE]|\s*[×x*]\s*10)\s*\^?\s*", "", exponent))
        value = value.scaleb(power)
    unit = (match["unit"] or "").strip().lower()
    if unit in ("%", "percent") and not percent:
        return UNCLEAR
    value *= _MULTIPLES.get(unit, 1)
    return normalise_number(str(-value if (match["sign"] or "+")[0] in "-mn" else value)) or UNCLEAR


def _between(part: str, start: int, end: int) -> str:
    """What joins two values; of far ones nothing does."""
    return part[start:end] if end - start <= JOINED_CHARACTERS else "."


def _denied(part: str, place: int) -> bool:
    return any(negation.end() >= place - 1 for negation in _NEGATION.finditer(part[:place]))


def _time(part: str) -> Reading:
    said, denied = [], False
    for match in islice(TIME.finditer(part), VALUES):
        if _denied(part, match.start()):
            denied = True
            continue
        said.append((match, _clock(match)))
    if not said:
        bare = _BARE_TIME.fullmatch(part)
        if bare is not None:
            return f"{bare[1]}:{bare[2]}"
        for match in _SPOKEN_TIME.finditer(part):
            if match[1] and match[2] and int(match[1]) < 24 and int(match[2]) < 60:
                return f"{int(match[1]):02d}:{int(match[2]):02d}"
        return UNCLEAR if denied else NOTHING
    match, value = said[0]
    if value is None or _BOUND.search(part[: match.start()].rstrip() + " "):
        return UNCLEAR
    if len(said) > 1:
        between = _between(part, match.end(), said[1][0].start())
        if (_ALTERNATIVE.search(between) or _OPERATOR.search(between)) and said[1][1] != value:
            return UNCLEAR
    return value


def _clock(match: "re.Match[str]") -> str | None:
    """HH:MM; None: no time of day."""
    hours, minutes = int(match["hours"]), int(match["minutes"])
    half = (match["half"] or "").lower()
    if hours == 24 and minutes == 0:
        hours = 0
    if hours > 23 or minutes > 59 or (half == "a" and hours > 12):
        return None
    if half and hours <= 12:
        hours = hours % 12 + 12 * (half == "p")
    return f"{hours:02d}:{minutes:02d}"


_AFTER_CHOICE = re.compile(
    r"(?:\b(?:than|after|before|from|followed|ahead|behind|one day|because|since|beats|comes (?:after|"
    r"before))\b|>).*",
    re.IGNORECASE | re.DOTALL,
)


def _word(part: str, choices: Sequence[str]) -> Reading:
    named = named_choices(part, choices)
    if not named:
        return NOTHING
    denied = {name for name in named if _denied_word(part, name)}
    said = [name for name in named if name not in denied]
    if not said:
        return UNCLEAR
    if len(said) > 1 and not re.search(r">|<", part):
        shorter = [name for name in named_choices(_AFTER_CHOICE.sub("", part), choices) if name not in denied]
        said = shorter if len(shorter) == 1 else said
    return said[0] if len(said) == 1 else UNCLEAR


_THAN = re.compile(r"^(?P<who>[^,;]*?)\bis\b[^,;]*?\bthan\b(?P<others>[^,;]*)$", re.IGNORECASE)


def _compared(stated: str, choices: Sequence[str]) -> Reading | None:
    """`A is faster than B` names A only when B are all the others; None: no such sentence."""
    match = _THAN.match(stated.strip().rstrip("."))
    if match is None:
        return None
    who, others = named_choices(match["who"], choices), named_choices(match["others"], choices)
    if len(who) == 1 and set(others) | set(who) == set(choices):
        return who[0]
    return UNCLEAR if who and others else None


def _denied_word(part: str, name: str) -> bool:
    return (
        re.search(rf"(?:{_NEGATION.pattern})(?:\w+\W+){{0,1}}?\W?{re.escape(name)}\b", part, re.IGNORECASE) is not None
    )


_LETTER_QUOTED = re.compile(r"['\"‘’“”]([A-Za-z])['\"‘’“”]")
_LETTER_ALONE = re.compile(r"(?<![\w'’-])([A-Za-z])(?![\w'’-])")
_WEEKDAYS = {
    "mon": "Monday",
    "tue": "Tuesday",
    "wed": "Wednesday",
    "thu": "Thursday",
    "fri": "Friday",
    "sat": "Saturday",
}
_SHORT_DAY = re.compile(r"\b(mon|tues?|wed|thu(?:rs?)?|fri|sat|sun)\b", re.IGNORECASE)


def named_choices(text: str, choices: Sequence[str]) -> list[str]:
    """The choices that `text` names, each once. A single letter counts when quoted, else when it stands alone."""
    if not choices:
        return []
    if all(len(choice) == 1 for choice in choices):
        letters = _LETTER_QUOTED.findall(text) or _LETTER_ALONE.findall(text)
        return sorted({letter.lower() for letter in letters} & set(choices))
    named = [choice for choice in choices if re.search(rf"\b{re.escape(choice)}\b", text, re.IGNORECASE)]
    if not named and "Monday" in choices:
        days = [match[1].lower()[:3] for match in _SHORT_DAY.finditer(text)]
        named = sorted({_WEEKDAYS.get(day, "Sunday") for day in days})
    return named


def _text(stated: str) -> Reading:
    outside = _BRACKETS.sub(" ", stated).strip()
    quoted = re.findall(r"[\"“'‘]([^\s\"“”'‘’]+)[\"”'’]", outside)
    if quoted:
        return str(quoted[-1])
    last = re.split(r"=|→|->|⇒|:(?=\s)|\b(?:is|as)\b", outside)[-1]
    words = re.findall(r"[\w-]+", last)
    if not words:
        return NOTHING
    if len(words) > 1 and all(len(word) == 1 for word in words):
        return "".join(words)
    word = words[0] if len(words) == 1 else ""
    if re.fullmatch(r"\w(?:-\w)+", word):
        return word.replace("-", "")
    return word or UNCLEAR
