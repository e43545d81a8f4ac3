"""Signals that ask the process to end: each takes the way out of Ctrl-C, on which temporary files are removed.

A closed terminal or a dropped connection sends SIGHUP, and often twice; `kill` and services send SIGTERM; Ctrl-\\
SIGQUIT. What the caller had ignored (nohup, a shell's background job) stays ignored. Imports next to nothing:
`dfqs.__main__` needs it before anything is loaded.
"""

import signal

_NAMED = {
    "SIGINT": "interrupted",
    "SIGTERM": "terminated (SIGTERM)",
    "SIGHUP": "hung up (SIGHUP: its terminal or connection is gone)",
    "SIGQUIT": "quit (SIGQUIT)",
}
WORDS = {signal.Signals[name]: word for name, word in _NAMED.items() if name in signal.Signals.__members__}
"""What became of the process, for people. Windows has two of them."""

_received: signal.Signals | None = None


class Ended(KeyboardInterrupt):
    """A signal other than Ctrl-C's. Not even a prompt that survives Ctrl-C survives it."""


def take_signals() -> None:
    """From here on they are exceptions: KeyboardInterrupt for SIGINT, `Ended` for the others."""
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _end)


def let_signals_go() -> None:
    """The work is over: a signal now must not become a traceback out of the interpreter's own end."""
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            # Of two in a row, the second must not change what the first one's exit code says.
            signal.signal(number, signal.SIG_IGN if _received is not None else signal.SIG_DFL)


def received() -> signal.Signals | None:
    """The signal other than SIGINT that ended the work, if one did."""
    return _received


def exit_code(number: signal.Signals) -> int:
    """As shells have it."""
    return 128 + number


def _end(number: int, _frame: object) -> None:
    global _received
    if _received is None:
        _received = signal.Signals(number)
        raise Ended
    # A second one comes while files are tidied up for the first, and must not stop that.
