"""The rows, a module each: `row(place)` writes the inputs and says which arms take turns at what."""

ROWS = (
    "pull",
    "quantize",
    "imatrix",
    "perplexity",
    "running",
    "trace",
    "start",
    "verify",
    "in-place",
    "in-place-large",
    "consume",
    "scale",
)
"""In the order of the page."""
