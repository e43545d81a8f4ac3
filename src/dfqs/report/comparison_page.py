"""A comparison as one HTML file, like the report's."""

from dfqs.report.comparison import ComparisonDocument
from dfqs.report.comparison_facts import (
    HEADER,
    describe_outcome,
    describe_side,
    difference_lines,
    measure_rows,
    noise_words,
    reason_lines,
)
from dfqs.report.page import find_drawing, render_template


def render_comparison(document: ComparisonDocument) -> str:
    """The page."""
    drawing, no_plots = find_drawing()
    others = [
        {
            "id": f"other-{number}",
            "name": describe_side(against.other),
            "outcome": against.outcome.value,
            "rows": measure_rows(against),
            "reasons": reason_lines(against),
            "differences": difference_lines(against),
            "plot": drawing.plot_differences(against, f"differences-{number}") if drawing is not None else None,
        }
        for number, against in enumerate(document.others, start=1)
    ]
    names = [document.reference.name, *(against.other.name for against in document.others)]
    fields = {
        "title": f"Comparison: {' and '.join(names[:4])}",
        "outcome": document.outcome.value,
        "lead": describe_outcome(document)[:1].upper() + describe_outcome(document)[1:] + ".",
        "reference": describe_side(document.reference),
        "others": others,
        "header": HEADER,
        "noise": noise_words(document),
        "notices": document.notices,
        "no_plots": no_plots,
        "made": f"Made by dfqs {document.dfqs_version}, schema {document.schema_}.",
    }
    return render_template("compare.html", fields)
