"""Measurements of importance that end their own worker at a chosen place, as kill -9 would."""

import os
import signal
from pathlib import Path
from typing import Any

from dfqs.quantize import imatrix
from dfqs.quantize.checkpoint import Checkpoint
from dfqs.quantize.imatrix import ImatrixJob, ImatrixOutcome
from dfqs.runtime.worker_context import WorkerContext
from dfqs.storage import atomic
from dfqs.storage.journal import Journal

PLACES = ("whole, not named", "named, not synced", "named", "checkpoint half forgotten")


def measure_and_die(worker: WorkerContext, job: ImatrixJob, place: str) -> ImatrixOutcome:
    """`measure_imatrix`, which is never left."""

    def die(*_: Any, **__: Any) -> None:
        if job.out.exists() or place == "whole, not named":
            os.kill(os.getpid(), signal.SIGKILL)

    def remove(self: Journal) -> None:
        if job.out.exists():
            die()

    publish, sync = atomic.publish_file, atomic.fsync_directory

    def publish_or_die(temporary: Path, path: Path, *, overwrite: bool = False, durable: bool = True) -> None:
        if path == job.out:
            die()
        publish(temporary, path, overwrite=overwrite, durable=durable)

    def sync_or_die(directory: Path) -> None:
        if job.out.exists():
            die()
        sync(directory)

    if place == "whole, not named":
        atomic.publish_file = publish_or_die
    elif place == "named, not synced":
        atomic.fsync_directory = sync_or_die
    elif place == "named":
        Checkpoint.forget = die  # type: ignore[method-assign]
    else:
        Journal.remove = remove  # type: ignore[method-assign]
    return imatrix.measure_imatrix(worker, job)
