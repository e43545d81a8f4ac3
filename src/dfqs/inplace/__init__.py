"""Merges without a second copy of the model: planned, journaled, resumed, undone."""

from dfqs.inplace.merge import InplacePlan, abort_merge, is_unfinished, merge_inplace, plan_inplace, resume_merge

__all__ = ["InplacePlan", "abort_merge", "is_unfinished", "merge_inplace", "plan_inplace", "resume_merge"]
