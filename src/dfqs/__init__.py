"""dfqs: one proven GGUF file out of a sharded Mixture-of-Experts model, and honest numbers about it."""

__version__ = "0.1.0"
