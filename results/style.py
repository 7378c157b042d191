"""How does a figure look? Colours, markers and type, and the same bytes for the same figure.

Figures are drawn on a bare ``Figure``, without pyplot, so that no global state and no display matter; with a fixed hash
salt and no date.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart in the common colour blindnesses; the markers serve print without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # One more than colours: no pair repeats among the first 56 lines.
CHANCE_GREY, CHANCE_NAME = "#666666", "chance"
DODGE_PT = 3.0  # Between systems at one number of passages, so that their intervals do not hide each other.
PNG_DPI = 160

STYLE: dict[str, Any] = {
    "svg.hashsalt": "refrag-bench",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titley": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def pictures(figure: Figure) -> dict[str, bytes]:
    """``{"png": ..., "svg": ...}``, the same bytes for the same figure. Call it within the style of the drawing."""
    # Laid out once for both kinds: it is more than half of the time that drawing takes. (None, since with "none" there
    # is still an engine, for which every saving draws once more.)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine(None)
    found = {"png": io.BytesIO(), "svg": io.BytesIO()}
    figure.savefig(found["png"], format="png", dpi=PNG_DPI, metadata={"Software": None})
    figure.savefig(found["svg"], format="svg", metadata={"Date": None, "Creator": None})
    return {kind: picture.getvalue() for kind, picture in found.items()}
