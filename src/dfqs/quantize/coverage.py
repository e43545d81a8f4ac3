"""Which experts a measurement has reached, and how often."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from dfqs.errors import FormatError
from dfqs.model.spec import Role, tensor_layer, tensor_role
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
    uncounted: int = 0
    """Stacked matrices with one count for all their experts, as an older file has it: nothing is known of each."""

    @property
    def is_complete(self) -> bool:
        return not self.cold

    @property
    def unseen(self) -> int:
        """Pairs that no input reached: their columns all weigh the same when they are quantized."""
        return sum(1 for entry in self.cold if entry.samples == 0)

    def describe(self) -> str:
        """A few words for whoever waits."""
        if not self.experts:
            return "dense"
        return f"{self.experts - len(self.cold)} of {self.experts} experts have seen enough"


def measure_coverage(matrix: Imatrix, min_samples: int) -> Coverage:
    """Coverage of an importance matrix: an expert has seen as much as the least of its matrices.

    Raises:
        FormatError: the matrices of a layer are of different numbers of experts.
    """
    least: dict[int, list[np.ndarray]] = defaultdict(list)
    uncounted = 0
    for name, entry in matrix.entries.items():
        layer = tensor_layer(name)
        if layer is None or tensor_role(name) is not Role.ROUTED_EXPERT:
            continue
        if matrix.one_count_for_all:
            uncounted += 1
            continue
        if least[layer] and len(least[layer][0]) != len(entry.counts):
            raise FormatError("is of another number of experts than the rest of its layer", name=name)
        least[layer].append(entry.counts)
    cold, samples = [], []
    for layer, counts in sorted(least.items()):
        seen = np.min(np.stack(counts), axis=0)
        samples += seen.tolist()
        cold += [ColdExpert(layer, expert, int(n)) for expert, n in enumerate(seen) if n < min_samples]
    cold.sort(key=lambda entry: (entry.samples, entry.layer, entry.expert))
    median = float(np.median(samples)) if samples else None
    return Coverage(len(samples), min_samples, tuple(cold), median, uncounted)
