"""Models larger than memory: experts read from disk when the router has chosen them. See docs/streaming.md."""
