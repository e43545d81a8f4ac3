"""Writes the frozen set `gym.jsonl` out of generators of reasoning-gym 0.1.25 (Apache-2.0). For maintainers.

    python3 -m venv /tmp/gym && /tmp/gym/bin/pip install reasoning-gym==0.1.25
    /tmp/gym/bin/python scripts/freeze_reasoning_gym.py OUT.jsonl

Users do not need the package: what counts is the file and its hash in the manifest. Taken are families whose output is
the same in every process and whose answers can be computed again another way (the tests do it for all but the word
problems, which were read one by one). Left out for wrong answers in this version: `syllogism` (lets "some A are not C"
follow from "all A are B, some B are not C"), `family_relationships` (calls a daughter-in-law a mother-in-law), and for
doubtful ones `number_sequence`. Sentences that forbid to show any steps are cut off, because every set asks in its own
words.
"""

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

NEEDED = "0.1.25"
SEED = 20_261_128
EACH = 2
"""Items of a family at a level."""
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

LEVELS: dict[str, tuple[dict[str, Any], ...]] = {
    "chain_sum": (
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        {"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2},
        {"min_terms": 4, "max_terms": 4, "min_digits": 3, "max_digits": 3},
        {"min_terms": 6, "max_terms": 6, "min_digits": 4, "max_digits": 4},
    ),
    "basic_arithmetic": (
        {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1},
        {"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 2},
        {"min_terms": 6, "max_terms": 6, "min_digits": 2, "max_digits": 3},
    ),
    "products": (
        {"min_digits": 1, "max_digits": 1},
        {"min_digits": 2, "max_digits": 2},
        {"min_digits": 3, "max_digits": 3},
        {"min_digits": 4, "max_digits": 4},
    ),
    "gcd": tuple({"max_value": value} for value in (20, 60, 300, 1000)),
    "lcm": tuple({"max_value": value} for value in (10, 20, 50, 100)),
    "simple_equations": (
        {"min_terms": 2, "max_terms": 2, "max_value": 10},
        {"min_terms": 2, "max_terms": 2, "max_value": 50},
        {"min_terms": 3, "max_terms": 3, "max_value": 50},
        {"min_terms": 4, "max_terms": 4, "max_value": 100},
    ),
    "leg_counting": (
        {"min_animals": 2, "max_animals": 2, "max_instances": 4},
        {"min_animals": 3, "max_animals": 3, "max_instances": 8},
        {"min_animals": 4, "max_animals": 5, "max_instances": 12},
        {"min_animals": 6, "max_animals": 8, "max_instances": 15},
    ),
    "letter_counting": tuple({"min_words": n, "max_words": n} for n in (1, 3, 7, 14)),
    "calendar_arithmetic": (
        {"tasks": ["weekday_offset"], "offset_upper_bound": 6},
        {"tasks": ["weekday_offset"], "offset_upper_bound": 100},
        {"tasks": ["weekday_of_date_from_first_date"]},
        {"tasks": ["count_business_days"], "offset_upper_bound": 60},
    ),
    "spell_backward": tuple({"min_word_len": n, "max_word_len": n} for n in (3, 5, 7, 10)),
    "time_intervals": tuple(
        {"task_types": ["time"], "max_time_difference_seconds": seconds} for seconds in (1800, 7200, 28_800, 80_000)
    ),
}
GSM_SEED, GSM_ITEMS = 7, ((1, 2), (4, 5), (7, 8), (9, 11))
"""Word problems, read and computed by hand, two a level (the package has one difficulty only)."""

CUT = re.compile(
    r"\s*(?:Give only the (?:result|GCD) as your final answer\.|Give the result as your final answer\. "
    r"Do not include units\.|Respond with just the number\.)\s*$"
)


def entry(family: str, level: int, number: int, question: str, answer: str) -> dict[str, Any]:
    kind, choices = "number", []
    if answer in WEEKDAYS:
        kind, choices = "word", WEEKDAYS
    elif family == "time_intervals":
        kind = "time"
    elif family == "spell_backward":
        kind = "text"
    name = f"gym-{family.replace('_', '-')}"
    return {
        "id": f"{name}-{level}-{number}",
        "family": name,
        "level": level,
        "question": CUT.sub("", question.strip()),
        "answer": answer,
        "kind": kind,
        "choices": choices,
    }


def items() -> Iterator[dict[str, Any]]:
    """Every family at every level. In this order each prefix of 12 has every family once, at a rising level."""
    import reasoning_gym

    words = list(reasoning_gym.create_dataset("gsm_symbolic", size=12, seed=GSM_SEED))
    for number in range(1, EACH + 1):
        for level in range(1, 5):
            for place, (family, levels) in enumerate(LEVELS.items()):
                data = reasoning_gym.create_dataset(
                    family, size=EACH, seed=SEED + 100 * level + place, **levels[level - 1]
                )
                drawn = data[number - 1]
                yield entry(family, level, number, drawn["question"], str(drawn["answer"]))
            problem = words[GSM_ITEMS[level - 1][number - 1]]
            yield entry("gsm_symbolic", level, number, problem["question"], str(problem["answer"]))


def main() -> None:
    if version("reasoning-gym") != NEEDED:
        sys.exit(f"needs reasoning-gym {NEEDED}, found {version('reasoning-gym')}")
    lines = [json.dumps(item) + "\n" for item in items()]
    Path(sys.argv[1]).write_bytes("".join(lines).encode("ascii"))


if __name__ == "__main__":
    main()
