"""The score against the share of chunks that is expanded: a panel per k, a line per selector.

Style and bytes: ``results.style``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from results.experiments.accuracy import METRICS
from results.experiments.expansion import SELECTORS, Curve, share_expanded
from results.style import COLOURS, DODGE_PT, MARKERS, STYLE, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_IN = 3.4
LINEAR_TO = 10.0  # percent up to which the axis is linear; from there on logarithmic


def draw_figure(curves: Sequence[Curve], metric: str) -> dict[str, bytes]:
    """``metric`` with its 95 % interval in percent against the share that was really expanded."""
    from matplotlib import style
    from matplotlib.figure import Figure

    rates = list(dict.fromkeys(curve.k for curve in curves))
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(PANEL_IN * len(rates), 3.6), layout="constrained")
        panels: list[Axes] = list(figure.subplots(1, len(rates), sharey=True, squeeze=False)[0])
        for panel, k in zip(panels, rates, strict=True):
            _draw_panel(panel, [curve for curve in curves if curve.k == k], metric)
            panel.set_title(f"k = {k}")
        panels[0].set_ylabel(f"{METRICS[metric]} (%)")
        # Shifted lines do not widen the axes by themselves.
        scores = [record.metrics[metric] for curve in curves for record in curve.records.values()]
        panels[0].set_ylim(100 * min(score.low for score in scores) - 0.5, 100 * max(s.high for s in scores) + 0.5)
        entries = {
            name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        names = [name for name in SELECTORS if name in entries]
        figure.legend([entries[name] for name in names], names, loc="outside upper center", ncols=len(names))
        return pictures(figure)


def _draw_panel(panel: Axes, curves: Sequence[Curve], metric: str) -> None:
    from matplotlib.ticker import NullLocator
    from matplotlib.transforms import ScaledTranslation

    figure = panel.get_figure(root=True)
    assert figure is not None
    for curve in curves:
        index = SELECTORS.index(curve.select)
        records = list(curve.records.values())
        scores = [record.metrics[metric] for record in records]
        shift_pt = DODGE_PT * (index - (len(SELECTORS) - 1) / 2)
        panel.errorbar(
            [100 * share_expanded(record) for record in records],
            [100 * score.mean for score in scores],
            # A bound may lie a rounding error on the wrong side of a mean of 0 or 1, which matplotlib refuses.
            yerr=[
                [max(0.0, 100 * (score.mean - score.low)) for score in scores],
                [max(0.0, 100 * (score.high - score.mean)) for score in scores],
            ],
            label=curve.select,
            color=COLOURS[index],
            marker=MARKERS[index],
            markersize=3.5,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
            transform=panel.transData + ScaledTranslation(shift_pt / 72, 0, figure.dpi_scale_trans),
        )
    shown = [record for curve in curves for record in curve.records.values()]
    shares = sorted({100 * share_expanded(record) for record in shown})
    panel.set_xscale("symlog", base=2, linthresh=LINEAR_TO, linscale=1.5)
    panel.set_xlim(-2, 130)
    panel.set_xticks(shares, [f"{share:.3g}" for share in shares])
    panel.tick_params(axis="x", labelsize=7)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_xlabel("chunks expanded (%)")
