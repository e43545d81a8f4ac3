"""Streaming as `/metrics` tells it, beside what llama-server tells."""

from dfqs.runtime.loading import StreamFigures
from dfqs.serving.metrics import format_rows


def format_metrics(figures: StreamFigures) -> bytes:
    """Lines for a scrape."""
    hits = round(figures.choices * figures.hit_rate) if figures.hit_rate is not None else None
    return format_rows(
        "dfqs_stream",
        (
            ("passes_total", "counter", "Graphs computed: one a token and slot, or one a batch.", figures.passes),
            ("tokens_total", "counter", "Tokens computed in them.", figures.tokens),
            ("passes_seconds_total", "counter", "How long they took, waiting included.", figures.passes_s),
            ("wait_seconds_total", "counter", "How long computing stood still for the disk.", figures.wait_s),
            ("read_bytes_total", "counter", "Bytes of experts read from disk.", figures.read_bytes),
            ("experts_total", "counter", "Experts that layers chose.", figures.choices),
            ("experts_in_memory_total", "counter", "Of them, those that were in memory.", hits),
            ("hit_ratio", "gauge", "Share of them since the start.", figures.hit_rate),
            ("bytes_per_token", "gauge", "Bytes read for a token, since the start.", figures.bytes_per_token),
            ("disk_bytes_per_second", "gauge", "The disk's rate, measured at the start.", figures.disk_bytes_per_s),
            ("bound_ratio", "gauge", "Rate, of the rate that computing and the disk allow.", figures.bound_share),
        ),
    )
