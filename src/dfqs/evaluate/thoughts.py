"""Tells what a model thought from what it answered, by the marks that families of models write. Pure text."""

import re

from dfqs.runtime.template import THINKING_MARKS

_SPECIAL = re.compile(
    r"<\|(?:start|end|channel|message|return|constrain|START_RESPONSE|END_RESPONSE|begin_of_solution|end_of_solution)\|>"
)
_FINAL = re.compile(r"<\|start\|>\s*assistant|<\|channel\|>\s*(?:final|commentary)(?=\s*<\|)")


def split_thinking(output: str) -> tuple[str, str]:
    """What stands in thoughts and what outside of them.

    A thought that is never ended reaches to the end; an end without a beginning ends one that the prompt began.
    """
    thoughts: list[str] = []
    rest = output
    for opening, ending in THINKING_MARKS:
        rest = _take(rest, opening, ending, thoughts)
    if thoughts or "<|" in rest:
        rest = _SPECIAL.sub("", _FINAL.sub("", rest))
    said = (_SPECIAL.sub("", thought).strip() for thought in thoughts)
    return "\n".join(thought for thought in said if thought), rest


def without_thinking(output: str) -> str:
    """What stands outside of thoughts; nothing, when one was begun and never ended."""
    return split_thinking(output)[1]


def _take(text: str, opening: str, ending: str, thoughts: list[str]) -> str:
    """`text` without what stands between the marks, which goes to `thoughts`."""
    # `<|end|>` ends every part of an answer, and not thoughts alone.
    own_end = ending != "<|end|>"
    kept: list[str] = []
    place = 0
    while True:
        begun = text.find(opening, place)
        ended = text.find(ending, place) if own_end else -1
        if ended >= 0 and (begun < 0 or ended < begun):
            thoughts.append("".join(kept) + text[place:ended])
            kept, place = [], ended + len(ending)
            continue
        if begun < 0:
            return "".join(kept) + text[place:]
        kept.append(text[place:begun])
        end = text.find(ending, begun + len(opening))
        thoughts.append(text[begun + len(opening) : end if end >= 0 else len(text)])
        if end < 0:
            return "".join(kept)
        place = end + len(ending)
