"""Routing findings as tables for people."""

from dfqs.cli.output import column_table
from dfqs.cli.tables import Table
from dfqs.routing.determinism import FirstDivergence, RouteCheck
from dfqs.routing.forecast import MarginReport
from dfqs.routing.pressure import PressureReport
from dfqs.units import format_number_of


def share(value: float | None, digits: int = 2) -> str:
    """`0.98765` -> `98.77 %`; a share that only rounds to 100 says so."""
    if value is None:
        return "-"
    text = f"{100 * value:.{digits}f}"
    if value < 1 and text == f"{100:.{digits}f}":
        return f"<{text} %"
    return f"{text} %"


def percent(value: float | None) -> str:
    """The same without its sign, for columns that say so."""
    return share(value).removesuffix(" %")


def same_or_differ(value: bool | None) -> str:
    return "-" if value is None else ("same" if value else "differ")


def place(first: FirstDivergence | None) -> str:
    return "-" if first is None else f"{first.token}, layer {first.layer}"


def plain_table(title: str, *columns: str) -> Table:
    """Words in the first column, numbers in the others."""
    return column_table(*columns, words=columns[:1], title=title)


def matrix_table(check: RouteCheck) -> Table:
    table = plain_table(
        f"Against 1 thread, one batch, ubatch 512, flash attention off, f16 caches ({check.matrix_tokens} tokens)",
        "Condition",
        "bits",
        "experts %",
        "worst %",
        "from token",
        "argmax %",
    )
    for row in check.matrix:
        if row.refused is not None:
            table.add_row(row.condition, "refused", "", "", "", "")
            continue
        table.add_row(
            row.condition,
            same_or_differ(row.logits_identical),
            percent(row.same_set_share),
            percent(row.lowest_layer_share),
            place(row.first_divergence),
            percent(row.argmax_share),
        )
    return table


def load_table(check: RouteCheck) -> Table:
    load = check.load
    slots = format_number_of(load.slots, "slot")
    table = plain_table(
        f"Standard load, version {load.version}, profile {load.profile}: four requests at once ({slots}), each against "
        "itself alone",
        "Request",
        "prompt",
        "compared",
        "answer",
        "bits",
        "experts %",
        "from token",
    )
    for row in load.requests:
        table.add_row(
            row.request,
            str(row.prompt_tokens),
            str(row.compared_tokens),
            same_or_differ(row.same_answer),
            same_or_differ(row.logits_identical),
            percent(row.same_set_share),
            place(row.first_divergence),
        )
    return table


def verdict(check: RouteCheck) -> str:
    """One sentence: does the clause hold, and what to do if not."""
    load = f"the {check.load.profile} load profile" + (" (requests shortened)" if check.load.shortened else "")
    if check.holds:
        return f"Routing remains deterministic under {load}, on this machine and build."
    different = sum(not row.routing_identical or not row.same_answer for row in check.load.requests)
    text = (
        f"Routing does NOT remain deterministic under {load}: {different} of "
        f"{len(check.load.requests)} requests were routed or answered differently beside the others than alone."
    )
    if check.load.profile == "standard":
        text += " Settings under which it does: route check --profile deterministic."
    return text


def margin_table(report: MarginReport) -> Table:
    table = plain_table(
        "Flips forecast from margins (noise fitted on one text, tested on another)",
        "Perturbation",
        "forecast",
        "observed",
        "forecast / observed",
        "flips",
    )
    for row in report.forecasts:
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.perturbation, share(row.predicted), share(row.observed), ratio, f"{row.observed_flips:,}")
    for name in report.refused:
        table.add_row(name, "refused", "", "", "")
    return table


def pressure_table(report: PressureReport) -> Table:
    change = ", ".join(f"{key} {value}" for key, value in report.perturbed.items())
    table = plain_table(
        f"A probe of {report.probe_tokens} tokens behind a growing document; other settings: {change}; entropy in bits",
        "Document",
        "decisions",
        "same %",
        "Jaccard %",
        "as shortest %",
        "router",
        "load",
    )
    for point in report.points:
        table.add_row(
            f"{point.context_tokens:,}",
            f"{point.decisions:,}",
            percent(point.same_set_share),
            percent(point.jaccard),
            percent(point.drift_same_set_share),
            f"{point.router_bits:.3f}",
            f"{point.load_bits:.3f}",
        )
    return table
