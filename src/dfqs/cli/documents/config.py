"""What `config` prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from dfqs.config import Held
from dfqs.records import Document, Record, Text


class ConfigSetting(Record):
    """One default."""

    key: str
    value: int | Text | None
    """Null: nothing is set."""
    origin: Literal["environment", "file", "default"]
    where: Text | None
    """The variable, or the file with its line."""
    variable: str
    """Of the environment, that comes before the file."""
    default: str
    """What holds where nothing is set, in words."""
    meaning: str


class ConfigDocument(Document):
    """The defaults that hold, and where each comes from."""

    schema_: Literal["dfqs.config/1"] = Field(default="dfqs.config/1", alias="schema")
    path: Text
    exists: bool
    settings: tuple[ConfigSetting, ...]

    @classmethod
    def of(cls, path: Path, settings: Sequence[Held]) -> "ConfigDocument":
        """As they are now."""
        listed = tuple(
            ConfigSetting(
                key=one.known.key,
                value=one.value,
                origin=one.origin,
                where=one.where or None,
                variable=one.known.variable,
                default=one.known.default,
                meaning=one.known.meaning,
            )
            for one in settings
        )
        return cls(path=path, exists=path.exists(), settings=listed)
