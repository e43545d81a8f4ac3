"""The context stage without what it saves, for comparison; runs inside a worker."""

from dataclasses import replace

from dfqs.evaluate import jobs
from dfqs.evaluate.conditions import Numerics
from dfqs.evaluate.documents import DocumentJob, TokenWork, document_reader
from dfqs.runtime.worker_context import WorkerContext


def read_prompts(worker: WorkerContext, job: DocumentJob, context_tokens: int) -> list[list[int]]:
    """In the worker: each question of a job with all that stands before it."""
    model = worker.state["model"]
    context = jobs._context(worker, jobs.document_settings(Numerics(), context_tokens))
    reader = document_reader(worker, model, context, jobs._frame(model, False))
    tokens, _ = reader.document_tokens(job)
    asked = (reader.question_tokens(question) for question in job.questions)
    return [tokens + stem + rest for stem, rest in asked]


def ask_afresh(worker: WorkerContext, job: DocumentJob, context_tokens: int) -> TokenWork:
    """In the worker: every question with its own prefill of the document."""
    document = questions = 0
    for question in job.questions:
        worker.state["document_reader"] = None
        work = jobs.ask_document(worker, replace(job, questions=(question,)), Numerics(), context_tokens)
        document, questions = document + work.document, questions + work.questions
    worker.state["document_reader"] = None
    return TokenWork(document, questions)
