"""The paper's figures: published curves as digitised, ours as recorded, each in panels of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import PROJECT

from harness.train.curriculum import MULTIPLIERS, paper_table8
from results import paper_figures
from results.evidence import Evidence, read_evidence
from results.ledger import filter as of
from results.ledger import read_ledger
from results.paper_figures import FIGURES, draw
from results.published import Ledger


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return Ledger(read_ledger())


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return read_evidence([PROJECT / "results" / "records"])


def panels_of(name: str, ledger: Ledger, evidence: Evidence) -> list[Any]:
    from matplotlib.figure import Figure

    count, fill = FIGURES[name]
    figure = Figure()
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    fill(panels, ledger, evidence)
    return panels


def points(panel: Any) -> dict[str, list[tuple[float, float]]]:
    return {
        line.get_label(): [tuple(xy) for xy in line.get_xydata()] for line in panel.lines if line.get_label()[0] != "_"
    }


NO_EVIDENCE = Evidence(records=[], journals=[])


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_records_give_the_same_bytes(name: str, ledger: Ledger, evidence: Evidence) -> None:
    import matplotlib as mpl

    pictures = draw(name, ledger, evidence)
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": "mine"}):
        assert draw(name, ledger, evidence) == pictures
    assert b"dc:date" not in pictures["svg"]


@pytest.mark.parametrize("name", FIGURES)
def test_every_panel_says_where_it_is_from(name: str, ledger: Ledger, evidence: Evidence) -> None:
    titles = [panel.get_title() for panel in panels_of(name, ledger, evidence)]
    words = (paper_figures.PUBLISHED, paper_figures.MEASURED, paper_figures.COMPUTED, "(ours)")
    assert all(sum(word in title for word in words) == 1 for title in titles), titles


def test_curves_of_figure_3_are_all_112_published_points(ledger: Ledger, evidence: Evidence) -> None:
    _, *published = panels_of("paper-figure-3", ledger, evidence)
    drawn = sorted(y for panel in published for curve in points(panel).values() for _, y in curve)
    assert drawn == sorted(float(e.value) for e in of(ledger.entries, table="Figure 3"))
    arxiv = points(published[0])["RL"]
    assert arxiv[0] == (4.012, 1.0196)
    assert [x for x, _ in arxiv] == sorted(x for x, _ in arxiv)


def test_selectors_are_drawn_at_the_measured_rate_and_score(ledger: Ledger, evidence: Evidence) -> None:
    from matplotlib.container import ErrorbarContainer

    ours = panels_of("paper-figure-3", ledger, evidence)[0]
    containers = {bar.get_label(): bar for bar in ours.containers if isinstance(bar, ErrorbarContainer)}
    assert list(containers) == list(paper_figures.SELECTORS)
    records = [r for r in evidence.all("tiny-selection", "same_relation") if r.system == "refrag_v2"]
    for name, bar in containers.items():
        chosen = [r for r in records if r.spec["system"]["config"]["select"] == name]
        expected = sorted((r.metrics["effective_rate"].mean, 100 * r.metrics["em"].mean) for r in chosen)
        found = np.asarray(bar.lines[0].get_xydata())
        assert found.ravel().tolist() == pytest.approx(np.asarray(expected).ravel().tolist())
        assert len(found) == 3
        (left, right), (bottom, top) = ours.get_xlim(), ours.get_ylim()
        assert ((left < found[:, 0]) & (found[:, 0] < right)).all(), "a point outside the axes is not seen"
        assert ((bottom < found[:, 1]) & (found[:, 1] < top)).all()


def test_figure_4_has_every_system_that_raced_and_the_published_curves(ledger: Ledger, evidence: Evidence) -> None:
    from matplotlib.container import ErrorbarContainer

    ours, strong, weak = panels_of("paper-figure-4", ledger, evidence)
    bars = [bar for bar in ours.containers if isinstance(bar, ErrorbarContainer)]
    records = [r for r in evidence.all("tiny-systems", "same_relation") if r.passages == 8]
    assert len(bars) == len(records) == 14
    expected = sorted(
        (1e3 * evidence.race(r).timings["ttft_s"]["median"], 100 * r.metrics["em"].mean)  # type: ignore[union-attr]
        for r in records
    )
    found = sorted(tuple(bar.lines[0].get_xydata()[0]) for bar in bars)
    assert np.ravel(found).tolist() == pytest.approx(np.ravel(expected).tolist())
    assert len({bar.get_label() for bar in bars}) == 14
    assert points(strong)["Llama"][1] == (299.9, 53.855)
    assert {len(curve) for panel in (strong, weak) for curve in points(panel).values()} == {5, 9}


def test_figure_6_is_table_8_in_percent(ledger: Ledger, evidence: Evidence) -> None:
    generated, published = panels_of("paper-figure-6", ledger, evidence)
    counts = np.asarray(paper_table8(), dtype=float)
    shares = 100 * counts / counts.sum(0)
    for panel, tolerance in ((generated, 1e-9), (published, 0.005 + 1e-9)):
        heights = np.asarray([[bar.get_height() for bar in row] for row in panel.containers])
        assert heights.shape == (len(MULTIPLIERS), 9)
        assert np.abs(heights - shares).max() <= tolerance


def test_losses_are_the_published_ones_and_ours_say_what_they_take(ledger: Ledger, evidence: Evidence) -> None:
    ours, *published = panels_of("paper-figure-10-12", ledger, evidence)
    assert not ours.lines
    assert "Not measured" in ours.texts[0].get_text()
    drawn = sum(len(curve) for panel in published for curve in points(panel).values())
    tables = ("Figure 10", "Figure 11-left", "Figure 11-right", "Figure 12")
    assert drawn == sum(len(of(ledger.entries, table=table)) for table in tables)


def test_without_records_our_panels_say_how_to_make_them(ledger: Ledger) -> None:
    for name in ("paper-figure-3", "paper-figure-4"):
        ours = panels_of(name, ledger, NO_EVIDENCE)[0]
        assert not ours.containers
        assert "refrag-bench run tiny" in ours.texts[0].get_text().replace("\n", " ")
