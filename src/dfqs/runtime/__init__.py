"""llama.cpp behind a process boundary.

The caller's side; importing it never loads the native library:

    with Worker(threads=2) as worker:
        result = worker.call("package.module:function", argument)
        text = worker.call("package.module:function", argument, on_event=print)

Inside the worker a function gets a context first, and builds on `dfqs.runtime.context`:

    def function(context, path):                      # runs in the worker
        with Model(context.library, path) as model, Context(model, n_ctx=2048) as session:
            tokens = model.tokenize("The capital of France is")
            logits = session.decode(tokens)           # float32 [vocabulary]
            context.emit(model.detokenize([int(logits.argmax())]))

`context.library` is the bound library (C functions as attributes, `.log`), `context.state` a dict kept between calls,
`context.emit` reaches the caller's `on_event`, `context.threads` is the number of CPU threads, and `context.stop` tells
whether the caller wants the call to end (`Context.decode` and `emit` look for themselves, and raise `Stopped`).

`DfqsError`s cross the boundary as themselves; a death in C is a `WorkerCrash`; Ctrl-C stops the call, not the worker.
"""

from dfqs.runtime.worker import Worker

__all__ = ["Worker"]
