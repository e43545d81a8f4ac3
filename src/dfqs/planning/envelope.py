"""The specification's hardware envelope as data, held against a plan.

Source: DFQS specification, section 14 (RAM 80 and 128 GB, GPU VRAM 22 and 24 GB, storage 60 and 150 GB; "runtime
memory includes KV cache overhead and context expansion").
"""

from dataclasses import dataclass
from typing import Literal

from dfqs.planning.document import EnvelopeRow

GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Envelope:
    """One component's row."""

    component: Literal["RAM", "GPU VRAM", "storage"]
    minimum_bytes: int
    recommended_bytes: int


ENVELOPE = (
    Envelope("RAM", 80 * GB, 128 * GB),
    Envelope("GPU VRAM", 22 * GB, 24 * GB),
    Envelope("storage", 60 * GB, 150 * GB),
)


@dataclass(frozen=True, slots=True)
class EnvelopeNeeds:
    """What a plan needs of each component; None: not known."""

    ram_bytes: int | None
    ram_for: str
    vram_bytes: int | None
    vram_for: str
    storage_bytes: int
    storage_for: str


def check_envelope(needs: EnvelopeNeeds) -> tuple[EnvelopeRow, ...]:
    """Every number of the table against what is needed. Pure."""
    needed = {
        "RAM": (needs.ram_bytes, needs.ram_for),
        "GPU VRAM": (needs.vram_bytes, needs.vram_for),
        "storage": (needs.storage_bytes, needs.storage_for),
    }
    rows = []
    for row in ENVELOPE:
        amount, why = needed[row.component]
        levels: tuple[tuple[Literal["minimum", "recommended"], int], ...] = (
            ("minimum", row.minimum_bytes),
            ("recommended", row.recommended_bytes),
        )
        for level, given in levels:
            rows.append(
                EnvelopeRow(
                    component=row.component,
                    level=level,
                    given_bytes=given,
                    needed_bytes=amount,
                    holds=None if amount is None else amount <= given,
                    needed_for=why,
                )
            )
    return tuple(rows)
