"""A machine made of arithmetic, for tests of tuning: settings have known speeds, and time passes as it says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dfqs.planning.numerics import CacheQuality, OutputNoise
from dfqs.planning.settings import RunSettings
from dfqs.planning.trials import Trial, Workload

Speeds = Callable[[RunSettings], tuple[float, float]]
"""Tokens a second of prompt and of answer."""


@dataclass
class PretendMachine:
    """Measures requests under settings.

    Args:
        noise: deviation of the logarithm of a round's times; of single requests in it half as much.
    """

    speeds: Speeds
    noise: float = 0.0
    other_cpus: float = 0.0
    seed: int = 0
    now: float = 0.0
    measured: list[RunSettings] = field(default_factory=list)
    longest: float = 0.0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def clock(self) -> float:
        return self.now

    def measure(self, settings: Sequence[RunSettings], workload: Workload) -> list[Trial]:
        begun = self.now
        trials = []
        common = self._random.normal(0, self.noise)
        for one in settings:
            prompt, answer = self.speeds(one)
            if not prompt:
                continue
            factor = float(np.exp(common + self._random.normal(0, self.noise / 2)))
            prompt_s = workload.prompt_tokens / prompt * factor
            answer_s = workload.answer_tokens / answer * factor
            self.now += prompt_s + answer_s + 0.5
            self.measured.append(one)
            trials.append(Trial(one, prompt_s, answer_s, 0.25, self.other_cpus))
        self.longest = max(self.longest, self.now - begun)
        return trials


def noise_of(floor: float, **divergences: float) -> Callable[[Sequence[tuple[str, str]]], OutputNoise]:
    """A model's noise floor, and how far cache types (by that of V) are from f16."""

    def measure(pairs: Sequence[tuple[str, str]]) -> OutputNoise:
        caches = [
            CacheQuality(type_k=k, type_v=v, divergence_nats=divergences[v], offered=divergences[v] <= floor)
            for k, v in pairs
        ]
        return OutputNoise(
            tokens=128,
            token_by_token_nats=floor / 2,
            flash_attention_nats=floor,
            floor_nats=floor,
            caches=tuple(caches),
        )

    return measure
