"""`dfqs quantize` without its last step, the reading back: what the work itself takes. By hand only.

Run: python quantize_unread.py SOURCE OUT CLASS IMATRIX
"""

import sys
from pathlib import Path

from dfqs.model.classes import CLASSES
from dfqs.quantize.checks import check_imatrix
from dfqs.quantize.execute import execute
from dfqs.quantize.quantize import plan_source, plan_work, quantizing_worker, read_source
from dfqs.storage.atomic import publish_file


def main() -> None:
    path, out, class_, imatrix = sys.argv[1:]
    source = read_source(Path(path))
    plan = plan_source(source, CLASSES[class_])
    origin = check_imatrix(plan, source, Path(imatrix))
    work = plan_work(source, plan, Path(out), origin, None, 2_000_000_000, None, False)
    with quantizing_worker() as worker:
        worker.call(execute, work)
    publish_file(work.outputs[0].partial, work.outputs[0].path)
    work.journal.unlink()


if __name__ == "__main__":
    main()
