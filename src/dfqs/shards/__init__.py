"""Many files and one: shards merged to a file, a file split to shards."""

from dfqs.gguf.shard import Shard, read_shards
from dfqs.gguf.shard_names import merged_path
from dfqs.shards.plain_merge import MergeResult, merge
from dfqs.shards.plan import Copy, MergePlan, plan_merge, plan_merge_of
from dfqs.shards.split import SplitPlan, plan_split

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
]
