"""Many files and one: shards merged to a file, a file split to shards."""

from dfqs.shards.merge import MergeResult, merge
from dfqs.shards.names import merged_path
from dfqs.shards.plan import Copy, MergePlan, plan_merge, plan_merge_of
from dfqs.shards.shard import Shard, read_shards
from dfqs.shards.split import SplitPlan, plan_split, split

__all__ = [
    "Copy",
    "MergePlan",
    "MergeResult",
    "Shard",
    "SplitPlan",
    "merge",
    "merged_path",
    "plan_merge",
    "plan_merge_of",
    "plan_split",
    "read_shards",
    "split",
]
