"""The model that a verb looks at without changing it: a file, the first shard of a set, or one on the Hub."""

import importlib
from pathlib import Path

from dfqs.model.files import ModelFiles, open_model
from dfqs.shards.hub_address import is_remote


def open_source(source: str) -> ModelFiles:
    """The model in a file, or in the shards that it is the first of; local, or on the Hub."""
    if is_remote(source) and not Path(source).exists():
        model: ModelFiles = importlib.import_module("dfqs.cli.remote").open_remote_model(source)
        return model
    return open_model(source)
