"""CPU seconds of a prefill, in a worker process: plain, and with its routing taken out."""

import time
from collections.abc import Sequence

from dfqs.routing.capture import PROBE_TOKENS, REFERENCE, load_model
from dfqs.routing.tap import BatchToken, RouterTap, decode_batch, route_batch
from dfqs.runtime.context import Context
from dfqs.runtime.worker_context import WorkerContext

WAYS = {
    "all logits": (False, True),
    "last logits": (False, False),
    "ids": (True, False),
    "ids and scores": (True, True),
}
"""What is computed: (routing, logits of every token) of a plain prefill, (routing, scores) of a traced one."""


def prefill(worker: WorkerContext, path: str, tokens: Sequence[int], way: str) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    routed, more = WAYS[way]
    tap = RouterTap(scores=more) if routed else None
    settings = {**REFERENCE, "threads": 1, "eval_callback": tap.callback if tap else None}
    with Context(load_model(worker, path), len(tokens), **settings) as context:
        wanted = tap is not None or more
        batch = [BatchToken(token, place, 0, wanted or place == len(tokens) - 1) for place, token in enumerate(tokens)]
        started, used = time.perf_counter(), time.process_time()
        if tap is None:
            decode_batch(context, batch)
        else:
            decode_batch(context, batch[:PROBE_TOKENS], tap)
            tap.take_batch(batch[:PROBE_TOKENS])
            tap.end_graphs()
            context.clear()
            route_batch(context, batch, tap)
        return time.perf_counter() - started, time.process_time() - used
