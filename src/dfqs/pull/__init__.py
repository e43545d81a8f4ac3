"""A model's shards from the Hub straight into one file, each byte written once."""

from dfqs.pull.execute import PullResult, forget_pull, plan_pull, pull, require_room
from dfqs.pull.headers import read_remote_headers
from dfqs.pull.hub import Hub, hub_endpoint
from dfqs.pull.kept import KeptModel, find_kept, keeping, list_kept, models_directory, remove_kept, select_kept
from dfqs.pull.plan import PullPlan, output_path
from dfqs.pull.retry import RetryPolicy

__all__ = [
    "Hub",
    "KeptModel",
    "PullPlan",
    "PullResult",
    "RetryPolicy",
    "find_kept",
    "forget_pull",
    "hub_endpoint",
    "keeping",
    "list_kept",
    "models_directory",
    "output_path",
    "plan_pull",
    "pull",
    "read_remote_headers",
    "remove_kept",
    "require_room",
    "select_kept",
]
