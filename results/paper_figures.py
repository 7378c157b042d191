"""The paper's figures with ours: published curves and measured points each in panels of their own, and labelled.

Drawn like ``figures``: no pyplot, the same bytes every time. The panels of one figure do not share axes where published
and ours are of different models, data or units.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.train.curriculum import MULTIPLIERS, build_curriculum
from results.evidence import Evidence
from results.figures import COLOURS, DODGE_PT, MARKERS, STYLE, pictures
from results.ledger import Entry
from results.ledger import filter as of
from results.published import Ledger
from results.records import Record
from results.tables import SYSTEMS
from results.variants import variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PASSAGES = 8
SELECTION, COMPARED = "tiny-selection", "tiny-systems"
# In the paper's order, so that a selector has one colour in all panels.
SELECTORS = ("policy", "perplexity-desc", "perplexity-asc", "random", "oracle", "none")
PUBLISHED, MEASURED, COMPUTED = "published", "measured", "computed"
WORLD = f"synthetic world, 0.9 M parameters, {PASSAGES} passages"
LOSSES = (
    "Not measured: a training keeps its last loss alone (training.json of a checkpoint). It takes the losses of the "
    "next-paragraph stage at k = 8, 16, 32 and 64, written down every so many steps of `refrag-bench train refrag_v2 "
    "cpt`: minutes of CPU per k at the tiny scale, thousands of H100-hours at the paper's."
)
PANEL_IN = 3.4
_POINT = re.compile(r" @ (?:effective compression |step |input_len=)(?P<x>[\d.]+)x?$")


def draw(name: str, ledger: Ledger, evidence: Evidence) -> dict[str, bytes]:
    """The figure of that name, one of ``FIGURES``, as ``{"png": ..., "svg": ...}``."""
    from matplotlib import style
    from matplotlib.figure import Figure

    panels, fill = FIGURES[name]
    with style.context(STYLE, after_reset=True):
        figure = Figure(figsize=(PANEL_IN * panels, 3.6), layout="constrained")
        fill(list(figure.subplots(1, panels, squeeze=False)[0]), ledger, evidence)
        # Laid out once for both kinds: it is half of the time that drawing takes.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return pictures(figure)


# --- Figure 3


def selection(panels: Sequence[Axes], ledger: Ledger, evidence: Evidence) -> None:
    """Quality against the effective compression rate, by who chooses what is expanded."""
    ours, *published = panels
    _select_ours(ours, evidence)
    entries = of(ledger.entries, table="Figure 3")
    for panel, data in zip(published, ("Arxiv", "Book", "PG19", "ProofPile"), strict=True):
        for index, policy in enumerate(dict.fromkeys(entry.row for entry in entries)):
            points = _points(entry for entry in entries if entry.row == policy and entry.column.startswith(data))
            panel.plot(*zip(*points, strict=True), label=policy, **_look(index))
        panel.set_title(f"{data} ({PUBLISHED}, p. 6)")
        panel.set_xlabel("effective compression rate")
        panel.set_ylabel("log-perplexity")
    published[0].legend()


def _select_ours(panel: Axes, evidence: Evidence) -> None:
    records = [
        r for r in evidence.all(SELECTION, "same_relation") if r.system == "refrag_v2" and r.passages == PASSAGES
    ]
    for index, select in enumerate(SELECTORS):
        chosen = [r for r in records if r.spec["system"]["config"]["select"] == select and "em" in r.metrics]
        chosen.sort(key=lambda r: r.metrics["effective_rate"].mean)
        if chosen:
            rates = [r.metrics["effective_rate"].mean for r in chosen]
            _scores(panel, rates, chosen, select, index, transform=_dodged(panel, index - (len(SELECTORS) - 1) / 2))
    if shown := [r for r in records if r.spec["system"]["config"]["select"] in SELECTORS and "em" in r.metrics]:
        # Shifted points do not widen the axes by themselves.
        rates = [r.metrics["effective_rate"].mean for r in shown]
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlim(min(rates) / 1.25, 1.25 * max(rates))
        scores = [r.metrics["em"] for r in shown]
        panel.set_ylim(100 * min(s.low for s in scores) - 0.5, 100 * max(s.high for s in scores) + 0.5)
    _or_empty(panel, shown, f"No record of the experiment {SELECTION}: `refrag-bench run tiny` makes them.")
    panel.set_title(f"Same relation ({MEASURED})\n{WORLD}", fontsize=8)
    panel.set_xlabel("effective compression rate (k = 8, 16, 32)")
    panel.set_ylabel("exact match (%)")


# --- Figure 4


def quality(panels: Sequence[Axes], ledger: Ledger, evidence: Evidence) -> None:
    """Quality against the time to the first token; the paper has tokens of input on that axis."""
    ours, *published = panels
    _quality_ours(ours, evidence)
    entries = [entry for entry in of(ledger.entries, table="Figure 4") if "input_len" in entry.column]
    for panel, retriever in zip(published, ("strong", "weak"), strict=True):
        for index, model in enumerate(dict.fromkeys(entry.row for entry in entries)):
            points = _points(e for e in entries if e.row == model and e.column.startswith(retriever))
            panel.plot(*zip(*points, strict=True), label=model, **_look(index))
        panel.set_title(f"{retriever} retriever ({PUBLISHED}, p. 7)")
        panel.set_xlabel("input length (tokens)")
        panel.set_ylabel("mean over 16 tasks (%)")
    published[0].legend()


def _quality_ours(panel: Axes, evidence: Evidence) -> None:
    records = [r for r in evidence.all(COMPARED, "same_relation") if r.passages == PASSAGES and "em" in r.metrics]
    records.sort(key=lambda r: (list(SYSTEMS).index(r.system) if r.system in SYSTEMS else len(SYSTEMS), str(r.path)))
    names = variants(records)
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
    panel.set_xlabel("TTFT, passages ready (ms; p10 to p90)")
    panel.set_ylabel("exact match (%)")
    panel.set_ylim(0, 105)
    if raced:
        panel.legend(fontsize=5)


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


def losses(panels: Sequence[Axes], ledger: Ledger, _: Evidence) -> None:
    """Training loss of the next-paragraph stage."""
    ours, *published = panels
    figures = ("Figure 10", "Figure 11-left", "Figure 11-right", "Figure 12")
    for panel, table in zip(published, figures, strict=True):
        entries = of(ledger.entries, table=table)
        for index, model in enumerate(dict.fromkeys(entry.row for entry in entries)):
            points = _points(entry for entry in entries if entry.row == model)
            panel.plot(*zip(*points, strict=True), label=model, color=COLOURS[index], linewidth=1.2)
        panel.set_title(f"{table} ({PUBLISHED}, p. {entries[0].page})")
        panel.set_xlabel("step")
        panel.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k")
        panel.legend(fontsize=6)
    published[0].set_ylabel("training loss")
    ours.set_title("REFRAG v2 by k (ours)")
    _or_empty(ours, (), LOSSES)


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


def _or_empty(panel: Axes, found: Sequence[Any], takes: str) -> None:
    """What it would take in the place of a curve, else a legend."""
    if found:
        panel.legend(fontsize=6)
        return
    panel.set_axis_off()
    panel.text(0.5, 0.5, textwrap.fill(takes, 44), ha="center", va="center", transform=panel.transAxes, fontsize=7)


Fill = Callable[["Sequence[Axes]", Ledger, Evidence], None]
FIGURES: Mapping[str, tuple[int, Fill]] = {
    "paper-figure-3": (5, selection),
    "paper-figure-4": (3, quality),
    "paper-figure-6": (2, curriculum),
    "paper-figure-10-12": (5, losses),
}
