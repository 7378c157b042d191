"""The paper's latency figure with what was measured: acceleration over standard RAG against the length of the context.

Three panels as in its Figures 2, 8 and 9 (TTFT, TTIT, throughput), and a fourth that it lacks: after how many questions
over the same passages keeping their encoding has paid. Style and bytes: ``results.style``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from results.latency.journals import (
    ENCODE,
    PAPER_METRICS,
    PAPER_ROWS,
    PREFILL,
    Journal,
    Line,
    Ratio,
    questions_to_pay,
    read_paper,
)
from results.style import COLOURS, MARKERS, STYLE, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is drawn, and how it is called.
CURVES = {
    ("REFRAG k=8", PREFILL): "REFRAG k=8, cached",
    ("REFRAG k=16", PREFILL): "REFRAG k=16, cached",
    ("REFRAG k=32", PREFILL): "REFRAG k=32, cached",
    ("REFRAG k=16", ENCODE): "REFRAG k=16, not cached",
    ("CEPE", ENCODE): "CEPE, encoding inside",
    ("KV reuse", PREFILL): "KV reuse, cached",
}
PAYING = ("REFRAG k=8", "REFRAG k=16", "REFRAG k=32", "CEPE", "KV reuse")
WIDTH_IN, HEIGHT_IN = 12.5, 3.9


def draw(journal: Journal) -> dict[str, bytes]:
    """``{"png": ..., "svg": ...}`` of the smallest batch size."""
    from matplotlib import style
    from matplotlib.figure import Figure

    members = journal.lines
    batch = min((line.batch for line in members), default=1)
    members = [line for line in members if line.batch == batch]
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        panels: list[Axes] = list(figure.subplots(1, 4))
        _panel(panels[0], members, "ttft", lambda line: line.speedup)
        _panel(panels[1], members, "ttit", lambda line: line.ttit_speedup)
        _panel(panels[2], members, "throughput", lambda line: line.throughput_speedup)
        panels[0].set_yscale("log", base=2)
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].set_ylabel("times standard RAG")
        _paying(panels[3], journal, batch)
        entries = {text: handle for handle, text in zip(*panels[0].get_legend_handles_labels(), strict=True)}
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=len(entries))
        header = journal.header
        figure.suptitle(
            f"{header['shape']}, random weights, batch {batch}, {header['dtype']}, {journal.ceilings.device}: "
            "measured (solid), published for LLaMA-2-7B on an A100 (dashed), ratio of arithmetic (dotted)",
            fontsize=9,
        )
        return pictures(figure)


def _panel(panel: Axes, members: list[Line], metric: str, ratio: Callable[[Line], Ratio | None]) -> None:
    paper = read_paper()
    lengths = sorted({line.length for line in members})
    for index, ((label, boundary), name) in enumerate(CURVES.items()):
        colour = COLOURS[index % len(COLOURS)]
        own = sorted(
            (line for line in members if (line.label, line.boundary) == (label, boundary)), key=lambda line: line.length
        )
        points = [(line.length, found) for line in own if (found := ratio(line))]
        if points:
            middle = [found.mean for _, found in points]
            panel.errorbar(
                [length for length, _ in points],
                middle,
                yerr=[
                    [found.mean - found.low for _, found in points],
                    [found.high - found.mean for _, found in points],
                ],
                color=colour,
                marker=MARKERS[index % len(MARKERS)],
                markersize=4,
                linewidth=1.4,
                capsize=2,
                label=name,
            )
        if metric == "ttft":
            caps = [(line.length, line.cap) for line in own if line.cap]
            if caps:
                panel.plot(*zip(*caps, strict=True), color=colour, linestyle=":", linewidth=0.9)
        if (label, boundary) in PAPER_ROWS:
            key = (*PAPER_ROWS[label, boundary], PAPER_METRICS[metric])
            published = [(n, value) for (*of, n), value in paper.items() if tuple(of) == key and n in lengths]
            if published:
                panel.plot(
                    *zip(*sorted(published), strict=True), color=colour, linestyle="--", linewidth=1.0, marker="."
                )
    panel.axhline(1.0, color="#666666", linewidth=0.6)
    panel.set_title({"ttft": "Time to first token", "ttit": "Time per later token", "throughput": "Throughput"}[metric])
    _lengths(panel, lengths)


def _paying(panel: Axes, journal: Journal, batch: int) -> None:
    rows = [row for row in journal.rows if row["batch"] == batch]
    labels = [label for label, _ in CURVES]
    for label in PAYING:
        own = {row["length"]: questions_to_pay(journal, row) for row in rows if row["label"] == label}
        points = [(length, n) for length, n in own.items() if n is not None]
        if points:
            index = labels.index(label)
            panel.plot(
                *zip(*sorted(points), strict=True),
                color=COLOURS[index],
                marker=MARKERS[index],
                markersize=4,
                linewidth=1.4,
            )
    panel.set_title("Questions until encoding has paid")
    panel.set_ylim(bottom=0)
    _lengths(panel, sorted({row["length"] for row in rows}))


def _lengths(panel: Axes, lengths: list[int]) -> None:
    from matplotlib.ticker import NullLocator

    panel.set_xscale("log", base=2)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n) for n in lengths])
    panel.set_xlabel("context tokens")
