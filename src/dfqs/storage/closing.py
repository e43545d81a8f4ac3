"""What is held open and closed at the end of a `with` block, in one form."""

from typing import Self


class Closing:
    """Base of what has a `close` that may be called twice; for a `with` block."""

    def close(self) -> None:
        """Let go of what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
