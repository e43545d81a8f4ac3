"""The process that templates are rendered in: `python -m dfqs.runtime.template_process`, started by
`dfqs.runtime.rendering` only.

It takes one JSON document a line on stdin and answers with one on stdout. (Not pickles, as between us and a worker:
whoever gets out of Jinja's sandbox must not get into the process that reads the answer.) The kernel ends it when a
template takes more time or memory than a template needs. Without its caller it finds its stdin ended; the signal of a
parent's death will not do, as the kernel sends it at the death of the *thread* that started the process.
"""

import json
import resource
import sys
from typing import Any

from dfqs.errors import RuntimeFailure
from dfqs.runtime.messages import TemplateDropsMessage, TemplateFailure
from dfqs.runtime.template import render_chat, render_conversation


def main(memory_bytes: int, cpu_s: int, output_bytes: int) -> None:
    """Render until stdin ends. What is written here is data on a private pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        # CPU time is what a template can take, however busy the machine; the kernel counts it over the process's life.
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + cpu_s
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        sys.stdout.buffer.write(_answer(line, output_bytes) + b"\n")
        sys.stdout.buffer.flush()


def _answer(line: bytes, output_bytes: int) -> bytes:
    try:
        request: dict[str, Any] = json.loads(line)
        render = render_conversation if request["check"] else render_chat
        text = render(request["template"], request["messages"], **request["variables"])
        if len(text) > output_bytes:
            return b'{"excess": "text"}'
        return json.dumps({"text": text}).encode()
    except TemplateDropsMessage as error:
        return json.dumps({"drops": [error.role, error.way_out]}).encode()
    except TemplateFailure as error:
        return json.dumps({"does": error.does}).encode()
    except RuntimeFailure as error:
        return json.dumps({"failure": str(error)}).encode()
    except MemoryError:
        return b'{"excess": "memory"}'
    except RecursionError:
        return b'{"excess": "depth"}'
    except Exception as error:
        # A variable by the name of an argument, say: whoever asks can choose them.
        return json.dumps({"failure": f"the chat template cannot be rendered ({type(error).__name__})"}).encode()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
