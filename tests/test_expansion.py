"""Curves by share: each point from its record, at the share that was really expanded; the same bytes every time."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from test_results import write_record

from results.experiments import dots_figure, expansion, expansion_figure, passages_figure
from results.experiments.accuracy import Table, build_table
from results.experiments.draw import draw, picture_of
from results.records import read_records

CHUNKS = {8: 32, 16: 16}
ENDS = {(0.0, "none"): 0.5, (1.0, "all"): 0.9}
POINTS = {(0.05, "policy"): 0.6, (0.2, "policy"): 0.7, (0.05, "first"): 0.55, (0.2, "first"): 0.65}


def interval(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.04, "high": mean + 0.03, "n": 500, "method": "wilson"}


def write(folder: Path, run_id: str, k: int, share: float, select: str, em: float, **changes: Any) -> Path:
    chunks = CHUNKS[k]
    expanded = round(share * chunks)
    counts = {
        "chunks": chunks,
        "chunks_expanded": expanded,
        "effective_rate": k / (1 + (k - 1) * expanded / chunks),
        "decoder_positions": 18 + chunks + expanded * (k - 1),
    }
    metrics = {"em": interval(em), "f1": interval(em - 0.1), "oracle_hit": interval(0.1 + share / 2)}
    config = {"k": k, "expand": share, "select": select}
    return write_record(
        folder,
        run_id,
        **{
            "experiments": ["shares"],
            "spec.suite.name": "same_relation",
            "spec.system.name": "refrag_v2",
            "spec.system.config": config,
            "metrics": metrics | {name: interval(count) for name, count in counts.items()},
        }
        | changes,
    )


@pytest.fixture
def records(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    for k in CHUNKS:
        for place, ((share, select), em) in enumerate((ENDS | POINTS).items()):
            write(folder, f"k{k}-{place}", k, share, select, em + k / 1000)
    write_record(folder, "rag", **{"experiments": ["shares"], "spec.suite.name": "same_relation"})
    return folder


def table_of(folder: Path, metric: str = "em") -> Table:
    return build_table(read_records([folder]), experiment="shares", metric=metric)


def test_a_curve_is_one_selector_between_the_ends_that_all_share(records: Path) -> None:
    curves = expansion.curves(table_of(records))
    assert [(curve.k, curve.select) for curve in curves] == [(8, "policy"), (8, "first"), (16, "policy"), (16, "first")]
    for curve in curves:
        of = {share: em for (share, select), em in (ENDS | POINTS).items() if select in ("none", "all", curve.select)}
        found = {share: record.metrics["em"].mean for share, record in curve.records.items()}
        assert list(found) == [0.0, 0.05, 0.2, 1.0]
        assert found == {share: pytest.approx(em + curve.k / 1000) for share, em in of.items()}


@pytest.mark.parametrize("left", ["one share", "two runs at one point", "other systems"])
def test_what_is_no_curve_is_drawn_as_any_other_table(tmp_path: Path, left: str) -> None:
    folder = tmp_path / "records"
    write(folder, "a", 8, 0.0, "none", 0.5)
    if left != "other systems":
        write(folder, "b", 8, 0.05, "policy", 0.6)
    if left == "two runs at one point":
        write(folder, "c", 8, 0.2, "policy", 0.6)
        assert expansion.curves(table_of(folder)), "until there is a second run of one point"
        write(folder, "d", 8, 0.2, "policy", 0.7, **{"spec.passages": 4})
    table = table_of(folder)
    assert expansion.curves(table) == []
    assert expansion.grids(table, tmp_path) == []
    drawn = dots_figure if left == "one share" else passages_figure  # two rows at one number of passages
    assert picture_of(table) == drawn.draw_figure(table)
    _, files = draw([folder], tmp_path / "out", experiments=["shares"])
    assert not [path for path in files if "shares-shares" in path.name]


def panels(records: Path, monkeypatch: pytest.MonkeyPatch, metric: str = "em") -> list[Any]:
    """The axes as they were drawn."""
    kept: list[Any] = []

    def keep(figure: Any) -> dict[str, bytes]:
        kept.extend(figure.axes)
        return {}

    monkeypatch.setattr(expansion_figure, "pictures", keep)
    expansion_figure.draw_figure(expansion.curves(table_of(records, metric)), metric)
    return kept


@pytest.mark.parametrize("metric", ["em", "f1"])
def test_a_point_stands_at_the_share_really_expanded_with_its_interval(
    records: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    first, second = panels(records, monkeypatch, metric)
    assert [first.get_title(), second.get_title()] == ["k = 8", "k = 16"]
    shares = {8: [0, 100 * 2 / 32, 100 * 6 / 32, 100], 16: [0, 100 * 1 / 16, 100 * 3 / 16, 100]}
    for k, panel in ((8, first), (16, second)):
        bars = {bar.get_label(): bar for bar in panel.containers}
        assert list(bars) == ["policy", "first"]
        less = 0.1 if metric == "f1" else 0.0
        for select, bar in bars.items():
            line, _, (segments,) = bar
            chosen = [POINTS[share, select] for share in (0.05, 0.2)]
            means = [100 * (em + k / 1000 - less) for em in (0.5, *chosen, 0.9)]
            assert line.get_xdata() == pytest.approx(shares[k])
            assert line.get_ydata() == pytest.approx(means)
            ends = [(low[1], high[1]) for low, high in segments.get_segments()]
            assert ends == [pytest.approx((mean - 4, mean + 3)) for mean in means]
            low, high = panel.get_ylim()
            assert all(low < bottom and top < high for bottom, top in ends), "nothing is cut off"


def test_the_same_records_give_the_same_bytes(records: Path) -> None:
    import matplotlib as mpl

    table = table_of(records)
    drawn = picture_of(table)
    with mpl.rc_context({"font.size": 30, "svg.hashsalt": "mine"}):
        assert picture_of(table) == drawn
    assert drawn["png"].startswith(b"\x89PNG") and b"dc:date" not in drawn["svg"]
    assert drawn != passages_figure.draw_figure(table)


def test_the_grids_hold_score_hit_and_what_a_share_is(records: Path, tmp_path: Path) -> None:
    write(records, "k8-more", 8, 0.1, "policy", 0.61)  # a share that k = 16 was not asked for
    score, hit, shares = expansion.grids(table_of(records), tmp_path)
    assert list(score.head) == list(hit.head) == ["Expanded by", "0 %", "5 %", "10 %", "20 %", "100 %"]
    assert [line[0] for line in score.lines] == ["k=8, policy", "k=8, first", "k=16, policy", "k=16, first"]
    assert score.lines[0][2] == "[60.8](records/same_relation/refrag_v2/k8-2/record.json) [56.8, 63.8]"
    assert score.lines[3][5] == "[91.6](records/same_relation/refrag_v2/k16-1/record.json) [87.6, 94.6]"
    assert score.lines[1][3] == score.lines[2][3] == "-"
    assert hit.lines[0][2].startswith("[12.5](")
    assert shares.lines == [
        ["k=8", "0 of 32, 50 positions, 8.00x", "2 of 32, 64 positions, 5.57x", "3 of 32, 71 positions, 4.83x",
         "6 of 32, 92 positions, 3.46x", "32 of 32, 274 positions, 1.00x"],
        ["k=16", "0 of 16, 34 positions, 16.00x", "1 of 16, 49 positions, 8.26x", "-",
         "3 of 16, 79 positions, 4.20x", "16 of 16, 274 positions, 1.00x"],
    ]  # fmt: skip


def test_the_csv_has_every_point_once(records: Path, tmp_path: Path) -> None:
    table = table_of(records)
    rows = list(csv.DictReader(io.StringIO(expansion.to_csv(table))))
    assert len(rows) == 2 * len(ENDS | POINTS)
    assert len({row["run_id"] for row in rows}) == len(rows)
    (row,) = (row for row in rows if (row["k"], row["select"], row["share"]) == ("16", "policy", "0.2"))
    assert (float(row["chunks_expanded"]), float(row["chunks"])) == (3, 16)
    assert (float(row["mean"]), float(row["low"]), float(row["high"])) == pytest.approx((0.716, 0.676, 0.746))
    assert float(row["oracle_hit"]) == pytest.approx(0.2)
    _, files = draw([records], tmp_path, experiments=["shares"])
    assert files[tmp_path / "tables" / "shares-shares.csv"].decode() == expansion.to_csv(table)
    assert {path.name for path in files} == {
        *(f"shares.{kind}" for kind in ("md", "csv", "tex", "png", "svg")),
        *(f"shares-shares.{kind}" for kind in ("md", "csv", "tex")),
    }


def test_a_record_that_does_not_say_what_was_expanded_is_in_no_curve(records: Path) -> None:
    before = expansion.curves(table_of(records))
    write(records, "old", 8, 0.0, "none", 0.3, **{"spec.system.config": {"k": 8}})
    assert expansion.curves(table_of(records)) == before
