"""A model card out of what was measured: the specification's sections by its numbers, each with figures or with the
words "not measured". Pure.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

from dfqs import __version__
from dfqs.model.classes import TIERS
from dfqs.model.description import ModelDescription
from dfqs.model.snapshot import snapshot_rows
from dfqs.report.card_measured import behaviour, capabilities, energy, envelope, evaluation, requirements, validation
from dfqs.report.citation import SPECIFICATION_APA, SPECIFICATION_BIBTEX, Citation, apa, bibtex
from dfqs.report.conform_facts import Facts
from dfqs.report.conformance import ConformanceDocument
from dfqs.report.facts import Code, Part, Row, metric_rows
from dfqs.report.lead import describe_lead
from dfqs.report.markup import code_block, code_span, escape_words, table
from dfqs.report.usage import UsageLine, shell_word
from dfqs.units import format_bytes, format_count

CARD_MARK = "<!-- Written by dfqs card"
"""By which a card of ours is known, so that it may be written again."""
NOT_MEASURED = "Not measured"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything that a card is made of."""

    facts: Facts
    model: ModelDescription
    conformance: ConformanceDocument
    file_names: tuple[str, ...]
    """As they stand in the repository."""
    repo: str | None = None
    license: str | None = None
    """As the front matter has it."""
    citation: Citation | None = None
    """None: nobody said whose file it is."""
    usage: tuple[UsageLine, ...] = ()


def render_card(card: CardFacts) -> str:
    """The text below the front matter. Words from outside are escaped."""
    report = card.facts.report
    mark = f"{CARD_MARK} {__version__} from a report; what is not in it was not measured. -->"
    parts = [
        mark,
        f"# {escape_words(report.artifact.name, 120)}",
        _lead(card.model),
        escape_words(describe_lead(report), 1000),
        escape_words(report.statement, 1000),
        table(("metric", "measured", ""), metric_rows(report)),
        *(f"## {title}\n\n{write(card)}" for title, write in SECTIONS),
        "Sections 1, 2, 7 and 19 of the [DFQS specification](https://doi.org/10.57967/hf/8853) hold nothing that could "
        "be measured, and are left out.",
    ]
    return "\n\n".join(parts) + "\n"


def _lead(model: ModelDescription) -> str:
    kind = "MoE" if model.is_moe else "dense"
    words = [
        f"{format_count(model.parameters)} {kind}",
        f"{format_count(model.parameters_active)} active",
        f"{format_bytes(model.file_bytes)} GGUF",
        *([f"{model.bits_per_weight:.2f} bits per weight"] if model.bits_per_weight is not None else []),
    ]
    return " · ".join(words)


def _integrity(card: CardFacts) -> str:
    facts = card.facts
    hashes, recorded = facts.hashes, facts.recorded
    names: list[Part] = []
    for name in card.file_names:
        names += [", ", Code(name)] if names else [Code(name)]
    rows: list[Row] = [("File", names)]
    rows.append(("Size", f"{card.model.file_bytes:,} bytes"))
    if hashes is not None:
        if hashes.file_sha256 is not None:
            rows.append(("SHA-256", Code(hashes.file_sha256)))
        rows.append(("Content SHA-256", [Code(hashes.content_sha256), " (tensors alone, whatever the layout)"]))
    if recorded is not None:
        agrees = "the file agrees with it" if not facts.manifest_findings else "the file does not agree with it"
        rows.append(("Manifest", f"{recorded.created_at}, {recorded.tool}; {agrees}"))
    name = card.file_names[0]
    check = code_block(f"dfqs verify {shell_word(name)} --manifest {shell_word(name + '.manifest.json')}", "bash")
    return f"{table(('Property', 'Value'), rows)}\n\n{check}" if recorded is not None else table(("", ""), rows)


def _class(card: CardFacts) -> str:
    model = card.model
    rows: list[Row] = []
    for role, size in model.roles.items():
        types = ", ".join(
            f"{type_} {count / max(sum(size.types.values()), 1):.0%}" for type_, count in size.types.items()
        )
        bits = f"{size.bits_per_weight:.2f}" if size.bits_per_weight is not None else ""
        rows.append((role.replace("_", " "), f"{size.tensors:,}", format_count(size.parameters), bits, types))
    words = [f"Every tensor agrees with the class {code_span(model.class_)}."] if model.class_ is not None else []
    if model.class_ is None and model.closest_class is not None:
        words.append(f"No class fits every tensor; the closest is {code_span(model.closest_class)}.")
        words += [f"- {escape_words(line)}" for line in model.class_deviations[:8]]
    return "\n\n".join(
        [table(("role", "tensors", "parameters", "bits per weight", "types"), rows), "\n".join(words)]
    ).strip()


def _snapshot(card: CardFacts) -> str:
    rows: list[Row] = list(snapshot_rows(card.model))
    license_ = card.license or "not stated by the file"
    return table(("Property", "Value"), [*rows, ("License", license_)])


def _tier(card: CardFacts) -> str:
    lines = [f"- {'**' if tier.name == card.model.tier else ''}{tier.title} ({tier.name})" for tier in TIERS]
    shown = [f"{line}**, this file" if "**" in line else line for line in lines]
    if card.model.tier is None:
        return f"{NOT_MEASURED}: nothing of this file has a number of bits per weight."
    bits = card.model.main_bits_per_weight
    where = (
        f"By the bits per weight of its blocks' matrices ({bits:.2f}):" if bits is not None else "By bits per weight:"
    )
    return "\n\n".join([where, "\n".join(shown)])


def _size(card: CardFacts) -> str:
    return requirements(card.conformance, "9")


def _made(card: CardFacts) -> str:
    recorded = card.facts.recorded
    origin = recorded.provenance if recorded is not None else None
    if recorded is None or origin is None or not (origin.repo or origin.shards):
        return "Not recorded: no manifest tells what this file was made of."
    said: list[str] = []
    if origin.repo:
        commit = f" at commit {code_span(origin.commit)}" if origin.commit else ""
        said.append(f"Fetched from {escape_words(origin.repo)}{commit}.")
    if not origin.shards:
        return "\n\n".join(said)
    rows: list[Row] = [
        (str(number), Code(file.name), f"{file.bytes:,}", Code(file.sha256) if file.sha256 else "not recorded")
        for number, file in enumerate(origin.shards, start=1)
    ]
    return "\n\n".join([*said, "Made of:", table(("", "file", "bytes", "SHA-256"), rows)])


def _deployment(card: CardFacts) -> str:
    if not card.usage:
        return "No repository was named when this card was written (`dfqs card --repo OWNER/NAME`)."
    said: list[str] = []
    for name, lines in groupby(card.usage, key=lambda use: use.title.partition(": ")[0]):
        said.append(f"### {escape_words(name)}")
        for use in lines:
            heading = use.title.partition(": ")[2]
            said += [f"{escape_words(heading)}:"] if heading else []
            said.append(code_block(use.text, use.language))
    return "\n\n".join(said)


def _citation(card: CardFacts) -> str:
    said = []
    if card.citation is not None:
        said += ["This file (`CITATION.cff` beside it says the same):", code_block(bibtex(card.citation), "bibtex")]
        said += [f"APA: {escape_words(apa(card.citation), 600)} {card.citation.url or ''}".rstrip()]
    else:
        said += ["Whose file this is was not said when the card was written (`--repo` or `--author`)."]
    return "\n\n".join(
        [*said, "The specification:", code_block(SPECIFICATION_BIBTEX, "bibtex"), f"APA: {SPECIFICATION_APA}"]
    )


def _adoption(_: CardFacts) -> str:
    return f"{NOT_MEASURED}: downloads are the Hub's count, which no file shows."


def _section(number: str) -> Callable[[CardFacts], str]:
    return lambda card: requirements(card.conformance, number)


SECTIONS: tuple[tuple[str, Callable[[CardFacts], str]], ...] = (
    ("Artifact integrity", _integrity),
    ("3. Normative requirements", _section("3")),
    ("4. Deployment class", _class),
    ("5. Spec snapshot", _snapshot),
    ("6. Behavioral capabilities", lambda card: capabilities(card.facts.report)),
    ("8. Position", _tier),
    ("9. Size", _size),
    ("10. Behavioral profile", lambda card: behaviour(card.conformance, card.facts.report)),
    ("11. Evaluation", lambda card: evaluation(card.facts.report)),
    ("12. How the file was made", _made),
    ("13. Deployment", _deployment),
    ("14. Hardware envelope", lambda card: envelope(card.facts)),
    ("15. Validation status", lambda card: validation(card.conformance)),
    ("16. Adoption", _adoption),
    ("17. Citation", _citation),
    ("18. Energy", lambda card: energy(card.facts.report)),
)
"""By the specification's own numbers; the second of its sections that is numbered 15 is the 16th."""


def unmeasured_sections(text: str) -> tuple[str, ...]:
    """Titles of a card's sections that say that they were not measured."""
    return tuple(title for title, body in _bodies(text) if body.startswith(NOT_MEASURED))


def _bodies(text: str) -> Iterable[tuple[str, str]]:
    for part in text.split("\n\n## ")[1:]:
        title, _, body = part.partition("\n\n")
        yield title, body
