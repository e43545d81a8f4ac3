"""Merges without a second copy of the model: planned, journaled, resumed, undone."""

from dfqs.inplace.merge import ThriftyPlan, abort_merge, is_unfinished, merge_thrifty, plan_thrifty, resume_merge

__all__ = ["ThriftyPlan", "abort_merge", "is_unfinished", "merge_thrifty", "plan_thrifty", "resume_merge"]
