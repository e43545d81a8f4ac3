"""`dfqs eval` that ends itself by SIGKILL right after it stored one result: no race, however slow the machine is.

python killed_eval.py STAGE KEY ARGUMENTS...        (a key that never comes: an evaluation to its end)

Answers of a local model are cut after some tokens.
"""

import os
import signal
import sys
from typing import Any

from dfqs.cli.main import run
from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.store import Store
from dfqs.evaluate.suites import SUITES, Suite
from short_answers import complete_shortly

SMALL = Suite("small", 2, 2, (256, 384), 3, 8, 3, 32, 64, tool_items=2, profile_items=2)
"""Three repeats of a speed that takes no time to measure."""


def main() -> int:
    SUITES[SMALL.name] = SMALL
    LocalAnswerer.complete = complete_shortly  # type: ignore[method-assign, assignment]
    fatal = sys.argv[1], sys.argv[2]
    append = Store.append

    def append_and_die(self: Store, stage: str, key: str, data: dict[str, Any]) -> None:
        append(self, stage, key, data)
        if (stage, key) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    Store.append = append_and_die  # type: ignore[method-assign]
    return run(["eval", *sys.argv[3:]])


if __name__ == "__main__":
    sys.exit(main())
