"""What a page shows beside the report's numbers: every question with its answer, and what other verbs found out."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqs.errors import DfqsError, UsageError
from dfqs.evaluate.conditions import ScoreConditions
from dfqs.evaluate.context import KINDS, GrowingDocument
from dfqs.evaluate.items import item_sets
from dfqs.evaluate.prompts import ContextVocabulary, PromptSet, read_context_set
from dfqs.evaluate.scores import ScoredItem
from dfqs.evaluate.stages import CONTEXT, LIKELIHOOD, REASONING
from dfqs.evaluate.suites import STANDARD
from dfqs.planning.document import PlanDocument
from dfqs.quantize.ladder import LadderDocument
from dfqs.records import RECORD_LIMIT_BYTES, Document, parse_json, parse_record, read_bounded
from dfqs.report.reading import Lines, Reported, scored_items
from dfqs.routing.determinism import RouteCheck
from dfqs.routing.stats import RouteStats

COMPANIONS: dict[str, type[Document]] = {
    "dfqs.plan/1": PlanDocument,
    "dfqs.route-check/1": RouteCheck,
    "dfqs.route-stats/1": RouteStats,
    "dfqs.ladder/1": LadderDocument,
}
"""Documents of other verbs that a page shows, where they lie beside the report."""
FILES_LIMIT = 200
"""Looked at beside a report."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What stands behind a report."""

    items: tuple[ScoredItem, ...] = ()
    prompts: Mapping[tuple[str, str], str] | None = None
    """By stage and item. Only of sets that are here as they were when they were asked."""
    companions: tuple[Document, ...] = ()
    """Of each form at most one."""


def gather_evidence(reported: Reported, directories: Iterable[Path] = (), files: Sequence[Path] = ()) -> Evidence:
    """The answers, and the documents of other verbs that lie in the directories.

    Args:
        files: documents that were named; they go before those that are found.

    Raises:
        UsageError: a named file is none of these documents.
        FormatError: it cannot be read.
    """
    return Evidence(
        tuple(reported.items.values()),
        _prompts_of(reported.report.conditions.score, reported.lines or {}),
        _companions(directories, files),
    )


def read_companion(path: Path, forms: Mapping[str, type[Document]] = COMPANIONS) -> Document | None:
    """The document in a file; None where it is of none of the forms.

    Raises:
        FormatError, UsageError: it cannot be read.
    """
    data = read_bounded(path, RECORD_LIMIT_BYTES)
    found = parse_json(data, path=path)
    form = forms.get(found.get("schema", "")) if isinstance(found, dict) else None
    return None if form is None else parse_record(data, form, path=path)


def find_documents(
    directories: Iterable[Path], files: Sequence[Path], forms: Mapping[str, type[Document]]
) -> list[tuple[Path, Document]]:
    """Documents that were named, then those that lie in the directories.

    Raises:
        UsageError: a named file is of none of the forms.
        FormatError: it cannot be read.
    """
    kept: list[tuple[Path, Document]] = []
    for path in files:
        named = read_companion(path, forms)
        if named is None:
            raise UsageError(f"{path} is none of the documents that are used here: {', '.join(forms)}")
        kept.append((path, named))
    for directory in directories:
        for path in sorted(directory.glob("*.json"))[:FILES_LIMIT]:
            # Whatever else lies there is not ours to complain about.
            with contextlib.suppress(DfqsError):
                if (found := read_companion(path, forms)) is not None:
                    kept.append((path, found))
    return kept


def _companions(directories: Iterable[Path], files: Sequence[Path]) -> tuple[Document, ...]:
    kept: dict[type[Document], Document] = {}
    for _, document in find_documents(directories, files, COMPANIONS):
        kept.setdefault(type(document), document)
    return tuple(kept.values())


def _prompts_of(score: ScoreConditions, lines: Lines) -> dict[tuple[str, str], str]:
    """What was asked, by stage and item."""
    sets = score.prompt_sets
    found: dict[tuple[str, str], str] = {}
    for each in item_sets(STANDARD):
        if _is_here(sets, each.set_):
            prompts = {item.id: each.prompt(item, score.tools == "template") for item in each.items}
            stages = (REASONING, LIKELIHOOD) if each.stage == REASONING else (each.stage,)
            found |= {(stage, name): prompt for stage in stages for name, prompt in prompts.items()}
    if _is_here(sets, context := read_context_set()):
        for item in scored_items(lines).values():
            asked = _context_question(context.items[0], item.item) if item.stage == CONTEXT else None
            if asked is not None:
                found[CONTEXT, item.item] = asked
    return found


def _context_question(vocabulary: ContextVocabulary, key: str) -> str | None:
    """What was asked under the key of a stored answer; None: it is the key of none."""
    length, *place = key.split("/")
    if len(place) != 3 or place[1] not in KINDS:
        return None
    document, kind, block = place
    if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in (document, block)):
        return None
    question = GrowingDocument(vocabulary, int(document)).question(kind, int(block), 1)
    return f"[a document of notes, {length} tokens with this question and its answer]\n\n{question.text}"


def _is_here(sets: Mapping[str, str], set_: PromptSet[Any]) -> bool:
    return sets.get(set_.name) == set_.sha256
