"""Plans a merge that consumes its shards: a new file grows while the shards shrink behind the copying."""

import hashlib

from dfqs.inplace.job import Freeing, Job
from dfqs.inplace.plan_resident import JobPlan, describe_source
from dfqs.shards.plan import MergePlan


def plan_consume(plan: MergePlan, freeing: Freeing) -> JobPlan:
    """Plan the copying of all shards to a new file; its bytes are those of a plain merge."""
    job = Job(
        mode="consume",
        freeing=freeing,
        file_bytes=plan.file_bytes,
        header_bytes=len(plan.header),
        header_sha256=hashlib.sha256(plan.header).hexdigest(),
        copies=plan.copies,
        sources=tuple(map(describe_source, plan.shards)),
    )
    return JobPlan(job, plan.header)
