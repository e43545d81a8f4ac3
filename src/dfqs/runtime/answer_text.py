"""An answer's text out of its tokens, which cut characters and stop strings where they like: what is cut waits."""

import codecs
from collections.abc import Callable, Sequence


def _ignore(text: str) -> None:
    """Nobody listens."""


class StopStrings:
    """Text that comes in pieces, let through up to the first of some strings.

    Args:
        strings: not empty ones; the one that stands first ends the text, of several at one place whichever.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._waiting = ""
        self.found = False

    def add(self, piece: str) -> str:
        """What may be shown now; nothing more once `found` is true."""
        if self.found:
            return ""
        text = self._waiting + piece
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        if places:
            self.found, self._waiting = True, ""
            return text[: min(places)]
        held = max((self._beginning_at_the_end(text, string) for string in self._strings), default=0)
        self._waiting = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What waited, when no more text comes."""
        text, self._waiting = self._waiting, ""
        return text

    @staticmethod
    def _beginning_at_the_end(text: str, string: str) -> int:
        """How long the longest end of `text` is that `string` begins with."""
        longest = min(len(text), len(string) - 1)
        return next((length for length in range(longest, 0, -1) if text.endswith(string[:length])), 0)


class AnswerText:
    """Bytes of tokens as whole characters, up to a stop string.

    Args:
        on_text: called with pieces of the text as they come.
    """

    def __init__(self, stop: Sequence[str], on_text: Callable[[str], None] = _ignore) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = StopStrings(stop)
        self._on_text = on_text
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """So far."""
        return "".join(self._pieces)

    def add(self, data: bytes) -> bool:
        """Take one token's bytes; whether the answer goes on."""
        self._write(self._stop.add(self._decoder.decode(data)))
        return not self._stop.found

    def finish(self) -> None:
        """No more comes: what waited is text, and half a character U+FFFD."""
        self._write(self._stop.add(self._decoder.decode(b"", final=True)) + self._stop.rest())

    def _write(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            self._on_text(piece)
