"""`dfqs`, and `python -m dfqs`: an interrupt is answered in a sentence even while the command line is still loading.

Loading it is a fifth of a second of imports. An interrupt in there would print a traceback from the middle of a
library, or come out of it as another error; nothing has been begun by then, so the process just ends. (In the first
hundredths of a second, while Python itself starts, nobody can answer.)
"""

import gc
import importlib
import os
import signal

from dfqs.cli.signals import WORDS, exit_code


def main() -> None:
    """Load the command line and run it."""
    for number in WORDS:
        # Not where the caller had it ignored, as a shell does for what a script starts in the background.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    # Loading makes a hundred thousand objects that stay: looking through them again and again is a tenth of a start.
    gc.set_threshold(50_000, 20, 20)
    # It would look through every package that is installed for plugins of its own: a tenth of a verb's start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        importlib.import_module("dfqs.cli.main").main()
    finally:
        # The interpreter would look through all of it once more, and free it piece by piece, on its way out.
        gc.freeze()
        gc.disable()


def _leave(number: int, frame: object) -> None:
    found = signal.Signals(number)
    os.write(2, f"dfqs: {WORDS[found]} before anything was done\n".encode())
    os._exit(exit_code(found))


if __name__ == "__main__":
    main()
