"""`dfqs demo` that measures one item of each kind, shortly answered: every step of the real one in a third of its time.

python small_demo.py ARGUMENTS...
"""

import sys
from dataclasses import replace

from dfqs import demo
from dfqs.cli.main import run
from dfqs.evaluate.local import LocalAnswerer
from short_answers import complete_shortly

if __name__ == "__main__":
    demo.SAMPLE = replace(
        demo.SAMPLE,
        reasoning_items=1,
        code_items=1,
        context_lengths=(256,),
        context_questions=1,
        context_documents=2,
        decode_tokens=16,
    )
    LocalAnswerer.complete = complete_shortly  # type: ignore[method-assign, assignment]
    sys.exit(run(["demo", *sys.argv[1:]]))
