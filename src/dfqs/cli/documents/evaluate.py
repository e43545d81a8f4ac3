"""What `eval --dry-run` prints; an evaluation itself prints its report."""

from typing import Literal

from pydantic import Field

from dfqs.evaluate.items import why_no_humaneval
from dfqs.evaluate.run import Request
from dfqs.records import Document


class EvalPlan(Document):
    """What would be measured."""

    schema_: Literal["dfqs.eval-plan/1"] = Field(default="dfqs.eval-plan/1", alias="schema")
    suite: str
    stages: tuple[str, ...]
    reasoning_items: int
    code_items: int
    gym_items: int
    humaneval_items: int
    """0 also where the package with its data is not installed."""
    tool_items: int
    profile_items: int
    context_lengths: tuple[int, ...]
    """In tokens."""
    context_questions: int
    """Of each length."""
    boundary_lengths: tuple[int, ...]
    """In tokens."""
    speed_repeats: int
    generated_tokens_at_most: int
    read_tokens_about: int

    @classmethod
    def of(cls, request: Request) -> "EvalPlan":
        """Of a request."""
        suite = request.sized
        generated, read = request.most_tokens
        return cls(
            suite=suite.name,
            stages=request.stages,
            reasoning_items=suite.reasoning_items,
            code_items=suite.code_items,
            gym_items=suite.gym_items,
            humaneval_items=suite.humaneval_items if why_no_humaneval() is None else 0,
            tool_items=suite.tool_items,
            profile_items=suite.profile_items,
            context_lengths=suite.context_lengths,
            context_questions=suite.context_questions,
            boundary_lengths=request.lengths,
            speed_repeats=suite.decode_repeats,
            generated_tokens_at_most=generated,
            read_tokens_about=read,
        )
