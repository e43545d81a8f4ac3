"""What a comparison says, as rows of plain words, for a terminal and a page."""

from dfqs.report.comparison import Against, Compared, ComparisonDocument, Measure, Outcome
from dfqs.report.facts import Row
from dfqs.report.paired import POWER

HEADER = ("measure", "outcome", "reference", "other", "difference", "95 % interval", "p", "could have been seen")


def measure_rows(against: Against) -> list[Row]:
    """A row a measure, in the columns of `HEADER`."""
    return [
        (
            measure.name,
            measure.outcome.value,
            _value(measure, measure.reference),
            _value(measure, measure.value),
            _difference(measure, measure.difference),
            " to ".join(_difference(measure, end) for end in measure.interval) if measure.interval else "",
            _p(measure),
            _resolution(measure),
        )
        for measure in against.measures
    ]


def reason_lines(against: Against) -> list[str]:
    """Why a measure has no better outcome, a line each."""
    return [f"{measure.name}: {measure.reason}" for measure in against.measures if measure.reason]


def difference_lines(against: Against) -> list[str]:
    """Every condition that differs, and what for; those of speed only where it was not left out."""
    scores = [f"scores: {found}" for found in against.score_differences]
    own = [found for found in against.speed_differences if found not in against.score_differences]
    if all(measure.name != "cpu_tokens_per_sec" for measure in against.measures):
        own = []
    return [*scores, *(f"speed: {found}" for found in own)]


def describe_side(side: Compared) -> str:
    """`model (results/a, content 0123456789ab)`."""
    content = f", content {side.content_sha256[:12]}" if side.content_sha256 else ""
    alone = "" if side.answers else ", without its answers"
    return f"{side.name} ({side.place}{content}{alone})"


def describe_outcome(document: ComparisonDocument) -> str:
    """The whole in a sentence."""
    words = {
        Outcome.WORSE: "worse: at least one measure fell by more than chance explains",
        Outcome.REFUSED: "refused: measured under other conditions; --anyway compares them all the same",
        Outcome.NOT_MEASURED: "not measured: a number that one side has is missing from the other, or there is none",
        Outcome.BETTER: "better: at least one measure rose by more than chance explains, and none fell",
    }
    return words.get(document.outcome, "no difference shown; what could have been seen stands beside each measure")


def noise_words(document: ComparisonDocument) -> str:
    """The noise floor, where it is known."""
    floor = document.noise_floor_nats
    if floor is None:
        return "The noise floor of the reference (how far it is from itself under other numerics) was not measured."
    return f"Noise floor of the reference: {floor:.4f} nats a token; a divergence below it is not resolvable."


def _value(measure: Measure, value: float | None) -> str:
    if value is None:
        return "null"
    if measure.name == "failure_boundary_tokens":
        return f"{value:,.0f}"
    return f"{value:.2f}" if measure.name == "cpu_tokens_per_sec" else f"{value:.3f}"


def _difference(measure: Measure, value: float | None) -> str:
    if value is None:
        return ""
    if measure.name == "failure_boundary_tokens":
        return f"{value:+,.0f}"
    return f"{value:+.1%}" if measure.name == "cpu_tokens_per_sec" else f"{value:+.3f}"


def _p(measure: Measure) -> str:
    if measure.p_value is None:
        return ""
    adjusted = measure.p_adjusted
    return f"{measure.p_value:.3g}" + (f" (Holm {adjusted:.3g})" if adjusted is not None else "")


def _resolution(measure: Measure) -> str:
    words = []
    if measure.smallest_significant is not None:
        words.append(f"{_difference(measure, measure.smallest_significant).lstrip('+')} at least")
    if measure.noise_floor is not None:
        words.append(f"noise floor {measure.noise_floor:.3f}")
    if measure.detectable is not None:
        words.append(f"{measure.detectable:.3f} with power {POWER}")
    if measure.n is not None and measure.p_value is not None and not words:
        words.append("nothing: too few questions")
    return ", ".join(words)
