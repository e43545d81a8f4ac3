"""A search for faster settings under way: what was measured, what it cost, and what is left of the budget."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dfqs.planning.halving import Challenge, Timing, challenge
from dfqs.planning.settings import RunSettings
from dfqs.planning.trials import Trial, Workload
from dfqs.planning.tuning import Gain, Tried
from dfqs.progress import Progress

REQUESTS_A_SESSION = 20
"""Loading counts so much less than a request: a way of loading that takes longer must win it back."""
_LOOK_BACK, _ROOM = 4, 1.2
"""Rounds that say what the next one will cost, and how much more it may."""

Measure = Callable[[Sequence[RunSettings], Workload], list[Trial]]
"""Measures a request under each of the settings, in their order; leaves out what failed."""


@dataclass(slots=True)
class Search:
    """One search.

    Args:
        budget_s: of it all.
        clock: seconds, from anywhere.
        started_s: when the budget began.
        request_cost_s: seconds that measuring one request takes, process and loading included.
    """

    measure: Measure
    budget_s: float
    progress: Progress
    clock: Callable[[], float]
    started_s: float
    request_cost_s: float
    costs_s: list[float] = field(default_factory=list)
    trials: dict[RunSettings, list[Trial]] = field(default_factory=lambda: defaultdict(list))
    tried: list[Tried] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def spent_s(self) -> float:
        return self.clock() - self.started_s

    @property
    def _expected_cost_s(self) -> float:
        """Of one more request, with room for one that is slower."""
        recent = self.costs_s[-_LOOK_BACK:] or [self.request_cost_s]
        return _ROOM * sum(recent) / len(recent)

    def expect(self, cost_s: float) -> None:
        """From now on a request takes another time to measure than it did."""
        self.costs_s[:] = [cost_s]

    def measure_once(
        self, settings: Sequence[RunSettings], workload: Workload, deadline_s: float, note: str
    ) -> Mapping[RunSettings, Trial] | None:
        """Measure settings side by side; None where that would not end before `deadline_s` of the budget."""
        begun = self.spent_s
        if begun + self._expected_cost_s * len(settings) > deadline_s:
            return None
        self.progress(int(begun), int(self.budget_s), note)
        found = {trial.settings: trial for trial in self.measure(settings, workload)}
        self.costs_s.append((self.spent_s - begun) / len(settings))
        for trial in found.values():
            self.trials[trial.settings].append(trial)
        return found

    def try_all(
        self, name: str, holds: RunSettings, candidates: Sequence[RunSettings], workload: Workload, deadline_s: float
    ) -> list[Challenge[RunSettings]]:
        """Try a group of candidates against what holds, until `deadline_s` of the budget."""

        def measure(settings: Sequence[RunSettings]) -> Mapping[RunSettings, Timing] | None:
            found = self.measure_once(settings, workload, deadline_s, name)
            return None if found is None else {one: timing_of(trial) for one, trial in found.items()}

        results = challenge(holds, candidates, measure)
        if candidates and not results:
            self.notes.append(f"there was no time for other settings of {name}")
        return results

    def keep(
        self, name: str, holds: RunSettings, results: Sequence[Challenge[RunSettings]], chosen: RunSettings
    ) -> None:
        """Write down what was tried."""
        for result in results:
            tried = Tried(
                stage=name,
                changes=result.settings.differences(holds),
                gain=Gain.of(result.total),
                prompt_gain=Gain.of(result.prompt),
                answer_gain=Gain.of(result.answer),
                chosen=result.settings == chosen,
            )
            self.tried.append(tried)


def timing_of(trial: Trial) -> Timing:
    """A trial as it counts."""
    return Timing(trial.prompt_s, trial.answer_s, trial.load_s / REQUESTS_A_SESSION)
