"""Answers of a local model cut after some tokens: for tests of all that happens around them.

A model of this size says something wrong for as long as it is let, and that takes most of the time of an evaluation.
"""

from collections.abc import Sequence

from dfqs.evaluate.local import LocalAnswerer
from dfqs.evaluate.scores import Completion
from dfqs.evaluate.tool_offers import Tool
from dfqs.progress import Progress, no_progress

LONGEST_TOKENS = 24

_complete = LocalAnswerer.complete


def complete_shortly(
    answerer: LocalAnswerer,
    prompt: str,
    max_tokens: int,
    progress: Progress = no_progress,
    tools: Sequence[Tool] = (),
) -> Completion:
    """In the place of `LocalAnswerer.complete`."""
    return _complete(answerer, prompt, min(max_tokens, LONGEST_TOKENS), progress, tools)
