"""What a model card tells the Hub's programs: its front matter and entries of `.eval_results`, in huggingface_hub's own
classes. Nothing here opens a connection.

Sources: the Hub's documentation, pages "Model cards", "Licenses" and "Evaluation results".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._fixes import yaml_dump
from huggingface_hub.utils._validators import validate_repo_id

from dfqs.errors import UsageError, printable
from dfqs.evaluate.humaneval import PROBLEMS
from dfqs.model.description import ModelDescription
from dfqs.model.origin import ModelOrigin
from dfqs.report.schema import Report
from dfqs.shards.hub_address import parse_hub_address

LICENSES_FILE = Path(__file__).with_name("licenses.txt")
"""Identifiers that the Hub takes; another licence is `other`, with a name."""
FILE_MARK = "# Written by dfqs card."
"""First line of what is written beside a card, so that it may be written again."""
HUMANEVAL_DATASET = "openai/openai_humaneval"
HUMANEVAL_TASK = "openai_humaneval"
HUMANEVAL_SET = "0eeb698e20ee1fa18b93d0461906e6edec9ee46033a67a16c752662d083217d2"
"""`set_sha256` of HumanEval, as version 1 of dfqs asks it."""
_HUMANEVAL_GROUP = "HumanEval"
"""Where its problems are counted in a report (`dfqs.evaluate.code`)."""
_FULL_BITS = 15.5
"""A weight, of what is not quantized."""
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_LINK = re.compile(r"https://[A-Za-z0-9./_~%+-]{4,300}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(T[0-9:.+Z-]{1,30})?")
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class LicenseWords:
    """A licence in the Hub's form."""

    id: str
    name: str | None = None
    """Where the id is `other`."""
    link: str | None = None


@cache
def known_licenses() -> frozenset[str]:
    """Identifiers that the Hub takes."""
    return frozenset(LICENSES_FILE.read_text(encoding="utf-8").split())


def is_repo_id(name: str) -> bool:
    """Whether it is OWNER/NAME by the Hub's rules."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def checked_repo(name: str) -> str:
    """OWNER/NAME out of what a user gave.

    Raises:
        UsageError: it is none.
    """
    address = parse_hub_address(name)
    if not is_repo_id(address.repo) or address.pattern is not None or address.revision != "main":
        raise UsageError(f"'{printable(name)}' is no repository's name; write OWNER/NAME")
    return address.repo


def license_words(origin: ModelOrigin) -> LicenseWords | None:
    """The licence that the header states; None: it states none."""
    stated = (origin.license or origin.license_name or "").strip()
    if not stated:
        return None
    if stated.lower() in known_licenses():
        return LicenseWords(stated.lower())
    name = re.sub(r"[^a-z0-9.]+", "-", (origin.license_name or stated).lower()[:200]).strip("-.")
    link = origin.license_link if origin.license_link and _LINK.fullmatch(origin.license_link) else None
    return LicenseWords("other", name[:80] or "unnamed", link)


def base_models(origin: ModelOrigin) -> tuple[str, ...]:
    """The repository that the header names as what it was converted from; without one, that model's own parents."""
    return _repos((origin.source,)) if origin.source and _repos((origin.source,)) else _repos(origin.base_models)


def is_quantized_from(model: ModelDescription, origin: ModelOrigin, base_model: str | None) -> bool:
    """Whether it is known to be a quantization of its base, and not of something trained from that."""
    told = base_model is not None or bool(_repos((origin.source,) if origin.source else ()))
    return told and model.bits_per_weight is not None and model.bits_per_weight < _FULL_BITS


def _repos(addresses: Sequence[str]) -> tuple[str, ...]:
    found = []
    for address in addresses:
        if len(address.split()) != 1 or not address.isprintable():
            continue
        try:
            repo = parse_hub_address(address).repo
        except UsageError:
            continue
        if is_repo_id(repo):
            found.append(repo)
    return tuple(dict.fromkeys(found))


def card_data(
    report: Report,
    model: ModelDescription,
    origin: ModelOrigin,
    *,
    base_model: str | None = None,
    model_index: bool = False,
) -> ModelCardData:
    """The front matter. Every word from the file is one of a known list, or of a form that cannot be anything else.

    Args:
        base_model: goes before what the header says.
        model_index: scores in the Hub's earlier form too.
    """
    stated = license_words(origin)
    bases = (base_model,) if base_model is not None else base_models(origin)
    languages = [word for word in origin.languages[:50] if _LANGUAGE.fullmatch(word)]
    scores = _scores(report) if model_index else []
    data = ModelCardData(
        license=stated.id if stated else None,
        license_name=stated.name if stated else None,
        license_link=stated.link if stated else None,
        base_model=bases[0] if len(bases) == 1 else list(bases) or None,
        language=languages or None,
        pipeline_tag="text-generation",
        tags=_tags(model),
        model_name=printable(report.artifact.name, 96) if scores else None,
        eval_results=scores or None,
    )
    if is_quantized_from(model, origin, base_model):
        data["base_model_relation"] = "quantized"
    return data


def join_card(data: ModelCardData, text: str) -> str:
    """Front matter and text as one README, read back by huggingface_hub's own reader.

    Raises:
        ValueError: it is not read as it was written; a fault of ours.
    """
    content = f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n{text}"
    card = ModelCard(content)
    if card.data.to_dict() != data.to_dict():
        raise ValueError("front matter that is not read as it was written")
    return content


def benchmark_entries(report: Report, repo: str | None = None) -> dict[str, str]:
    """Files of `.eval_results` by their path: a benchmark of the Hub's that was run in full, each in one.

    Nothing but HumanEval comes into question: all other sets are our own.
    """
    right = humaneval_right(report)
    if right is None:
        return {}
    page = f"https://huggingface.co/{repo}" if repo is not None else None
    entry = EvalResultEntry(
        dataset_id=HUMANEVAL_DATASET,
        task_id=HUMANEVAL_TASK,
        value=round(100 * right / PROBLEMS, 2),
        date=report.measured_at if _DATE.fullmatch(report.measured_at) else None,
        source_url=page,
        source_name="Model card" if page is not None else None,
        notes=f"pass@1, {report.conditions.score.sampling}, {right} of {PROBLEMS} problems, one attempt each",
    )
    text = yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return {".eval_results/humaneval.yaml": f"{FILE_MARK}\n{text}"}


def humaneval_right(report: Report) -> int | None:
    """How many of HumanEval's problems were solved, where every one was asked and judged."""
    detail, score = report.details.code, report.conditions.score
    asked = score.items.get("humaneval"), score.prompt_sets.get("humaneval")
    if detail is None or asked != (PROBLEMS, HUMANEVAL_SET):
        return None
    right, total = detail.groups.get(_HUMANEVAL_GROUP, (0, 0))
    return right if total == PROBLEMS else None


def _tags(model: ModelDescription) -> list[str]:
    words = ["gguf", "dfqs", *(["moe"] if model.is_moe else []), *(["conversational"] if model.chat_template else [])]
    found = (model.class_, model.architecture)
    return [*words, *(word.lower() for word in found if word is not None and _TAG.fullmatch(word.lower()))]


def _scores(report: Report) -> list[EvalResult]:
    """Every score that was measured, as `model-index` has them."""
    sets, details = report.conditions.score.prompt_sets, report.details
    found: list[EvalResult] = []
    for name, metric, stage, detail in (
        ("reasoning", "accuracy", "reasoning_score", details.reasoning),
        ("code", "pass@1", "code_score", details.code),
    ):
        if detail is not None:
            found.append(_score(f"dfqs-{name}", metric, stage, detail.right / detail.n, detail.n, sets.get(name)))
    context = details.context
    if context is not None:
        rows: Sequence[tuple[int, int, int]] = [*zip(context.lengths_tokens, context.right, context.n, strict=True)]
        for tokens, right, n in rows:
            label = f"dfqs-context-{tokens}"
            found.append(_score(label, "accuracy", f"score at {tokens} tokens", right / n, n, sets.get("context")))
    return found


def _score(set_name: str, metric: str, title: str, value: float, n: int, digest: str | None) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=set_name,
        dataset_name=set_name,
        dataset_revision=digest,
        metric_type=metric,
        metric_name=title,
        metric_value=round(value, 6),
        metric_args={"n": n},
    )
