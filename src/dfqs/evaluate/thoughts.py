"""Tells what a model thought from what it answered, by the marks that families of models write."""

import re
from typing import TYPE_CHECKING

from dfqs.runtime.template import THINKING_MARKS

if TYPE_CHECKING:
    # Only its name is needed here; who reads texts needs no llama.cpp.
    from dfqs.runtime.model import Model

MARKS = frozenset(
    {mark for pair in THINKING_MARKS for mark in pair} | {"<|channel|>", "<|message|>", "<|start|>", "<|end|>"}
)
"""Texts of tokens that are written out, although they are special ones, because they tell where a thought is."""

LONGEST_MARK = max(map(len, MARKS))
OPENING_TOKENS = 8
"""An opening mark that is no token of its own takes a few."""

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


def split_output(output: str, begun: bool) -> tuple[str, str]:
    """As `split_thinking`, of what was generated behind a prompt.

    Args:
        begun: the prompt itself opened a thought; without an end all of the output belongs to it.
    """
    if begun and not any(ending in output for _, ending in THINKING_MARKS):
        return output.strip(), ""
    return split_thinking(output)


def closing_mark(prompt: str) -> str:
    """What ends the thought that a prompt opened last; empty where it opened none that is known."""
    opened = max((prompt.rfind(opening), opening, ending) for opening, ending in THINKING_MARKS)
    return f"\n{opened[2]}\n\n" if opened[0] >= 0 else ""


def without_thinking(output: str) -> str:
    """What stands outside of thoughts; nothing, when one was begun and never ended."""
    return split_thinking(output)[1]


def said_piece(model: "Model", token: int) -> bytes:
    """What a token says. Of special tokens those that begin or end a thought have their text; others say nothing."""
    text = model.piece(token, special=False)
    if text:
        return text
    mark = model.piece(token, special=True)
    return mark if mark.decode("utf-8", "replace") in MARKS else b""


class Cap:
    """Counts tokens of thoughts and of what is said, each against its own limit.

    Args:
        answer_tokens: of what is said; of everything where there is no limit of its own for thoughts.
        thinking_tokens: of thoughts; None: no limit of their own.
        begun: the prompt opened a thought.
    """

    def __init__(self, answer_tokens: int, thinking_tokens: int | None, begun: bool) -> None:
        self._answer_tokens, self._thinking_tokens = answer_tokens, thinking_tokens
        self._thinks = begun
        self._thought = self._said = 0

    def reached(self, text: str) -> bool:
        """Whether the token that ended `text` was the last that is allowed."""
        if self._thinking_tokens is None:
            self._said += 1
            return self._said >= self._answer_tokens
        tail = text[-LONGEST_MARK * 2 :]
        if self._thinks:
            self._thought += 1
            self._thinks = not any(tail.endswith(ending) or ending in tail for _, ending in THINKING_MARKS)
            return self._thinks and self._thought >= self._thinking_tokens
        # Only a thought at the beginning is one; later marks are quoted.
        begins = self._said <= OPENING_TOKENS and text.lstrip().startswith(tuple(mark for mark, _ in THINKING_MARKS))
        if begins and not any(ending in text for _, ending in THINKING_MARKS):
            self._thinks, self._thought, self._said = True, self._said + 1, 0
            return False
        self._said += 1
        return self._said >= self._answer_tokens


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
