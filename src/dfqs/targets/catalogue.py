"""All targets, in the order of the model card, clients after runtimes."""

import re
from functools import cache

from dfqs.errors import UsageError, printable
from dfqs.report.usage import UsageLine
from dfqs.targets.clients import Inspect, LmEval, OpenAISDK, OpenWebUI
from dfqs.targets.contract import Hub, Target
from dfqs.targets.docker_model_runner import DockerModelRunner
from dfqs.targets.hermes import Hermes
from dfqs.targets.jan import Jan
from dfqs.targets.lemonade import Lemonade
from dfqs.targets.llama_cpp import LlamaCpp
from dfqs.targets.llama_cpp_python import LlamaCppPython
from dfqs.targets.lm_studio import LMStudio
from dfqs.targets.notebooks import Colab, Kaggle
from dfqs.targets.ollama import Ollama
from dfqs.targets.pi import Pi
from dfqs.targets.unsloth import UnslothStudio
from dfqs.targets.vllm import VLLM

_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LABEL = re.compile(r"[\w.-]*", re.ASCII)


@cache
def all_targets() -> tuple[Target, ...]:
    """Every system that `dfqs deploy` knows."""
    card = (LlamaCppPython, Colab, Kaggle, LlamaCpp, LMStudio, Jan, VLLM, Ollama, UnslothStudio)
    more = (Pi, Hermes, DockerModelRunner, Lemonade, OpenAISDK, OpenWebUI, LmEval, Inspect)
    return tuple(kind() for kind in (*card, *more))


def find_target(name: str) -> Target:
    """A target by its name.

    Raises:
        UsageError: there is none; lists them.
    """
    wanted = name.lower()
    for target in all_targets():
        if wanted in (target.name, target.title.lower()):
            return target
    known = ", ".join(target.name for target in all_targets())
    raise UsageError(f"no target of the name '{printable(name)}'; there is {known}")


def usage_lines(repo: str, file: str, label: str) -> tuple[UsageLine, ...]:
    """How a published model is used with every system, as model cards print it.

    Args:
        repo: OWNER/NAME on the Hub.
        file: the GGUF file in it.
        label: its quantization, as the Hub tells files of a repository apart (IQ1_S); may be empty.

    Raises:
        UsageError: `repo` or `label` has no such form, and would be read as something else in a shell.
    """
    if not _REPO.fullmatch(repo):
        raise UsageError(f"'{printable(repo)}' is no OWNER/NAME of the Hub")
    if not _LABEL.fullmatch(label):
        raise UsageError(f"'{printable(label)}' is no label of a quantization, such as IQ1_S")
    hub = Hub(repo, file, label)
    return tuple(line for target in all_targets() for line in target.hub_usage(hub))
