"""Many files and one: shards merged to a file, a file split to shards.

Each name is loaded when it is asked for: who only asks how shards are named does without what merges them.
"""

from typing import TYPE_CHECKING

from dfqs.on_demand import names_on_demand

if TYPE_CHECKING:
    from dfqs.gguf.shard import Shard, read_shards
    from dfqs.gguf.shard_names import merged_path
    from dfqs.shards.plain_merge import merge
    from dfqs.shards.plan import Copy, MergePlan, MergeResult, plan_merge, plan_merge_of
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

_PLACES = {
    "Copy": "dfqs.shards.plan",
    "MergePlan": "dfqs.shards.plan",
    "MergeResult": "dfqs.shards.plan",
    "Shard": "dfqs.gguf.shard",
    "SplitPlan": "dfqs.shards.split",
    "merge": "dfqs.shards.plain_merge",
    "merged_path": "dfqs.gguf.shard_names",
    "plan_merge": "dfqs.shards.plan",
    "plan_merge_of": "dfqs.shards.plan",
    "plan_split": "dfqs.shards.split",
    "read_shards": "dfqs.gguf.shard",
}

__getattr__ = names_on_demand(__name__, _PLACES)
