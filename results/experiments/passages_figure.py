"""What do passages buy? The score of every system against the number of passages, one panel a suite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from results.experiments.accuracy import METRICS, Cell, Column, Table
from results.style import CHANCE_GREY, CHANCE_NAME, COLOURS, DODGE_PT, MARKERS, STYLE, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_WIDTH_IN, PANEL_HEIGHT_IN, LEGEND_LINE_IN = 2.6, 2.7, 0.22
LEGEND_HANDLE_IN, LEGEND_LETTER_IN = 0.6, 0.075


def draw_figure(table: Table) -> dict[str, bytes]:
    """The figure of ``table`` as ``{"png": ..., "svg": ...}``: mean and 95 % interval in percent, chance dashed."""
    from matplotlib import style
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.name for row in table.rows))
    width = PANEL_WIDTH_IN * len(table.columns) + 0.6
    entry_in = LEGEND_HANDLE_IN + LEGEND_LETTER_IN * max(map(len, names))
    legend_columns = max(1, min(len(names) + 1, int(width / entry_in)))
    legend_lines = math.ceil((len(names) + 1) / legend_columns)
    with style.context(STYLE, after_reset=True):  # A matplotlibrc of the user's changes no byte.
        figure = Figure(figsize=(width, PANEL_HEIGHT_IN + LEGEND_LINE_IN * legend_lines), layout="constrained")
        panels: list[Axes] = list(figure.subplots(1, len(table.columns), sharey=True, squeeze=False)[0])
        for panel, column in zip(panels, table.columns, strict=True):
            _draw_panel(panel, column, [cell for cell in table.cells if cell.column == column], names)
        panels[0].set_ylabel(f"{METRICS[table.metric]} (%)")
        panels[0].set_ylim(0, 100 * 1.06 * _highest(table))
        entries = dict(reversed([entry for panel in panels for entry in _legend_entries(panel)]))
        figure.legend(
            [entries[name] for name in (*names, CHANCE_NAME) if name in entries],
            [name for name in (*names, CHANCE_NAME) if name in entries],
            loc="outside upper center",
            ncols=legend_columns,
        )
        return pictures(figure)


def _draw_panel(panel: Axes, column: Column, cells: Sequence[Cell], names: Sequence[str]) -> None:
    from matplotlib.ticker import NullLocator
    from matplotlib.transforms import ScaledTranslation

    figure = panel.get_figure(root=True)
    assert figure is not None
    for i, name in enumerate(names):
        points = [(cell.row.passages, cell.score) for cell in cells if cell.row.name == name and cell.score]
        if not points:
            continue
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        shift_pt = DODGE_PT * (i - (len(names) - 1) / 2)
        panel.errorbar(
            [passages for passages, _ in points],
            [100 * score.mean for _, score in points],
            # A bound may lie a rounding error on the wrong side of a mean of 0 or 1, which matplotlib refuses.
            yerr=[
                [max(0.0, 100 * (score.mean - score.low)) for _, score in points],
                [max(0.0, 100 * (score.high - score.mean)) for _, score in points],
            ],
            label=name,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            elinewidth=1,
            capsize=2.5,
            clip_on=False,
            transform=panel.transData + ScaledTranslation(shift_pt / 72, 0, figure.dpi_scale_trans),
        )
    _draw_chance(panel, cells)
    passages = sorted({cell.row.passages for cell in cells})
    # Linear up to 1, then logarithmic: closed-book has a place, and 1, 8 and 80 passages are told apart.
    panel.set_xscale("symlog", base=2, linthresh=1)
    least = min(passages)
    panel.set_xlim(-0.5 if least == 0 else least / 1.5, 1.5 * max(1, *passages))
    panel.set_xticks(passages, [str(count) if count else "closed-\nbook" for count in passages])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_title(column.name)
    panel.set_xlabel("passages")


def _draw_chance(panel: Axes, cells: Sequence[Cell]) -> None:
    """A dashed line: level where chance does not depend on the number of passages, else through its values."""
    levels = sorted({(cell.row.passages, 100 * cell.chance.mean) for cell in cells if cell.chance})
    look: dict[str, Any] = {
        "color": CHANCE_GREY,
        "linestyle": (0, (4, 3)),
        "linewidth": 1.2,
        "zorder": 1.5,
        "label": CHANCE_NAME,
    }
    if len({level for _, level in levels}) == 1:
        panel.axhline(levels[0][1], **look)
    elif levels:
        panel.plot([passages for passages, _ in levels], [level for _, level in levels], **look)


def _legend_entries(panel: Axes) -> list[tuple[str, Any]]:
    handles, names = panel.get_legend_handles_labels()
    return list(zip(names, handles, strict=True))


def _highest(table: Table) -> float:
    tops = [cell.score.high for cell in table.cells if cell.score]
    tops += [cell.chance.mean for cell in table.cells if cell.chance]
    return max([0.01, *tops])
