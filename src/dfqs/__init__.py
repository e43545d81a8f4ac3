"""dfqs: one proven GGUF file out of a sharded Mixture-of-Experts model, and honest numbers about it.

The names below are what a program needs; docs/library.md is a program that uses them. Each is loaded when it is asked
for, so that `import dfqs` costs nothing and works where llama.cpp does not.
"""

from dfqs.on_demand import names_on_demand

__version__ = "0.1.0"

# Type checkers take it for true; `typing` itself costs more to import than all of this.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from dfqs.errors import DfqsError as DfqsError
    from dfqs.evaluate.likelihood import LikelihoodSession as LikelihoodSession
    from dfqs.inplace import abort_merge as abort_merge
    from dfqs.inplace import merge_inplace as merge_inplace
    from dfqs.inplace import plan_inplace as plan_inplace
    from dfqs.inplace import resume_merge as resume_merge
    from dfqs.integrity import has_errors as has_errors
    from dfqs.integrity import verify_against as verify_against
    from dfqs.integrity import verify_structure as verify_structure
    from dfqs.model.files import open_model as open_model
    from dfqs.model.hashes import hash_model as hash_model
    from dfqs.planning.plan import PlanRequest as PlanRequest
    from dfqs.planning.plan import plan_model as plan_model
    from dfqs.pull import Hub as Hub
    from dfqs.pull import plan_pull as plan_pull
    from dfqs.pull import pull as pull_model  # noqa: F401
    from dfqs.quantize.quantize import quantize as quantize_model  # noqa: F401
    from dfqs.report import Report as Report
    from dfqs.report.evaluation import evaluate_model as evaluate_model
    from dfqs.routing.capture import capture_trace as capture_trace
    from dfqs.routing.coherence import diff_traces as diff_traces
    from dfqs.routing.prompts import Prompt as Prompt
    from dfqs.runtime import Worker as Worker
    from dfqs.runtime.chat import ChatSession as ChatSession
    from dfqs.runtime.memory import measure_memory_curve as measure_memory_curve
    from dfqs.runtime.requests import Sampling as Sampling
    from dfqs.shards import merge as merge
    from dfqs.shards import plan_merge as plan_merge
    from dfqs.shards.repair import plan_repair as plan_repair
    from dfqs.shards.repair import repair as repair
    from dfqs.shards.split import plan_split as plan_split
    from dfqs.shards.split import split as split

# Where a name is a package's already (`pull`, `quantize`), the function says of what: `pull_model`.
_PLACES = {
    "ChatSession": "dfqs.runtime.chat",
    "DfqsError": "dfqs.errors",
    "Hub": "dfqs.pull",
    "LikelihoodSession": "dfqs.evaluate.likelihood",
    "PlanRequest": "dfqs.planning.plan",
    "Prompt": "dfqs.routing.prompts",
    "Report": "dfqs.report",
    "Sampling": "dfqs.runtime.requests",
    "Worker": "dfqs.runtime",
    "abort_merge": "dfqs.inplace",
    "capture_trace": "dfqs.routing.capture",
    "diff_traces": "dfqs.routing.coherence",
    "evaluate_model": "dfqs.report.evaluation",
    "has_errors": "dfqs.integrity",
    "hash_model": "dfqs.model.hashes",
    "measure_memory_curve": "dfqs.runtime.memory",
    "merge": "dfqs.shards",
    "merge_inplace": "dfqs.inplace",
    "open_model": "dfqs.model.files",
    "plan_inplace": "dfqs.inplace",
    "plan_merge": "dfqs.shards",
    "plan_model": "dfqs.planning.plan",
    "plan_pull": "dfqs.pull",
    "plan_repair": "dfqs.shards.repair",
    "plan_split": "dfqs.shards.split",
    "pull_model": "dfqs.pull:pull",
    "quantize_model": "dfqs.quantize.quantize:quantize",
    "repair": "dfqs.shards.repair",
    "resume_merge": "dfqs.inplace",
    "split": "dfqs.shards.split",
    "verify_against": "dfqs.integrity",
    "verify_structure": "dfqs.integrity",
}

__all__ = [*_PLACES]

if not TYPE_CHECKING:
    __getattr__ = names_on_demand(__name__, _PLACES)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
