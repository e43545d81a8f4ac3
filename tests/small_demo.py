"""`dfqs demo` that measures one item of each kind: every step of the real one, without the minute of answers.

python small_demo.py ARGUMENTS...
"""

import sys
from dataclasses import replace

from dfqs import demo
from dfqs.cli.main import run

if __name__ == "__main__":
    demo.SAMPLE = replace(
        demo.SAMPLE, reasoning_items=1, code_items=1, context_lengths=(256,), context_questions=1, decode_tokens=16
    )
    sys.exit(run(["demo", *sys.argv[1:]]))
