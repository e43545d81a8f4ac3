"""Results as JSON: `results/ROW.json`, one a row, of the last time that the row was measured."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speed.frame import Curve, Goal, Row, Sample
from speed.rows import ROWS

FOLDER = Path(__file__).parent.parent / "results"
SCHEMA = "dfqs.benchmark/1"


@dataclass(frozen=True, slots=True)
class Result:
    """A row as it was measured."""

    row: str
    title: str
    base: str
    arms: Mapping[str, tuple[str, tuple[Sample, ...]]]
    """Name -> role and samples, in the order of the rounds."""
    goals: tuple[Goal, ...]
    curves: tuple[Curve, ...]
    work_bytes: int | None
    rounds: int
    machine: str
    load_before: float
    load_after: float
    commit: str | None
    date: str
    conditions: tuple[str, ...]

    @classmethod
    def of(
        cls, row: Row, samples: Mapping[str, Sequence[Sample]], curves: tuple[Curve, ...], **conditions: Any
    ) -> "Result":
        """Of a row just measured."""
        roles = {arm.name: arm.role for arm in row.arms}
        arms = {name: (str(roles.get(name, "control")), tuple(found)) for name, found in samples.items()}
        date = time.strftime("%Y-%m-%d")
        return cls(
            row.name,
            row.title,
            row.base,
            arms,
            row.goals,
            curves,
            row.work_bytes,
            date=date,
            conditions=row.conditions,
            **conditions,
        )

    def samples(self, arm: str) -> tuple[Sample, ...]:
        return self.arms[arm][1]


def write(result: Result, folder: Path = FOLDER) -> Path:
    """One sample a line, so that differences of two measurements can be read."""
    plain = {"schema": SCHEMA, **asdict(result)}
    path = folder / f"{result.row}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(plain), indent=1) + "\n", encoding="utf-8")
    return path


def read(folder: Path = FOLDER) -> list[Result]:
    """All rows that were ever measured, in the order of the page."""
    order = {name: place for place, name in enumerate(ROWS)}
    found = [_result(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return sorted(found, key=lambda result: order.get(result.row, len(order)))


def _result(plain: dict[str, Any]) -> Result:
    if plain.pop("schema") != SCHEMA:
        raise ValueError(f"{plain['row']}: not a result of {SCHEMA}; measure it again")
    plain["arms"] = {
        name: (role, tuple(Sample(**one) for one in found)) for name, (role, found) in plain["arms"].items()
    }
    plain["goals"] = tuple(Goal(**goal) for goal in plain["goals"])
    plain["curves"] = tuple(
        Curve(c["name"], c["unit"], tuple((size, Sample(**one)) for size, one in c["points"])) for c in plain["curves"]
    )
    plain["conditions"] = tuple(plain["conditions"])
    return Result(**plain)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items() if each is not None or key != "sync_s"}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
