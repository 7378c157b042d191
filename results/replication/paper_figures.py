"""The paper's figures with ours: published curves and measured points each in panels of their own, and labelled.

Style and bytes: ``results.style``. The panels of one figure do not share axes where published
and ours are of different models, data or units.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.train.curriculum import MULTIPLIERS, build_curriculum
from results.experiments.accuracy import SYSTEMS, Row, build_table, row_order
from results.experiments.expansion import SELECTORS, curves
from results.experiments.variants import variants
from results.ledger.entries import Entry
from results.ledger.entries import filter as of
from results.records import Record
from results.replication.evidence import Evidence
from results.replication.published import Ledger
from results.style import COLOURS, DODGE_PT, MARKERS, STYLE, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PASSAGES = 8
EXPERIMENTS = SELECTION, COMPARED = "expansion", "tiny-systems"
PUBLISHED, MEASURED, COMPUTED = "published", "measured", "computed"
WORLD = f"synthetic world, 0.9 M parameters, {PASSAGES} passages"
# The trainings whose losses are shown, and what they are of.
LOSSES = {
    "perplexity-mini": "books and LaTeX, 91 M parameters",
    "perplexity": "books and LaTeX, 1.1 M parameters",
    "perplexity-quarter": "books and LaTeX, 1.1 M parameters, a quarter of the steps",
    "k_ablation": "synthetic world, 0.9 M parameters",
}
ON_TEXT = ("perplexity-mini", "perplexity", "perplexity-quarter")  # the larger training before the smaller
UNLOGGED = {
    "perplexity-quarter": "`refrag-bench run perplexity --scale quarter --data DIR`: an hour of one core",
    "k_ablation": "`refrag-bench run k_ablation`: 25 minutes of one core, three seeds of each k",
}
PANEL_IN, HEIGHT_IN = 3.4, 3.6
_POINT = re.compile(r" @ (?:effective compression |step |input_len=)(?P<x>[\d.]+)x?$")


def draw(name: str, ledger: Ledger, evidence: Evidence) -> dict[str, bytes]:
    """The figure of that name, one of ``FIGURES``, as ``{"png": ..., "svg": ...}``."""
    from matplotlib import style
    from matplotlib.figure import Figure

    (rows, columns), fill = FIGURES[name]
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(PANEL_IN * columns, HEIGHT_IN * rows), layout="constrained")
        fill([*figure.subplots(rows, columns, squeeze=False).flat], ledger, evidence)
        return pictures(figure)


# --- Figure 3


def selection(panels: Sequence[Axes], ledger: Ledger, evidence: Evidence) -> None:
    """Quality against the effective compression rate, by who chooses what is expanded: ours above, a panel per k."""
    *ours, beside = panels[:4]
    published = panels[4:]
    _select_ours(ours, beside, evidence)
    entries = of(ledger.entries, table="Figure 3")
    for panel, data in zip(published, ("Arxiv", "Book", "PG19", "ProofPile"), strict=True):
        for index, policy in enumerate(dict.fromkeys(entry.row for entry in entries)):
            points = _points(entry for entry in entries if entry.row == policy and entry.column.startswith(data))
            panel.plot(*zip(*points, strict=True), label=policy, **_look(index))
        panel.set_title(f"{data} ({PUBLISHED}, p. 6)")
        panel.set_xlabel("effective compression rate")
        panel.set_ylabel("log-perplexity (nats inferred)")
    published[0].legend()


def _select_ours(panels: Sequence[Axes], beside: Axes, evidence: Evidence) -> None:
    records = evidence.all(SELECTION, "same_relation")
    found = curves(build_table(records, experiment=SELECTION)) if records else []
    rates = sorted({curve.k for curve in found})
    for panel, k in zip(panels, rates, strict=False):
        for curve in (curve for curve in found if curve.k == k):
            index = SELECTORS.index(curve.select)
            points = sorted((r.metrics["effective_rate"].mean, r.path) for r in curve.records.values())
            by_path = {record.path: record for record in curve.records.values()}
            chosen = [by_path[path] for _, path in points]
            steps = index - (len(SELECTORS) - 1) / 2
            at = [rate for rate, _ in points]
            _scores(panel, at, chosen, curve.select, index, transform=_dodged(panel, steps))
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        # Shifted points do not widen the axes by themselves.
        panel.set_xlim(1 / 1.25, 1.25 * k)
        scores = [record.metrics["em"] for curve in found for record in curve.records.values()]
        panel.set_ylim(100 * min(s.low for s in scores) - 0.5, 100 * max(s.high for s in scores) + 0.5)
        panel.set_title(f"Same relation, k = {k} ({MEASURED})\n{WORLD}", fontsize=8)
        panel.set_xlabel("effective compression rate")
        panel.set_ylabel("exact match (%)")
    beside.set_axis_off()
    for panel in panels[len(rates) :]:
        panel.set_axis_off()
    if not found:
        _or_empty(panels[0], found, f"No record of experiment {SELECTION}: `refrag-bench run expansion` makes them.")
        panels[0].set_title(f"Same relation ({MEASURED})\n{WORLD}", fontsize=8)
        return
    entries = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    beside.legend(entries.values(), entries, loc="upper left", title="ours: who chooses what is expanded", fontsize=8)
    beside.text(
        0.0,
        0.3,
        textwrap.fill(
            "Bars: 95 % interval. Left end: everything expanded, right end: nothing. The published curves are of k = "
            "16 and log-perplexity, so only shapes compare: there up is worse, here up is better.",
            48,
        ),
        transform=beside.transAxes,
        fontsize=8,
        va="top",
    )


# --- Figure 4


def quality(panels: Sequence[Axes], ledger: Ledger, evidence: Evidence) -> None:
    """Quality against the time to the first token; the paper has tokens of input on that axis."""
    ours, beside, *published = panels
    _quality_ours(ours, beside, evidence)
    entries = [entry for entry in of(ledger.entries, table="Figure 4") if "input_len" in entry.column]
    for panel, retriever in zip(published, ("strong", "weak"), strict=True):
        for index, model in enumerate(dict.fromkeys(entry.row for entry in entries)):
            points = _points(e for e in entries if e.row == model and e.column.startswith(retriever))
            panel.plot(*zip(*points, strict=True), label=model, **_look(index))
        panel.set_title(f"{retriever} retriever ({PUBLISHED}, p. 7)")
        panel.set_xlabel("input length (tokens)")
        panel.set_ylabel("mean over 16 tasks (%)")
    published[0].legend()


def _quality_ours(panel: Axes, beside: Axes, evidence: Evidence) -> None:
    records = [r for r in evidence.all(COMPARED, "same_relation") if r.passages == PASSAGES and "em" in r.metrics]
    names = variants(records)
    records.sort(key=lambda r: row_order(Row(system=r.system, variant=names[r.path], passages=r.passages)))
    raced = [(record, race) for record in records if (race := evidence.race(record))]
    for index, (record, race) in enumerate(raced):
        times = race.timings["ttft_s"]
        median = 1e3 * times["median"]
        title = SYSTEMS.get(record.system, record.system)
        variant = names[record.path]
        x = [[median - 1e3 * times["p10"]], [1e3 * times["p90"] - median]]
        _scores(panel, [median], [record], f"{title} ({variant})" if variant else title, index, xerr=x)
    _or_empty(panel, raced, f"No race of the experiment {COMPARED}: `refrag-bench run tiny` makes one.")
    panel.set_title(f"Same relation ({MEASURED})\n{WORLD}", fontsize=8)
    panel.set_xlabel("TTFT, passages ready (ms; median, p10 to p90)")
    panel.set_ylabel("exact match (%; 95 % interval)")
    panel.set_ylim(0, 105)
    beside.set_axis_off()
    if legend := panel.get_legend():
        legend.remove()
        beside.legend(*panel.get_legend_handles_labels(), loc="upper left", title="ours", fontsize=8)


# --- Figure 6


def curriculum(panels: Sequence[Axes], ledger: Ledger, _: Evidence) -> None:
    """The mixture of numbers of chunks in every stage: ours generated, the paper's shares of its Table 8."""
    mixtures = build_curriculum("paper", MULTIPLIERS[-1]).mixtures
    generated = {n: [100 * mix[i] / sum(mix) for mix in mixtures] for i, n in enumerate(MULTIPLIERS)}
    stages = range(1, len(mixtures) + 1)
    printed = {
        n: [float(ledger.derived("Table 8 (derived)", f"{n} x 8", f"Stage {stage} share").value) for stage in stages]
        for n in MULTIPLIERS
    }
    titles = (f"harness/train/curriculum.py ({COMPUTED})", f"Table 8, in percent ({PUBLISHED}, p. 20)")
    for panel, shares, title in zip(panels, (generated, printed), titles, strict=True):
        _stack(panel, shares)
        panel.set_title(title)
    panels[0].set_ylabel("share of the stage's examples (%)")
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", title="chunks")


def _stack(panel: Axes, shares: Mapping[int, Sequence[float]]) -> None:
    from matplotlib import colormaps

    stages = range(1, 1 + len(next(iter(shares.values()))))
    below = [0.0] * len(stages)
    for index, (n, heights) in enumerate(shares.items()):
        colour = colormaps["viridis"](index / (len(shares) - 1))
        panel.bar(stages, heights, bottom=below, color=colour, width=0.8, label=f"{n} x k")
        below = [a + b for a, b in zip(below, heights, strict=True)]
    panel.set_xticks(list(stages))
    panel.set_xlabel("stage")


# --- Figures 10 to 12


def losses(panels: Sequence[Axes], ledger: Ledger, evidence: Evidence) -> None:
    """Training loss of the next-paragraph stage, ours by k on text and on the world."""
    text, apart, world, *published, beside = panels
    name = next((name for name in ON_TEXT if name in evidence.losses), ON_TEXT[-1])
    _loss_ours(text, evidence, name)
    _loss_apart(apart, evidence, name)
    _loss_ours(world, evidence, "k_ablation")
    beside.set_axis_off()
    beside.text(
        0.0,
        0.9,
        textwrap.fill(
            "Ours: the loss of single batches, every ten steps, in nats per predicted token. On text all k see the "
            "same windows, which differ far more than the k do: hence the panel of differences. Published: digitised "
            "curves, log base not stated.",
            48,
        ),
        transform=beside.transAxes,
        fontsize=8,
        va="top",
    )
    figures = ("Figure 10", "Figure 11-left", "Figure 11-right", "Figure 12")
    for panel, table in zip(published, figures, strict=True):
        entries = of(ledger.entries, table=table)
        for index, model in enumerate(dict.fromkeys(entry.row for entry in entries)):
            points = _points(entry for entry in entries if entry.row == model)
            name = model.replace("x", "k = ", 1) if table == "Figure 10" else model
            panel.plot(*zip(*points, strict=True), label=name, color=COLOURS[index], linewidth=1.2)
        panel.set_title(f"{table} ({PUBLISHED}, p. {entries[0].page})")
        panel.set_xlabel("training step")
        panel.set_ylabel("training loss")
        panel.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k")
        panel.legend(fontsize=6)


def _loss_apart(panel: Axes, evidence: Evidence, name: str) -> None:
    """Of each k minus the smallest k, on the same windows."""
    found = evidence.losses.get(name)
    by_k = found.by_k() if found else {}
    least = next(iter(by_k), 0)
    for index, (k, runs) in enumerate(by_k.items()):
        if k != least:
            pairs = zip(runs[0].points, by_k[least][0].points, strict=True)
            points = [(point.step, point.loss - other.loss) for point, other in pairs]
            panel.plot(*zip(*points, strict=True), label=f"k = {k} minus k = {least}", color=COLOURS[index])
    panel.axhline(0, color=COLOURS[0], linewidth=0.8)
    _or_empty(panel, [k for k in by_k if k != least], f"Not measured. It takes {UNLOGGED[ON_TEXT[-1]]}.")
    panel.set_title(f"REFRAG v2, loss above that of k = {least or 8} ({MEASURED})\n{LOSSES[name]}", fontsize=8)
    panel.set_xlabel("training step")
    panel.set_ylabel("difference of losses (nats per token)")


def _loss_ours(panel: Axes, evidence: Evidence, name: str) -> None:
    """Mean over seeds of each k, and every seed as a thin line where there are several."""
    found = evidence.losses.get(name)
    by_k = found.by_k() if found else {}
    for index, (k, runs) in enumerate(by_k.items()):
        steps = [point.step for point in runs[0].points]
        each = [[point.loss for point in run.points] for run in runs]
        mean = [sum(losses) / len(losses) for losses in zip(*each, strict=True)]
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        panel.plot(steps, mean, label=f"k = {k}{seeds}", color=COLOURS[index % len(COLOURS)], linewidth=1.4)
        for losses in each if len(runs) > 1 else ():
            panel.plot(steps, losses, color=COLOURS[index % len(COLOURS)], linewidth=0.5, alpha=0.5)
    _or_empty(panel, by_k, f"Not measured. It takes {UNLOGGED.get(name)}.")
    panel.set_title(f"REFRAG v2 by k ({MEASURED})\n{LOSSES[name]}", fontsize=8)
    panel.set_xlabel("training step")
    panel.set_ylabel("loss of the step's batch (nats per token)")


# --- parts


def _points(entries: Any) -> list[tuple[float, float]]:
    """(x, value) of a published curve, x from the entry's column."""
    found = []
    for entry in entries:
        match = _POINT.search(entry.column)
        assert match is not None, entry.column
        found.append((float(match["x"]), _number(entry)))
    return sorted(found)


def _number(entry: Entry) -> float:
    assert not isinstance(entry.value, str), entry
    return entry.value


def _dodged(panel: Axes, steps: float) -> Any:
    """Beside the point by so many steps, for those that share one."""
    from matplotlib.transforms import ScaledTranslation

    figure = panel.get_figure(root=True)
    assert figure is not None
    return panel.transData + ScaledTranslation(steps * DODGE_PT / 72, 0, figure.dpi_scale_trans)


def _look(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.2,
    }


def _scores(panel: Axes, x: Sequence[float], records: Sequence[Record], name: str, index: int, **options: Any) -> None:
    """Exact match with its interval."""
    found = [record.metrics["em"] for record in records]
    panel.errorbar(
        x,
        [100 * score.mean for score in found],
        yerr=[
            [max(0.0, 100 * (score.mean - score.low)) for score in found],
            [max(0.0, 100 * (score.high - score.mean)) for score in found],
        ],
        label=name,
        capsize=2,
        **_look(index),
        **options,
    )


def _or_empty(panel: Axes, found: Collection[Any], takes: str) -> None:
    """What it would take in the place of a curve, else a legend."""
    if found:
        panel.legend(fontsize=6)
        return
    panel.set_axis_off()
    panel.text(
        0.5,
        0.5,
        textwrap.fill(takes, 44, break_on_hyphens=False),
        ha="center",
        va="center",
        transform=panel.transAxes,
        fontsize=7,
    )


Fill = Callable[["Sequence[Axes]", Ledger, Evidence], None]
# Rows and columns of panels, and who fills them.
FIGURES: Mapping[str, tuple[tuple[int, int], Fill]] = {
    "paper-figure-3": ((2, 4), selection),
    "paper-figure-4": ((1, 4), quality),
    "paper-figure-6": ((1, 2), curriculum),
    "paper-figure-10-12": ((2, 4), losses),
}
