"""What did each row of a table score, where all have one number of passages? A dot with its interval, a line a row.

Style and bytes: ``results.style``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from results.experiments.accuracy import METRICS, SYSTEMS, Cell, Column, Table
from results.style import CHANCE_GREY, CHANCE_NAME, COLOURS, STYLE, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_IN, ROW_IN, MARGIN_IN, LETTER_IN = 2.2, 0.22, 1.0, 0.075
_SEED = re.compile(r", seed \d+$")


def draw_figure(table: Table) -> dict[str, bytes]:
    """The figure of ``table`` as ``{"png": ..., "svg": ...}``: mean and 95 % interval in percent, chance dashed.

    Rows that are seeds of one way have one colour.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    names = [row.name for row in table.rows]
    ways = list(dict.fromkeys(_way(row.variant, row.system) for row in table.rows))
    colours = [COLOURS[ways.index(_way(row.variant, row.system)) % len(COLOURS)] for row in table.rows]
    width = PANEL_IN * len(table.columns) + LETTER_IN * max(map(len, names)) + 0.4
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(width, ROW_IN * len(names) + MARGIN_IN), layout="constrained")
        panels: list[Axes] = list(figure.subplots(1, len(table.columns), sharey=True, squeeze=False)[0])
        for panel, column in zip(panels, table.columns, strict=True):
            _draw_panel(panel, column, [cell for cell in table.cells if cell.column == column], colours)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)  # the first row on top
        figure.supxlabel(f"{METRICS[table.metric]} (%), {table.rows[0].passages} passages", fontsize=9)
        return pictures(figure)


def _way(variant: str, system: str) -> str:
    return f"{SYSTEMS.get(system, system)} {_SEED.sub('', variant)}"


def _draw_panel(panel: Axes, column: Column, cells: list[Cell], colours: list[str]) -> None:
    for place, (cell, colour) in enumerate(zip(cells, colours, strict=True)):
        if score := cell.score:
            panel.errorbar(
                [100 * score.mean],
                [place],
                # A bound may lie a rounding error on the wrong side of a mean of 0 or 1, which matplotlib refuses.
                xerr=[
                    [max(0.0, 100 * (score.mean - score.low))],
                    [max(0.0, 100 * (score.high - score.mean))],
                ],
                color=colour,
                marker="o",
                markersize=3.5,
                capsize=2,
            )
    chances = {round(100 * cell.chance.mean, 6) for cell in cells if cell.chance}
    for chance in sorted(chances):
        panel.axvline(chance, color=CHANCE_GREY, linestyle=(0, (4, 3)), linewidth=1.2)
        panel.annotate(
            CHANCE_NAME, (chance, 0.0), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points",
            fontsize=7, color=CHANCE_GREY,
        )  # fmt: skip
    panel.set_xlim(0, 102)
    panel.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_title(column.name)
