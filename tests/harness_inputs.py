"""What the harnesses' tests ask: a task of our own with local data, and what a harness hands to a model."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TASK = "dfqs_local"


@dataclass(frozen=True)
class Request:
    """As `lm_eval.api.instance.Instance` hands it over."""

    args: tuple[Any, ...]


@dataclass
class Cache:
    """As `lm_eval.api.model.CacheHook` takes it."""

    kept: list[tuple[str, tuple[Any, ...], Any]] = field(default_factory=list)

    def add_partial(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        self.kept.append((name, args, result))


def items(count: int, shots: int = 6) -> list[dict[str, Any]]:
    """Questions with four choices each; they begin alike, as few-shot prompts do."""
    draw = random.Random(11)
    opening = "The following are questions about numbers and words, each with one right answer.\n\n"
    examples = "".join(f"Question: What is {n} plus {n + 1}?\nAnswer: {2 * n + 1}\n\n" for n in range(3, 3 + shots))
    found = []
    for _ in range(count):
        first, second = draw.randrange(2, 60), draw.randrange(2, 60)
        right = first + second
        choices = [f" {right}", f" {right + 1}", f" {right - 10}", " the number of words in this sentence"]
        label = draw.randrange(4)
        choices[0], choices[label] = choices[label], choices[0]
        question = f"{opening}{examples}Question: What is {first} plus {second}?\nAnswer:"
        found.append({"question": question, "choices": choices, "label": label})
    return found


def write_task(directory: Path, count: int) -> list[dict[str, Any]]:
    """A task of lm-evaluation-harness with its data beside it; returns the items."""
    found = items(count, shots=1)
    data = directory / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in found))
    (directory / f"{TASK}.yaml").write_text(
        f"""task: {TASK}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
"""
    )
    return found


def samples(out: Path) -> list[dict[str, Any]]:
    """What the harness logged of each item, in the items' order."""
    (path,) = out.rglob("samples_*.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(found, key=lambda sample: int(sample["doc_id"]))
