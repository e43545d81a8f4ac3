"""Which experts a measurement has reached, and how often."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from dfqs.model import Role, tensor_layer, tensor_role
from dfqs.quantize.imatrix_file import Imatrix


@dataclass(frozen=True, slots=True)
class ColdExpert:
    """An expert that has seen too little."""

    layer: int
    expert: int
    samples: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """How well the experts were reached."""

    experts: int
    """(layer, expert) pairs in all; 0 for a dense model."""
    min_samples: int
    """So many inputs are enough."""
    cold: tuple[ColdExpert, ...]
    """Those with fewer, coldest first."""
    median_samples: float | None
    """Over all pairs; None for a dense model."""

    @property
    def is_complete(self) -> bool:
        return not self.cold

    @property
    def unseen(self) -> int:
        """Pairs that no input reached: their columns all weigh the same when they are quantized."""
        return sum(1 for entry in self.cold if entry.samples == 0)


def measure_coverage(matrix: Imatrix, min_samples: int) -> Coverage:
    """Coverage of an importance matrix: an expert has seen as much as the least of its matrices."""
    least: dict[int, list[np.ndarray]] = defaultdict(list)
    for name, entry in matrix.entries.items():
        layer = tensor_layer(name)
        if layer is not None and tensor_role(name) is Role.ROUTED_EXPERT:
            least[layer].append(entry.counts)
    cold, samples = [], []
    for layer, counts in sorted(least.items()):
        seen = np.min(np.stack(counts), axis=0)
        samples += seen.tolist()
        cold += [ColdExpert(layer, expert, int(n)) for expert, n in enumerate(seen) if n < min_samples]
    cold.sort(key=lambda entry: (entry.samples, entry.layer, entry.expert))
    return Coverage(len(samples), min_samples, tuple(cold), float(np.median(samples)) if samples else None)
