"""What does a longer context buy? Log-perplexity of every system against the tokens of context, one panel a set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from results.experiments.perplexity import SETS, WITHOUT, Perplexities
from results.style import CHANCE_GREY, COLOURS, MARKERS, STYLE, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_IN = 3.4


def draw_figure(found: Perplexities) -> dict[str, bytes]:
    """The figure as ``{"png": ..., "svg": ...}``, at the longest output: mean and 95 % interval; no context dashed."""
    from matplotlib import style
    from matplotlib.figure import Figure

    names = [row for row in found.rows if not row.startswith(WITHOUT)]
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(PANEL_IN * len(found.sets) + 1.6, PANEL_IN), layout="constrained")
        panels: list[Axes] = list(figure.subplots(1, len(found.sets), squeeze=False)[0])
        for panel, name in zip(panels, found.sets, strict=True):
            _draw_panel(panel, found, name, names)
        panels[0].set_ylabel(f"log-perplexity of {found.outputs[-1]} tokens (nats per token)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
        return pictures(figure)


def _draw_panel(panel: Axes, found: Perplexities, name: str, names: list[str]) -> None:
    for index, row in enumerate(names):
        scores = [(s, found.score(row, name, s, found.outputs[-1])) for s in found.contexts]
        points = [(s, score) for s, score in scores if score]
        panel.errorbar(
            [s * 1.02 ** (index - len(names) / 2) for s, _ in points],  # side by side, or intervals would hide others
            [score.mean for _, score in points],
            yerr=[[score.mean - score.low for _, score in points], [score.high - score.mean for _, score in points]],
            label=row,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
        )
    if none := found.score(WITHOUT, name, 0, found.outputs[-1]):
        panel.axhline(none.mean, color=CHANCE_GREY, linestyle=(0, (4, 3)), linewidth=1.2, label=WITHOUT)
    panel.set_xscale("log", base=2)
    panel.set_xticks(found.contexts, [str(s) for s in found.contexts])
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_title(SETS.get(name, name))
    panel.set_xlabel("tokens of context")
