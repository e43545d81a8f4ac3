"""What a quantized file says of its own making: dfqs's keys in its header."""

import re
from dataclasses import dataclass

from dfqs.gguf.reader import Header

CLASS_KEY = "dfqs.class"
RECIPE_KEY = "dfqs.recipe"
IMATRIX_KEY = "dfqs.imatrix_sha256"
SOURCE_KEY = "dfqs.source_content_sha256"
VERSION_KEY = "dfqs.version"

RECIPE_LIMIT_BYTES = 1 << 20
"""A recipe of two exceptions a layer has some kilobytes."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNKNOWN = "0" * 64


@dataclass(frozen=True, slots=True)
class Making:
    """How a file was made, in its own words; None: it does not say, or says what cannot be."""

    class_name: str
    recipe: str | None
    """JSON, as it stands in the file."""
    source_content_sha256: str | None
    imatrix_sha256: str | None
    version: str | None
    """Of dfqs."""


def read_making(header: Header) -> Making | None:
    """What the keys say; None for a file that dfqs did not quantize.

    Raises:
        FormatError: a key is too long, or no text.
    """
    name = header.metadata.text(CLASS_KEY)
    if name is None:
        return None
    return Making(
        name,
        header.metadata.text(RECIPE_KEY, RECIPE_LIMIT_BYTES),
        _hash(header, SOURCE_KEY),
        _hash(header, IMATRIX_KEY),
        header.metadata.text(VERSION_KEY),
    )


def _hash(header: Header, key: str) -> str | None:
    text = header.metadata.text(key)
    return text if text is not None and _SHA256.fullmatch(text) and text != _UNKNOWN else None
