"""How much is measured: two suites of the same sets.

A suite's lengths are not changed for a model: what is longer than it was trained for is told as not measured.
"""

from dataclasses import dataclass

from dfqs.errors import UsageError


@dataclass(frozen=True, slots=True)
class Suite:
    """Sizes of one evaluation. Scores of different suites do not compare."""

    name: str
    reasoning_items: int
    code_items: int
    context_lengths: tuple[int, ...]
    """Tokens, shortest first."""
    context_questions: int
    """Asked at each length."""
    decode_tokens: int
    decode_repeats: int
    prefill_tokens: int
    depth_tokens: int
    """Where the rate at depth is measured."""
    answer_tokens: int | None = None
    """Longest answer, where that is less than the set's own; None: as the set has it."""
    context_documents: int = 2
    """At each length; a short one has room for few questions, so many of them are asked about."""
    context_written: bool = True
    """Whether answers about documents are written, where they can be chosen by likelihood: that takes less time, and
    tells something of models that write none that is right."""
    gym_items: int = 0
    humaneval_items: int = 0
    tool_items: int = 0
    profile_items: int = 0
    likelihood_items: int = 0
    """Of each reasoning set, whose right answers are scored by likelihood beside near misses."""
    floor_items: int = 0
    """Of each reasoning set, scored so under other numerics too."""
    floor_tokens: int = 0
    """Of held-out text, on which the model is held against itself."""


QUICK = Suite(
    "quick",
    16,
    12,
    (1024, 1536, 2048, 3072),
    40,
    128,
    3,
    512,
    2048,
    gym_items=12,
    tool_items=12,
    profile_items=12,
    likelihood_items=48,
    floor_items=12,
    floor_tokens=512,
)
STANDARD = Suite(
    "standard",
    64,
    32,
    (1024, 1536, 2048, 4096, 8192, 16_384, 32_768, 65_536),
    40,
    128,
    5,
    512,
    depth_tokens=4096,
    gym_items=96,
    humaneval_items=164,
    tool_items=24,
    profile_items=39,
    likelihood_items=96,
    floor_items=32,
    floor_tokens=1024,
)
SUITES = {suite.name: suite for suite in (QUICK, STANDARD)}


def find_suite(name: str) -> Suite:
    """
    Raises:
        UsageError: no such suite.
    """
    if name not in SUITES:
        raise UsageError(f"no suite '{name}'; there are {', '.join(SUITES)}")
    return SUITES[name]
