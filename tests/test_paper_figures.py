"""The paper's figures: published curves as digitised, ours as recorded, each in panels of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PROJECT

from harness.errors import InputError
from harness.train.curriculum import MULTIPLIERS, paper_table8
from results.experiments.expansion import SELECTORS
from results.ledger.entries import filter as of
from results.ledger.entries import read_ledger
from results.records import Record
from results.replication import paper_figures
from results.replication.evidence import RACE, Evidence, read_evidence
from results.replication.losses import Curve, Point, read, to_csv
from results.replication.paper_figures import FIGURES, draw
from results.replication.published import Ledger


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return Ledger(read_ledger())


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return read_evidence([PROJECT / "results" / "records"])


def test_a_part_of_the_evidence_keeps_every_race(evidence: Evidence) -> None:
    """A race belongs to whatever system it timed, not to one experiment."""
    kept = [record for records in evidence.of("no such experiment").records for record in records]
    assert kept == [record for records in evidence.records for record in records if record.suite == RACE] != []


def panels_of(name: str, ledger: Ledger, evidence: Evidence) -> list[Any]:
    from matplotlib.figure import Figure

    (rows, columns), fill = FIGURES[name]
    panels = [*Figure().subplots(rows, columns, squeeze=False).flat]
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
        # Another process is sent that part of the evidence which has to do with the figures.
        assert draw(name, ledger, evidence.of(*paper_figures.EXPERIMENTS)) == pictures
    assert b"dc:date" not in pictures["svg"]


@pytest.mark.parametrize("name", FIGURES)
def test_every_panel_says_where_it_is_from(name: str, ledger: Ledger, evidence: Evidence) -> None:
    panels = panels_of(name, ledger, evidence)
    titles = [panel.get_title() for panel in panels if panel.axison or panel.get_title()]
    assert len(titles) >= 2
    words = (paper_figures.PUBLISHED, paper_figures.MEASURED, paper_figures.COMPUTED, "(ours)")
    assert all(sum(word in title for word in words) == 1 for title in titles), titles


def test_curves_of_figure_3_are_all_112_published_points(ledger: Ledger, evidence: Evidence) -> None:
    published = panels_of("paper-figure-3", ledger, evidence)[4:]
    drawn = sorted(y for panel in published for curve in points(panel).values() for _, y in curve)
    assert drawn == sorted(float(e.value) for e in of(ledger.entries, table="Figure 3"))
    arxiv = points(published[0])["RL"]
    assert arxiv[0] == (4.012, 1.0196)
    assert [x for x, _ in arxiv] == sorted(x for x, _ in arxiv)


def test_selectors_are_drawn_at_the_measured_rate_and_score_of_every_k(ledger: Ledger, evidence: Evidence) -> None:
    from matplotlib.container import ErrorbarContainer

    panels = panels_of("paper-figure-3", ledger, evidence)[:3]
    records = [r for r in evidence.all("expansion", "same_relation") if r.system == "refrag_v2"]
    drawn: set[tuple[float, float]] = set()
    for panel, k in zip(panels, (8, 16, 32), strict=True):
        assert f"k = {k} " in panel.get_title()
        containers = {bar.get_label(): bar for bar in panel.containers if isinstance(bar, ErrorbarContainer)}
        assert list(containers) == list(SELECTORS)
        for name, bar in containers.items():
            chosen = [r for r in records if (c := config(r))["k"] == k and c["select"] in (name, "none", "all")]
            expected = sorted((r.metrics["effective_rate"].mean, 100 * r.metrics["em"].mean) for r in chosen)
            found = np.asarray(bar.lines[0].get_xydata())
            assert found.ravel().tolist() == pytest.approx(np.asarray(expected).ravel().tolist())
            drawn |= set(map(tuple, found))
            (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
            assert ((left < found[:, 0]) & (found[:, 0] < right)).all(), "a point outside the axes is not seen"
            assert ((bottom < found[:, 1]) & (found[:, 1] < top)).all()
    assert drawn == {(r.metrics["effective_rate"].mean, 100 * r.metrics["em"].mean) for r in records}


def config(record: Record) -> Any:
    return record.spec["system"]["config"]


def test_figure_4_has_every_system_that_raced_and_the_published_curves(ledger: Ledger, evidence: Evidence) -> None:
    from matplotlib.container import ErrorbarContainer

    ours, _, strong, weak = panels_of("paper-figure-4", ledger, evidence)
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


def losses_of(tmp_path: Path, name: str, curves: dict[tuple[int, int], list[float]]) -> Evidence:
    """Evidence of trainings by k and seed, with the loss of every tenth step."""
    found = [
        Curve(
            way=f"k={k}", k=k, seed=seed, training=f"t{k}-{seed}", commit="c0ffee",
            points=[Point(10 * i, 100 * i, loss) for i, loss in enumerate(losses, start=1)],
        )
        for (k, seed), losses in curves.items()
    ]  # fmt: skip
    path = tmp_path / "losses" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_csv(found))
    evidence = read_evidence([tmp_path])
    assert evidence.losses[name].curves == found, "read as written"
    return evidence


def test_losses_are_the_published_ones_and_ours_say_what_they_take(ledger: Ledger) -> None:
    text, apart, world, *published, beside = panels_of("paper-figure-10-12", ledger, NO_EVIDENCE)
    for panel, command in ((text, "run perplexity"), (apart, "run perplexity"), (world, "run k_ablation")):
        assert not points(panel)
        assert "Not measured. It takes" in panel.texts[0].get_text()
        assert command in panel.texts[0].get_text().replace("\n", " ")
    assert not beside.axison
    drawn = sum(len(curve) for panel in published for curve in points(panel).values())
    tables = ("Figure 10", "Figure 11-left", "Figure 11-right", "Figure 12")
    assert drawn == sum(len(of(ledger.entries, table=table)) for table in tables)


def test_losses_on_text_are_drawn_and_set_against_the_smallest_k(ledger: Ledger, tmp_path: Path) -> None:
    found = losses_of(tmp_path, "perplexity-quarter", {(16, 0): [4.5, 4.25], (8, 0): [4.0, 4.125]})
    text, apart, world, *_ = panels_of("paper-figure-10-12", ledger, found)
    assert points(text) == {"k = 8": [(10, 4.0), (20, 4.125)], "k = 16": [(10, 4.5), (20, 4.25)]}
    assert points(apart) == {"k = 16 minus k = 8": [(10, 0.5), (20, 0.125)]}
    assert "a quarter of the steps" in text.get_title()
    assert not points(world)
    whole = losses_of(tmp_path, "perplexity", {(8, 0): [3.0, 2.0]})
    assert points(panels_of("paper-figure-10-12", ledger, whole)[0]) == {"k = 8": [(10, 3.0), (20, 2.0)]}


def test_losses_of_several_seeds_are_drawn_as_their_mean(ledger: Ledger, tmp_path: Path) -> None:
    found = losses_of(tmp_path, "k_ablation", {(8, 0): [1.0, 0.5], (8, 1): [2.0, 0.25], (8, 2): [3.0, 0.75]})
    world = panels_of("paper-figure-10-12", ledger, found)[2]
    assert points(world) == {"k = 8, 3 seeds": [(10, 2.0), (20, 0.5)]}
    assert len(world.lines) == 1 + 3


@pytest.mark.parametrize("text", ["", "way,k\nk=8,8\n", "no table"])
def test_damaged_losses_are_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "k_ablation.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"k_ablation.csv holds no losses of trainings"):
        read(path)


def test_without_records_our_panels_say_how_to_make_them(ledger: Ledger) -> None:
    for name, experiment in (("paper-figure-3", "expansion"), ("paper-figure-4", "tiny")):
        ours = panels_of(name, ledger, NO_EVIDENCE)[0]
        assert not ours.containers
        assert f"refrag-bench run {experiment}" in ours.texts[0].get_text().replace("\n", " ")
