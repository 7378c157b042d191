"""A drawn figure as a part of a page.

The file is parsed and written again, so that nothing but elements, attributes and text gets through, and every id gets
the figure's name before it: several figures share a page, and their drawings all begin with ``figure_1``.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from markupsafe import Markup

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
LEFT_OUT = {
    f"{{{SVG}}}metadata",
    f"{{{SVG}}}style",
    f"{{{SVG}}}script",
}  # the page has the one rule of matplotlib's style
_REFERENCE = re.compile(r"url\(#|^#")


def inline(svg: bytes, name: str, title: str) -> Markup:
    """``svg`` as an ``<svg>`` element that scales with the page and is read out as ``title``."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in [child for child in parent if child.tag in LEFT_OUT]:
            parent.remove(child)
    used = {match for element in root.iter() for match in _references(element)}
    for element in root.iter():
        for key, value in element.attrib.items():
            if _REFERENCE.search(value):
                element.set(key, _REFERENCE.sub(lambda found: f"{found[0]}{name}-", value))
        if (own := element.get("id")) in used:
            element.set("id", f"{name}-{own}")
        elif own is not None:
            del element.attrib["id"]
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", title)
    root.set("style", f"--own: {_width(root)}pt; max-width: var(--own)")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _references(element: ElementTree.Element) -> list[str]:
    """The ids that ``element`` points to."""
    return [found for value in element.attrib.values() for found in re.findall(r"(?:url\(|^)#([^)]+)", value)]


def _width(root: ElementTree.Element) -> str:
    return root.get("viewBox", "0 0 600 400").split()[2]
