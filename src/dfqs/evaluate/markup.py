"""Takes markup off an answer, and keeps what it says: emphasis, code, formulas, quoted lines. Pure text."""

import re
import unicodedata

FORMULA_NESTING = 200
"""Boxes and fractions looked at; a text that is made to take long has more."""

_FENCE_LINE = re.compile(r"^[ \t>]*(?:```|~~~)[^\n]*$", re.MULTILINE)
_QUOTED_LINE = re.compile(r"^(?:[ \t]*>)+[ \t]?", re.MULTILINE)
_ANSWER_TAG = re.compile(r"<\s*(final_?)?answer\s*>([^<]{0,400})(?:<\s*/\s*\1?answer\s*>|\Z)", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{\s*(-?\d{1,15})\s*\}\s*\{\s*(-?\d{1,15})\s*\}")
_WORDS = (
    (re.compile(r"\\(?:times|cdot|ast)\b"), "×"),
    (re.compile(r"\\div\b"), "÷"),
    (re.compile(r"\\(?:approx|sim)\b"), "≈"),
    (re.compile(r"\\(?:neq|ne)\b"), "≠"),
    (re.compile(r"\\(?:leq?|leqslant)\b"), "≤"),
    (re.compile(r"\\(?:geq?|geqslant)\b"), "≥"),
    (re.compile(r"\\(?:rightarrow|to|implies|Rightarrow)\b"), "→"),
    (re.compile(r"(?<=\d)\s{0,3}(?:\\[,;:! ]|\{[,.']\})\s*(?=\d{3}(?!\d))"), " "),
    (re.compile(r"\\[,;:! ]|~"), " "),
    (re.compile(r"\\([%$&#_])"), r"\1"),
    (re.compile(r"\\[a-zA-Z]+\s?"), ""),
    (re.compile(r"\\[()\[\]]"), ""),
    (re.compile(r"(?<=\d)\*\*(?=\d)"), "^"),
    (re.compile(r"\*\*|__"), ""),
    # A star between two values multiplies; others are emphasis or a list's.
    (re.compile(r"(?<![\w) ])\*+|\*+(?![\w( ])|(?<=[^\S\n])\*+(?=\w[^\n*]*\*)"), ""),
    (re.compile(r"(?<!\w)_+|_+(?!\w)"), ""),
    (re.compile(r"(?<=\d)_(?=\d{3})"), ""),
    (re.compile(r"[`{}]"), ""),
    (re.compile(r"(?:\$)(?!\s*\d)"), ""),
    (re.compile(r"[\u00a0\u2000-\u200a\u202f\u205f]"), " "),
    (re.compile(r"[\u200b-\u200f\u2060\ufeff]"), ""),
    (re.compile("−"), "-"),
)
_VULGAR = re.compile(r"(?<!\d)(\d{0,12})([½⅓⅔¼¾⅕⅛])")


def plain_text(text: str) -> str:
    """Without markup; `\\boxed{x}` and `<answer>x</answer>` become lines `answer: x`."""
    text = _FENCE_LINE.sub("", text.replace("\r\n", "\n"))
    text = _QUOTED_LINE.sub("", text)
    text = _ANSWER_TAG.sub(r"\nanswer: \2\n", text)
    text = _FRACTION.sub(_fraction, text)
    text = _unbox(text)
    for pattern, replacement in _WORDS:
        text = pattern.sub(replacement, text)
    return _VULGAR.sub(_vulgar, text)


def _unbox(text: str) -> str:
    """`\\boxed{...}`, with whatever braces are inside, as a line of its own."""
    parts: list[str] = []
    place = 0
    for _ in range(FORMULA_NESTING):
        found = _BOX.search(text, place)
        if found is None:
            break
        depth, end = 1, found.end()
        limit = min(len(text), end + 400)
        while end < limit and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        inside = text[found.end() : end - 1 if not depth else end]
        parts += [text[place : found.start()], f"\nanswer: {inside}\n"]
        place = end
    return "".join(parts) + text[place:]


def _fraction(match: "re.Match[str]") -> str:
    above, below = int(match[1]), int(match[2])
    return str(above // below) if below and above % below == 0 else f"{above}/{below}"


def _vulgar(match: "re.Match[str]") -> str:
    value = float(match[1] or 0) + unicodedata.numeric(match[2])
    return f"{value:.6g}"
