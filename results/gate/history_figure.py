"""Accuracy and speed over the commits: a panel of each, a line a series, a dashed line before each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from results.gate.history import History, Z, natural
from results.style import CHANCE_GREY, COLOURS, MARKERS, STYLE, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"score": "score (%)", "speed": "standard RAG's time over the lane's"}


def draw_history(history: History) -> dict[str, bytes]:
    """The figure as ``{"png": ..., "svg": ...}``, with 95 % intervals."""
    from matplotlib import style
    from matplotlib.figure import Figure

    kinds = [kind for kind in PANELS if any(series.kind == kind for series in history.series)]
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(max(7.0, 0.35 * len(history.commits) + 4), 3.4 * len(kinds)), layout="constrained")
        for panel, kind in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds, strict=True):
            _draw(panel, history, kind)
        return pictures(figure)


def _draw(panel: Axes, history: History, kind: str) -> None:
    place = {commit: number for number, commit in enumerate(history.commits)}
    unit = 100 if kind == "score" else 1
    drawn = [(series, points) for series, points in history.series.items() if series.kind == kind]
    for index, (series, points) in enumerate(drawn):
        values = [unit * natural(series, point.value) for point in points]
        ends = [[unit * natural(series, point.value + sign * Z * point.error) for point in points] for sign in (-1, 1)]
        panel.errorbar(
            [place[point.commit] for point in points],
            values,
            yerr=[
                [max(0.0, value - low) for value, low in zip(values, ends[0], strict=True)],
                [max(0.0, high - value) for value, high in zip(values, ends[1], strict=True)],
            ],
            label=series.name,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=3.5,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
        )
    for commit in {step.commit for step in history.steps if step.series.kind == kind}:
        panel.axvline(place[commit] - 0.5, color=CHANCE_GREY, linestyle=(0, (4, 3)), linewidth=1.2)
    panel.set_xticks(range(len(place)), [commit[:7] for commit in place], rotation=60, fontsize=7)
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_ylabel(PANELS[kind])
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
