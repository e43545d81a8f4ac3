"""A model for a harness, from the words that its command line takes."""

import atexit
from pathlib import Path

from dfqs.errors import UsageError
from dfqs.evaluate.likelihood import LikelihoodSession, likelihood_settings
from dfqs.evaluate.speed import CPU_ONLY
from dfqs.model.files import open_model
from dfqs.runtime.loading import with_template
from dfqs.runtime.scoring import CHUNK_TOKENS
from dfqs.runtime.template_file import read_template
from dfqs.streaming.budget import choose_load


def open_session(
    model: str | Path,
    *,
    context: int | None = None,
    chunk: int = CHUNK_TOKENS,
    threads: int | None = None,
    ram: str | int | None = None,
    chat_template: str | Path | None = None,
) -> LikelihoodSession:
    """The session behind a harness's model; it ends with the process, for harnesses close nothing.

    Args:
        model: a GGUF file, or the first of its shards.
        context: longest context and continuation in tokens.
        chunk: the pieces that contexts are computed and shared in, in tokens.
        chat_template: a file with one (Jinja), used in place of the model's own.
        ram: memory to keep to (`24GB`, `auto`); experts of what is larger are read from disk.

    Raises:
        DfqsError: the model cannot be loaded, or not in so much memory.
    """
    if not str(model):
        raise UsageError("which model? Give model=FILE.gguf")
    template = read_template(None if chat_template is None else Path(chat_template))
    opened = open_model(Path(model))
    settings = likelihood_settings(opened, context, chunk)
    plan = choose_load(opened, settings.context, None if ram is None else str(ram), whole=CPU_ONLY, smaller="context=")
    order = with_template(plan.order, template)
    session = LikelihoodSession(opened, context_tokens=context, chunk_tokens=chunk, threads=threads, order=order)
    session.__enter__()
    atexit.register(session.__exit__, None, None, None)
    return session
