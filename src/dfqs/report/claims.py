"""What the specification's card claims of its artifact, held against a file: confirmed, refuted, or neither."""

from collections.abc import Callable
from dataclasses import dataclass

from dfqs.model.description import ModelDescription
from dfqs.planning.envelope import ENVELOPE
from dfqs.report.conform_facts import Facts
from dfqs.report.conformance import ClaimVerdict, Standing
from dfqs.report.record import REFERENCE_PARAMETERS
from dfqs.units import format_bytes, format_count

NEAR = 0.02
"""Rounded figures of the card are held to be met within so much."""
CARD_BYTES = 61_600_000_000
CARD_SHA256 = "b049d1eb34c068f19ab007b33c22a7d758b578bf2b10d9276e79654f85d35047"
Found = tuple[Standing, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim, and what it is held against."""

    words: str
    section: str
    judge: Callable[[Facts], Found]


def judge_claims(facts: Facts) -> tuple[ClaimVerdict, ...]:
    """Every claim, in the card's order."""
    found = []
    for claim in CLAIMS:
        standing, figure = claim.judge(facts)
        found.append(ClaimVerdict(claim=claim.words, section=claim.section, standing=standing, figure=figure))
    return tuple(found)


def is_reference(description: ModelDescription | None) -> bool:
    """Whether a file has the reference model's geometry, as far as its parameters tell."""
    return description is not None and _near(description.parameters, REFERENCE_PARAMETERS)


def _near(value: float, claimed: float) -> bool:
    return abs(value - claimed) <= NEAR * claimed


def _of_reference(judge: Callable[[ModelDescription, Facts], Found]) -> Callable[[Facts], Found]:
    """A claim that only the reference model can confirm or refute."""

    def ask(facts: Facts) -> Found:
        described = facts.description
        if described is None:
            return Standing.NOT_TESTABLE, "the file cannot be read as a model"
        if not is_reference(described):
            count = format_count(described.parameters)
            return Standing.NOT_TESTABLE, f"this file is not the reference model: {count} parameters"
        return judge(described, facts)

    return ask


def _told(holds: bool, figure: str) -> Found:
    return (Standing.CONFIRMED if holds else Standing.REFUTED), figure


def _context(described: ModelDescription, facts: Facts) -> Found:
    trained = described.context_tokens
    if trained is not None and trained < 1_000_000:
        return _told(False, f"trained for {trained:,} tokens")
    return Standing.NOT_TESTABLE, f"trained for {trained or 0:,} tokens; no answer at 1M tokens is in the report"


def _sha256(described: ModelDescription, facts: Facts) -> Found:
    ours = facts.hashes.file_sha256 if facts.hashes is not None else None
    if ours is None:
        return Standing.NOT_TESTABLE, "the file was not hashed"
    return _told(ours == CARD_SHA256, ours)


def _envelope(component: str) -> Callable[[ModelDescription, Facts], Found]:
    def judge(_: ModelDescription, facts: Facts) -> Found:
        rows = facts.plan.envelope if facts.plan is not None else ()
        row = next((row for row in rows if (row.component, row.level) == (component, "minimum")), None)
        if row is None or row.needed_bytes is None or row.holds is None:
            return Standing.NOT_TESTABLE, "the runtime did not tell what it takes"
        return _told(row.holds, f"{format_bytes(row.needed_bytes)} for {row.needed_for} (computed)")

    return judge


def _storage(facts: Facts) -> Found:
    """By the card's own figures, whatever file is looked at."""
    minimum = next(row.minimum_bytes for row in ENVELOPE if row.component == "storage")
    return _told(minimum >= CARD_BYTES, f"the card's own file of {format_bytes(CARD_BYTES)} is larger")


def _never(why: str) -> Callable[[Facts], Found]:
    return lambda facts: (Standing.NOT_TESTABLE, why)


CLAIMS = (
    Claim(
        "284B total parameters",
        "5",
        _of_reference(lambda d, _: _told(_near(d.parameters, 284e9), f"{d.parameters:,}")),
    ),
    Claim(
        "13B active parameters",
        "5",
        _of_reference(lambda d, _: _told(abs(d.parameters_active - 13e9) <= 5e8, f"{d.parameters_active:,}")),
    ),
    Claim("61.6GB", "5", _of_reference(lambda d, _: _told(_near(d.file_bytes, CARD_BYTES), f"{d.file_bytes:,} bytes"))),
    Claim(f"SHA-256 {CARD_SHA256[:16]}...", "integrity", _of_reference(_sha256)),
    Claim("GGUF (single-file)", "5", _of_reference(lambda d, f: _told(f.files == 1, f"{f.files} files"))),
    Claim(
        "class IQ1_S-XL",
        "5",
        _of_reference(lambda d, _: _told(d.class_ == "IQ1_S-XL", d.class_ or f"closest {d.closest_class}")),
    ),
    Claim(
        "ultra-low-bit tier",
        "5",
        _of_reference(lambda d, _: _told(d.tier == "IQ1", f"{d.tier}, {d.main_bits_per_weight or 0:.2f} bits")),
    ),
    Claim("Mixture-of-Experts", "5", _of_reference(lambda d, _: _told(d.is_moe, f"{d.experts} experts a layer"))),
    Claim("long-context reasoning, 1M tokens: full", "6", _of_reference(_context)),
    Claim("80GB of RAM at least", "14", _of_reference(_envelope("RAM"))),
    Claim("22GB of GPU VRAM at least", "14", _of_reference(_envelope("GPU VRAM"))),
    Claim("60GB of storage are enough", "14", _storage),
    Claim("code generation: primary; translation: limited", "6", _never("support levels without a figure")),
    Claim("other deployments take 120GB to 300GB", "9", _never("no other deployment is looked at here")),
    Claim("1,552 downloads last month", "15", _never("the Hub's count, which no file shows")),
    Claim("20 kg of CO2 offset", "18", _never("nothing in a file or a run shows it")),
)
"""Figures of the card that a file, a run or arithmetic can speak to, and a few that none can."""
