"""Two figures of what is left of a context: a heat map, length by depth, per system; and accuracy against distance.

Style and bytes: ``results.style``. What was trained on is marked in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from results.experiments.memory import CHANCE, EM, Line, depths
from results.style import CHANCE_GREY, CHANCE_NAME, COLOURS, MARKERS, STYLE, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMN_IN, ROW_IN = 0.42, 0.34
PANEL_MARGIN_IN = 1.1
PANELS_ACROSS = 3
NOT_RUN = "#E6E6E6"
COLOUR_MAP = "viridis"
DARK_BELOW = 55.0  # percent under which the map is dark, and figures on it are white


def draw_heat_map(lines: Sequence[Line], trained: int) -> dict[str, bytes]:
    """Exact match in percent: a panel per system, lengths from left to right, depths from top (0 %) to bottom.

    White line: the longest trained length. Grey: not run.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    lengths = sorted({length for line in lines for length in line.records})
    deep = sorted({depth for line in lines for record in line.records.values() for depth in depths(record)})
    across = min(PANELS_ACROSS, len(lines))
    down = -(-len(lines) // across)
    width = across * (COLUMN_IN * len(lengths) + 0.5) + PANEL_MARGIN_IN
    height = down * (ROW_IN * len(deep) + 0.75) + 0.3
    with style.context(STYLE | {"axes.spines.left": False, "axes.spines.bottom": False}, after_reset=True):
        figure = Figure(figsize=(width, height), layout="constrained")
        panels: list[Axes] = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
        for panel in panels[len(lines) :]:
            panel.set_visible(False)
        mesh = None
        for number, (panel, line) in enumerate(zip(panels, lines, strict=False)):
            mesh = _heat_panel(panel, line, lengths, deep, trained)
            panel.set_title(line.name)
            if number % across == 0:
                panel.set_ylabel("depth, %")
            if number + across >= len(lines):
                panel.set_xlabel("tokens of context")
                panel.tick_params(labelbottom=True)
        assert mesh is not None
        bar = figure.colorbar(mesh, ax=panels, label="exact match (%)", shrink=0.8)
        assert bar.solids is not None
        bar.solids.set(rasterized=False, edgecolor="face")  # a picture inside the drawing is refused by the page
        return pictures(figure)


def draw_distances(panels_of: Mapping[int, Sequence[Line]], trained: int) -> dict[str, bytes]:
    """Exact match in percent against distance, a panel per number of steps; chance dashed, trained distance dotted."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(4.2 * len(panels_of) + 0.6, 3.6), layout="constrained")
        panels: list[Axes] = list(figure.subplots(1, len(panels_of), sharey=True, squeeze=False)[0])
        names = list(dict.fromkeys(line.name for lines in panels_of.values() for line in lines))
        for panel, (steps, lines) in zip(panels, panels_of.items(), strict=True):
            _distance_panel(panel, lines, names, trained)
            panel.set_title("one look-up" if steps == 1 else f"{steps} look-ups")
        panels[0].set_ylabel("exact match (%)")
        panels[0].set_ylim(0, 106)
        entries = {
            name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4)
        return pictures(figure)


def _heat_panel(panel: Axes, line: Line, lengths: Sequence[int], deep: Sequence[int], trained: int) -> Any:
    import numpy as np

    scores = np.full((len(deep), len(lengths)), np.nan)
    for column, length in enumerate(lengths):
        if (record := line.records.get(length)) is not None:
            for depth, score in depths(record).items():
                scores[deep.index(depth), column] = 100 * score.mean
    panel.set_facecolor(NOT_RUN)
    # Cells as paths and not as a picture: the SVG stays sharp.
    mesh = panel.pcolormesh(np.ma.masked_invalid(scores), cmap=COLOUR_MAP, vmin=0, vmax=100)
    for row, column in zip(*np.nonzero(~np.isnan(scores)), strict=True):
        value = scores[row, column]
        colour = "white" if value < DARK_BELOW else "black"
        panel.text(column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=7)
    inside = sum(length <= trained for length in lengths)
    if inside < len(lengths):
        panel.axvline(inside, color="white", linewidth=2.5)
    panel.set_xticks([i + 0.5 for i in range(len(lengths))], [_short(length) for length in lengths])
    panel.set_yticks([i + 0.5 for i in range(len(deep))], [str(depth) for depth in deep])
    panel.tick_params(length=0)
    if not panel.yaxis_inverted():  # shared: once for all
        panel.invert_yaxis()
    return mesh


def _distance_panel(panel: Axes, lines: Sequence[Line], names: Sequence[str], trained: int) -> None:
    from matplotlib.ticker import NullLocator

    for line in lines:
        index = names.index(line.name)
        points = [(d, record.metrics[EM]) for d, record in line.records.items() if EM in record.metrics]
        panel.errorbar(
            [d for d, _ in points],
            [100 * score.mean for _, score in points],
            yerr=[
                [max(0.0, 100 * (score.mean - score.low)) for _, score in points],
                [max(0.0, 100 * (score.high - score.mean)) for _, score in points],
            ],
            label=line.name,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.4,
            elinewidth=1,
            capsize=2,
        )
    chances = {
        d: 100 * r.metrics[CHANCE].mean for line in lines for d, r in line.records.items() if CHANCE in r.metrics
    }
    panel.plot(
        *zip(*sorted(chances.items()), strict=True),
        color=CHANCE_GREY,
        linestyle=(0, (4, 3)),
        linewidth=1.2,
        label=CHANCE_NAME,
    )
    distances = sorted({d for line in lines for d in line.records})
    panel.set_xscale("log", base=2)
    panel.axvline(trained, color=CHANCE_GREY, linewidth=0.8, linestyle=":", label="longest in training")
    panel.set_xticks(distances, [_short(d) for d in distances])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("distance, tokens")
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)


def _short(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)
