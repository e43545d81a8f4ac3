"""A file that is no GGUF at all, as a finding."""

from dfqs.gguf import FileSource, foreign
from dfqs.integrity.findings import Finding


def explain_not_gguf(source: FileSource) -> Finding | None:
    """What the file is instead; None when it begins with the magic."""
    found = foreign.explain_not_gguf(source)
    return None if found is None else Finding(found.code, found.message, found.fix, offset=found.offset)
