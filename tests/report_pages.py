"""Pages as a browser reads them, and hostile things to put into them."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from dfqs.evaluate.scores import Completion, ScoredItem, Verdict
from dfqs.records import parse_record
from dfqs.report import Report
from dfqs.report.evidence import COMPANIONS, Evidence
from dfqs.report.page import render_page

GOLDEN = Path(__file__).parent / "golden"
EVIL = (
    "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)> "
    "\x1b]0;owned\x07\x1b[2J \u202egnp.exe \u2066 \x00 {{7*7}}"
)
LIMIT_BYTES = 5_000_000


class Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(document: Any, evidence: Evidence | None = None) -> str:
    return render_page(parse_record(json.dumps(document), Report), evidence)


def answer(text: str, name: str = "arithmetic-1-1", stage: str = "reasoning", **place: Any) -> ScoredItem:
    completion = Completion(text=text, finish_reason="stop", prompt_tokens=5, generated_tokens=3)
    return ScoredItem(stage=stage, item=name, verdict=Verdict.WRONG, completion=completion, place=place)


def assert_harmless(page: str) -> None:
    found = Elements(page)
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert len(scripts) <= 1 and not any(attributes for attributes in scripts)
    assert not {tag for tag, _ in found.tags} & {"iframe", "object", "embed", "base", "img"}
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("href", "src"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    assert page.translate({ord("\n"): "", ord("\t"): ""}).isprintable()
    assert len(page.encode()) < LIMIT_BYTES


def golden_companions() -> Any:
    directory = {schema: GOLDEN / f"{schema.removeprefix('dfqs.').replace('/', '-')}.json" for schema in COMPANIONS}
    return tuple(parse_record(directory[schema].read_bytes(), form) for schema, form in COMPANIONS.items())
