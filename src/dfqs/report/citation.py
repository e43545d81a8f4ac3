"""How a published file and the specification are cited: BibTeX, APA and the Citation File Format. Pure.

Format: Citation File Format 1.2.0. Its values are written as JSON strings, which YAML reads as they stand.
"""

import json
import re
from dataclasses import dataclass

from dfqs.errors import printable

SPECIFICATION_BIBTEX = """@misc{persadian2026dfqs_iq1sxl,
  author = {Persadh, Darshani},
  title = {DFQS-IQ1_S-XL: Ultra-Low-Bit MoE Deployment Standard},
  year = {2026},
  publisher = {Hugging Face},
  version = {IQ1_S-XL},
  doi = {10.57967/hf/8853},
  url = {https://doi.org/10.57967/hf/8853}
}"""
SPECIFICATION_APA = (
    "Persadh, D.R. (2026). DFQS-IQ1_S-XL: Ultra-Low-Bit MoE Deployment Standard (IQ1_S-XL). Hugging Face. "
    "https://doi.org/10.57967/hf/8853"
)


@dataclass(frozen=True, slots=True)
class Citation:
    """A file as it is cited. Its words come from outside."""

    author: str
    title: str
    date: str
    """ISO 8601, of the report that the card is of."""
    url: str | None
    sha256: str | None

    @property
    def year(self) -> str:
        return self.date[:4] if re.fullmatch(r"\d{4}-.*", self.date) else "n.d."


def bibtex(citation: Citation) -> str:
    """An entry whose braces are balanced whatever the title says."""
    key = re.sub(r"[^a-z0-9]+", "_", f"{citation.author}_{citation.title}".lower()).strip("_")[:60] or "model"
    fields = [
        ("author", f"{{{_tex(citation.author)}}}"),
        ("title", f"{{{_tex(citation.title)}}}"),
        ("year", citation.year),
        ("publisher", "Hugging Face" if citation.url else None),
        ("url", citation.url),
        ("note", f"SHA-256 {citation.sha256}" if citation.sha256 else None),
    ]
    lines = [f"  {name} = {{{value}}}" for name, value in fields if value is not None]
    return "\n".join([f"@misc{{{key},", ",\n".join(lines), "}"])


def apa(citation: Citation) -> str:
    """One line of plain words, not escaped, before the address."""
    where = " Hugging Face." if citation.url else ""
    return f"{_line(citation.author)} ({citation.year}). {_line(citation.title)} [GGUF model].{where}"


def cff(citation: Citation) -> str:
    """`CITATION.cff`."""
    lines = [
        "cff-version: 1.2.0",
        'message: "If you use this file, please cite it, and the specification that it was measured by."',
        "type: software",
        f"title: {_quoted(citation.title)}",
        "authors:",
        f"  - name: {_quoted(citation.author)}",
    ]
    if re.match(r"\d{4}-\d{2}-\d{2}", citation.date):
        lines.append(f"date-released: {_quoted(citation.date[:10])}")
    if citation.url:
        lines.append(f"url: {_quoted(citation.url)}")
    if citation.sha256:
        lines += ["identifiers:", "  - type: other", f"    value: {_quoted('sha256:' + citation.sha256)}"]
    lines += [
        "references:",
        "  - type: generic",
        '    title: "DFQS-IQ1_S-XL: Ultra-Low-Bit MoE Deployment Standard"',
        "    authors:",
        '      - family-names: "Persadh"',
        '        given-names: "Darshani"',
        '    doi: "10.57967/hf/8853"',
        "    year: 2026",
    ]
    return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    return printable(text.strip(), 200)


def _tex(text: str) -> str:
    """As text for BibTeX: what would end a field, or begin a command, is left out."""
    plain = re.sub(r"[{}\\~^@]", " ", _line(text)).strip() or "model"
    return re.sub(r"([$%#&_])", r"\\\1", plain)


def _quoted(text: str) -> str:
    return json.dumps(_line(text), ensure_ascii=False)
