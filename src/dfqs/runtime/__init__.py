"""llama.cpp behind a process boundary.

The caller's side; importing it never loads the native library:

    with Worker(threads=2) as worker:
        result = worker.call(function, argument)
        result = worker.reporting(print).call(function, argument)     # prints what the function emits

What is called is a function of a module; it runs in the worker, gets the worker first, and builds on
`dfqs.runtime.context`:

    def function(worker: WorkerContext, path: Path) -> None:
        with Model(worker.library, path) as model, Context(model, n_ctx=2048) as context:
            tokens = model.tokenize("The capital of France is")
            logits = context.decode(tokens)           # float32 [vocabulary]
            worker.emit(model.detokenize([int(logits.argmax())]))

`worker.library` is the bound library (C functions as attributes, `.log`), `worker.state` a dict kept between calls,
`worker.emit` reaches who `reporting` names, `worker.threads` is the number of CPU threads, and `worker.stop` tells
whether the caller wants the call to end (`Context.decode` and `emit` look for themselves, and raise `Stopped`).

`DfqsError`s cross the boundary as themselves; a death in C is a `WorkerCrash`; Ctrl-C stops the call, not the worker.
"""

from typing import TYPE_CHECKING

from dfqs.on_demand import names_on_demand

if TYPE_CHECKING:
    from dfqs.runtime.worker import Worker

__all__ = ["Worker"]

# What is looked at before a model is loaded starts no process.
__getattr__ = names_on_demand(__name__, {"Worker": "dfqs.runtime.worker"})
