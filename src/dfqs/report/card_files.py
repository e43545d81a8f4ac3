"""The files of a model card: README.md with its front matter, the citation, and results of benchmarks. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from dfqs import __version__
from dfqs.errors import UsageError
from dfqs.records import Document, Sha256, Text
from dfqs.report.card import CardFacts, render_card, unmeasured_sections
from dfqs.report.citation import Citation, cff
from dfqs.report.conform import judge
from dfqs.report.conform_facts import Facts
from dfqs.report.hub_card import FILE_MARK, benchmark_entries, card_data, join_card, license_words
from dfqs.report.usage import UsageLine

CITATION_NAME = "CITATION.cff"
UsageOf = Callable[[str, str, str], tuple[UsageLine, ...]]
"""Lines for every system, of a repository, a file in it, and its label, which may be empty."""


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What only a person can say."""

    repo: str | None = None
    """OWNER/NAME that it is published under."""
    author: str | None = None
    """Without one, the repository's owner."""
    base_model: str | None = None
    """OWNER/NAME; without one, what the header says."""
    model_index: bool = False


@dataclass(frozen=True, slots=True)
class CardFiles:
    """A card, ready to be written."""

    readme: str
    beside: Mapping[str, str]
    """Path from README.md's directory -> text."""
    metadata: Mapping[str, Any]
    """The front matter."""


class CardDocument(Document):
    """A model card, made of measured values alone."""

    schema_: Literal["dfqs.card/1"] = Field(default="dfqs.card/1", alias="schema")
    dfqs_version: str = __version__
    model: Text
    report: Text
    repo: Text | None
    """That it was written for."""
    file_sha256: Sha256 | None
    """Null of a set of shards."""
    content_sha256: Sha256
    metadata: dict[str, Any]
    """The front matter, as the Hub's programs read it."""
    not_measured: tuple[str, ...]
    """Sections that say so."""
    files: dict[str, Text]
    """README.md and what belongs beside it: path -> text."""
    bom: Text | None
    """Where the bill of materials was written to."""
    written: tuple[Text, ...]
    """Paths; none where the card was only printed."""


def make_card(facts: Facts, options: CardOptions, usage_of: UsageOf | None = None) -> CardFiles:
    """The card of a model by its report.

    Raises:
        UsageError: the report is not of this file, or the file is no model that can be read.
    """
    require_own_report(facts)
    model, origin, hashes = facts.description, facts.origin, facts.hashes
    assert model is not None and origin is not None and hashes is not None
    names = tuple(path.name for path in facts.paths)
    stated = license_words(origin)
    owner = options.repo.partition("/")[0] if options.repo is not None else None
    author = options.author or owner
    citation = Citation(
        author=author or "",
        title=facts.report.artifact.name,
        date=facts.report.measured_at,
        url=f"https://huggingface.co/{options.repo}" if options.repo is not None else None,
        sha256=hashes.file_sha256,
    )
    usage = usage_of(options.repo, names[0], "") if usage_of is not None and options.repo is not None else ()
    card = CardFacts(
        facts=facts,
        model=model,
        conformance=judge(facts),
        file_names=names,
        repo=options.repo,
        license=None if stated is None else stated.name or stated.id,
        citation=citation if author else None,
        usage=usage,
    )
    data = card_data(facts.report, model, origin, base_model=options.base_model, model_index=options.model_index)
    beside = benchmark_entries(facts.report, options.repo)
    if author:
        beside[CITATION_NAME] = f"{FILE_MARK}\n{cff(citation)}"
    return CardFiles(join_card(data, render_card(card)), beside, data.to_dict())


def require_own_report(facts: Facts) -> None:
    """A card shows no other file's numbers.

    Raises:
        UsageError: the report is not of this file, or the file is no model that can be read.
    """
    if facts.description is None or facts.hashes is None:
        raise UsageError(f"{facts.model} cannot be read as a model; dfqs verify tells what is wrong with it")
    if facts.report.artifact.kind == "endpoint":
        raise UsageError(
            f"{facts.report_place} is of an endpoint, whose file was not seen; evaluate the file: dfqs eval "
            f"{facts.model} -o DIRECTORY"
        )
    # Reports before 0.2 have the file's own hash alone.
    same_bytes = facts.hashes.file_sha256 is not None and facts.report.artifact.file_sha256 == facts.hashes.file_sha256
    if not facts.same_file and not (facts.same_file is None and same_bytes):
        why = "content hashes differ" if facts.same_file is False else "no hash of it is this file's"
        raise UsageError(
            f"nothing shows that {facts.report_place} is of {facts.model} ({why}); evaluate this file: dfqs eval "
            f"{facts.model} -o DIRECTORY"
        )


def card_document(facts: Facts, files: CardFiles, **where: Any) -> CardDocument:
    """What the verb prints.

    Args:
        where: `repo`, `bom`, `written`.
    """
    hashes = facts.hashes
    assert hashes is not None
    return CardDocument(
        model=facts.model,
        report=facts.report_place,
        file_sha256=hashes.file_sha256,
        content_sha256=hashes.content_sha256,
        metadata=dict(files.metadata),
        not_measured=unmeasured_sections(files.readme),
        files={"README.md": files.readme, **files.beside},
        **where,
    )
