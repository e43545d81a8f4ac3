"""What a ladder measured of one model, kept beside the models: the same command after a kill goes on behind it.

Losses lie in a file of logits (`NAME.logits.gguf`), divergence and noise floor in a document (`NAME.measured.json`). A
receipt in the cache knows both files, and all that decided what stands in them; without one they are measured anew, and
nothing that came with somebody's folder is taken for a measurement.
"""

import math
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from dfqs.errors import DfqsError
from dfqs.quantize.logits_file import read_losses, write_losses
from dfqs.quantize.noise_floor import NoiseFloor
from dfqs.quantize.perplexity import Measured, PerplexityJob, measure_losses
from dfqs.receipts import find_receipt, write_receipt
from dfqs.records import Document, is_document, read_json, sha256_of, write_json
from dfqs.runtime import Worker

SCHEMA = "dfqs.rung/1"


class RungDocument(Document):
    """`NAME.measured.json`: what was measured of one model of a ladder beside its losses. Null: not measured."""

    schema_: Literal["dfqs.rung/1"] = Field(default="dfqs.rung/1", alias="schema")
    kl: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] | None
    """Divergence from the source at each token, in nats."""
    floor: NoiseFloor | None


def rung_files(directory: Path, name: str) -> tuple[Path, Path]:
    """Where a measurement's losses and the rest of it lie."""
    return directory / f"{name}.logits.gguf", directory / f"{name}.measured.json"


def is_ours(path: Path) -> bool:
    """Whether a ladder may write over a file: it is of the kind that it writes there itself."""
    if path.suffix == ".json":
        return is_document(path, SCHEMA)
    try:
        read_losses(path)
    except DfqsError:
        return False
    return True


def measure_rung(
    worker: Worker, directory: Path, name: str, job: PerplexityJob, *, source: str = "", anew: bool = False
) -> Measured:
    """What `measure_losses` gives, which is kept: of an earlier run where this was measured already.

    Args:
        source: fingerprint of the job that the reference was made by.
        anew: measure whatever is kept.

    Raises:
        As `measure_losses`.
    """
    losses_path, document_path = files = rung_files(directory, name)
    fingerprint = sha256_of([job.fingerprint, source, job.floor_tokens])
    if not anew and find_receipt(fingerprint, files) is not None:
        kept = read_json(document_path, RungDocument)
        kl = None if kept.kl is None else np.array(kept.kl, np.float64)
        return Measured(read_losses(losses_path), kl, floor=kept.floor)
    measured = worker.call(measure_losses, job)
    write_losses(losses_path, measured.losses, overwrite=True)
    told = None if measured.kl is None else tuple(measured.kl.tolist())
    # A model can be infinitely far from its source; no document holds such a number, and it is measured again.
    if told is None or all(map(math.isfinite, told)):
        write_json(document_path, RungDocument(kl=told, floor=measured.floor), overwrite=True)
        write_receipt(fingerprint, files)
    return measured
