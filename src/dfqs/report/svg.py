"""Pictures of matplotlib as part of a page: without styles of their own, in the page's colours, in light and dark.

A strict content security policy lets no `style` attribute through, so each is turned into SVG attributes; colours that
stand for something (`INK`, `SERIES`) become classes, to which the page's style sheet gives a value for each theme.
"""

import io
import re
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

from dfqs.figure import Figure

INK, GRID, QUIET, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = ("#010211", "#010212", "#010213")
_CLASSES = {INK: "ink", GRID: "grid", QUIET: "quiet", PAPER: "paper"}
_CLASSES |= {color: f"series-{number}" for number, color in enumerate(SERIES, start=1)}
ON_LIGHT, ON_DARK = "#14181d", "#ffffff"
"""Of words on a coloured field, the same in both themes."""
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_SIZE = re.compile(r"([0-9.]+)px")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture, ready to stand in a page."""

    svg: Markup
    caption: str


def inline_svg(figure: Figure, name: str, title: str, caption: str) -> Plot:
    """A figure as an element of a page.

    Args:
        name: of this picture alone in its page: its identifiers begin with it.
        title: what a screen reader says.
    """
    written = io.BytesIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(written.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        _plain_tag(element)
        _plain_style(element)
        _own_names(element, name)
    for holder in list(root.iter("defs")):
        for style in holder.findall("style"):
            holder.remove(style)
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    root.attrib.pop("version", None)
    # What matplotlib says in the style element that went.
    root.set("stroke-linejoin", "round")
    root.set("stroke-linecap", "butt")
    root.set("role", "img")
    root.set("aria-label", title)
    return Plot(Markup(ElementTree.tostring(root, encoding="unicode")), caption)


def _plain_tag(element: ElementTree.Element) -> None:
    element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    href = element.attrib.pop(f"{{{_XLINK}}}href", None)
    if href is not None:
        element.set("href", href)


def _plain_style(element: ElementTree.Element) -> None:
    style = element.attrib.pop("style", "")
    for entry in style.split(";"):
        key, _, value = (part.strip() for part in entry.partition(":"))
        if key == "font" and (size := _SIZE.search(value)):
            element.set("font-size", size[1])
        elif key and key not in ("font", "font-family"):
            element.set(key, value)
    classes = []
    for key, prefix in (("fill", "f"), ("stroke", "s")):
        color = element.get(key, "").lower()
        if color in _CLASSES:
            del element.attrib[key]
            classes.append(f"{prefix}-{_CLASSES[color]}")
        elif element.tag == "text" and key == "fill" and color in (ON_LIGHT, ON_DARK):
            del element.attrib[key]
            classes.append("on-light" if color == ON_LIGHT else "on-dark")
    if classes:
        element.set("class", " ".join(classes))


def _own_names(element: ElementTree.Element, name: str) -> None:
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.set("id", f"{name}-{value}")
        elif key == "href" and value.startswith("#"):
            element.set("href", f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, _REFERENCE.sub(lambda found: f"url(#{name}-{found[1]})", value))
