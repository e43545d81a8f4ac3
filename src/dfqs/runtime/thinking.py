"""A thought that takes more tokens than it may is ended for the model, which then answers with what it has."""

from dfqs.runtime.template import THINKING_MARKS

_LONGEST = max(len(mark) for pair in THINKING_MARKS for mark in pair)


class ThoughtBudget:
    """Watches what a model says for a thought at its beginning, and tells when that has taken its tokens.

    Args:
        tokens: that a thought may take.
        prompt_end: what the template wrote after the last message; it may open a thought itself.
    """

    def __init__(self, tokens: int, prompt_end: str) -> None:
        self._left = tokens
        self._said = ""
        last, self._ending = -1, None
        for opening, ending in THINKING_MARKS:
            place = prompt_end.rfind(opening)
            if place > last and ending not in prompt_end[place:]:
                last, self._ending = place, ending
        self._over = False

    def add(self, piece: str) -> str | None:
        """Take the text of a token that the model said, special ones with theirs; what to write where the thought has
        to end now, else None."""
        if self._over:
            return None
        self._said += piece
        if self._ending is None:
            self._find_beginning()
            return None
        self._left -= 1
        if self._ending in self._said:
            self._over = True
        elif self._left <= 0:
            self._over = True
            return f"\n{self._ending}\n\n"
        return None

    def _find_beginning(self) -> None:
        said = self._said.lstrip()
        for opening, ending in THINKING_MARKS:
            if said.startswith(opening):
                self._ending, self._said = ending, said[len(opening) :]
                self._left -= 1
                return
        # Only a thought at the beginning is one; later marks are quoted.
        self._over = len(said) > _LONGEST
