"""The demonstration model: a small real Mixture-of-Experts, made on this machine out of a small dense model."""

from dfqs.embedded.build import build_embedded_model, cached_embedded_model
from dfqs.embedded.source import cached_source
from dfqs.storage.cache import cache_directory

__all__ = ["build_embedded_model", "cache_directory", "cached_embedded_model", "cached_source"]
