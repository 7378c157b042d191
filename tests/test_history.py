"""Scores and speeds over commits: a step is found where it is, and noise is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_checkout import git, root  # noqa: F401  (a fixture)

from harness.cli.main import main
from harness.errors import InputError
from results.gate.history import Point, Series, read, steps
from results.gate.history_figure import draw_history

SPEED = Series(name="lane", kind="speed")


def points(values: list[float], error: float = 0.01) -> list[Point]:
    return [Point(commit=f"c{n}", value=value, error=error, gates=1) for n, value in enumerate(values)]


def test_steps_are_found_where_they_are() -> None:
    rng = np.random.default_rng(0)
    levels = [0.7] * 8 + [0.5] * 6 + [0.9] * 7
    found = steps(SPEED, points([level + float(rng.normal(0, 0.01)) for level in levels]))
    assert [step.commit for step in found] == ["c8", "c14"]
    assert [(step.before, step.after) for step in found][1] == pytest.approx((0.5, 0.9), abs=0.03)
    assert steps(SPEED, points([0.7, 0.5]))[0].commit == "c1", "two points are enough where their errors are known"
    assert steps(SPEED, points([0.7])) == steps(SPEED, []) == []
    assert steps(SPEED, points([0.7] * 5, error=0.0)) == []
    assert [step.commit for step in steps(SPEED, points([0.7] * 3 + [0.6] * 3, error=0.0))] == ["c3"]


def test_noise_is_no_step() -> None:
    rng = np.random.default_rng(1)
    series = [points(rng.normal(0.7, 0.01, 12).tolist()) for _ in range(300)]
    assert sum(bool(steps(SPEED, one)) for one in series) <= 6
    # A machine with moods: the points scatter by ten times what each says of itself.
    moody = [points(rng.normal(0.7, 0.1, 12).tolist()) for _ in range(300)]
    assert sum(bool(steps(SPEED, one)) for one in moody) <= 15


def report(folder: Path, base: str, commit: str, em: tuple[float, float], speed: float, **changes: Any) -> None:
    sides = {name: {"commit": of, "dirty": False} for name, of in (("base", base), ("candidate", commit))}
    verdict = {"cell": "rag", "figure": "em", "n": 200, "base": em[0], "candidate": em[1]}
    ratio = {"ratio": speed, "low": speed / 1.02, "high": speed * 1.02, "n": 240}
    document: dict[str, Any] = {
        "schema_version": 1,
        "suites": "smoke",
        **sides,
        "answers": [verdict, {**verdict, "figure": "decoder_positions"}],
        "times": {"speeds": {"v2": {"ttft": ratio}}},
        "provenance": {"cpu": "a CPU", "device": "cpu"},
    }
    path = folder / "gate" / "gates" / f"{base}-{commit}-1" / "report.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**document, **changes}))


def test_reports_and_accepted_records_become_series(tmp_path: Path) -> None:
    report(tmp_path / "runs", "a", "b", (1.0, 0.99), 2.0)
    report(tmp_path / "runs", "b", "c", (0.99, 0.5), 2.0)
    report(tmp_path / "runs", "c", "d", (0.5, 0.5), 1.0)
    report(tmp_path / "runs", "c", "dirty", (0.5, 0.1), 1.0, candidate={"commit": "d", "dirty": True})
    report(tmp_path / "runs", "c", "other", (0.5, 0.1), 1.0, suites="tiny")
    report(tmp_path / "runs", "c", "elsewhere", (0.5, 0.5), 1.0)
    golden = {
        "schema_version": 1,
        "commit": "e",
        "records": {"rag": {"metrics": {"em": {"mean": 0.5, "n": 200}, "chance": {"mean": 0.1, "n": 200}}}},
        "speeds": {},
        "provenance": {"cpu": "a CPU", "device": "cpu"},
    }
    path = tmp_path / "records" / "gate" / "smoke" / "e.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(golden))
    history = read(tmp_path / "runs", tmp_path / "records", suites="smoke", order=list("zabcde"))
    assert (history.commits, history.left_out) == (list("abcde"), ["elsewhere"])
    score, speed = history.series
    assert (score.name, speed.name) == ("rag: EM (n 200)", "v2: TTFT, cached, a CPU")
    assert [(p.commit, p.value, p.gates) for p in history.series[score]] == [
        ("a", 1.0, 1),
        ("b", 0.99, 2),
        ("c", 0.5, 4),
        ("d", 0.5, 1),
        ("e", 0.5, 1),
    ]
    assert [p.value for p in history.series[speed]] == pytest.approx([math.log(2), math.log(2), 0.0])
    assert [(step.series, step.commit) for step in history.steps] == [(score, "c"), (speed, "d")]
    text = history.text()
    assert "step at c: rag: EM (n 200): 99." in text and "left out, no ancestors: elsewhere" in text
    assert "50.0 step" in text and "1.00x step" in text
    rows = history.as_json()
    assert [row["commit"] for row in rows if row["step_p"]] == ["c", "d"]
    first = rows[0]
    assert float(first["low"]) < float(first["value"]) == 1.0 == float(first["high"])
    drawn = draw_history(history)
    assert drawn["png"].startswith(b"\x89PNG") and b"<svg" in drawn["svg"]
    assert drawn == draw_history(history), "the same bytes again"


def test_where_there_is_nothing_to_show(root: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    nowhere = ["--runs", str(root / "no"), "--records", str(root / "no")]
    for arguments, message in (
        (nowhere, "no gate of suites 'smoke' below"),
        (["--at", "gone", *nowhere], "unknown revision 'gone'"),
        (["--suites", "smok", *nowhere], "unknown suites 'smok' (did you mean 'smoke'?)"),
    ):
        assert main(["history", *arguments]) == 2
        assert message in capsys.readouterr().err
    commit = git(root, "rev-parse", "HEAD").strip()
    report(root / "runs", commit, commit, (1.0, 1.0), 2.0)
    assert main(["history", "--runs", str(root / "runs"), "--out", str(root / "out")]) == 0
    assert capsys.readouterr().out.startswith("history smoke: 1 commits, 0 steps")
    assert sorted(path.name for path in (root / "out").iterdir()) == [
        "history-smoke.csv",
        "history-smoke.png",
        "history-smoke.svg",
    ]
    (root / "runs" / "gate" / "gates" / f"{commit}-{commit}-1" / "report.json").write_text("{")
    with pytest.raises(InputError, match="is no report of a gate, or damaged"):
        read(root / "runs", root / "no", suites="smoke", order=[commit])


def test_a_report_takes_the_place_of_what_it_says_alone(tmp_path: Path) -> None:
    """Where only times were asked for, or of a dirty tree, accepted scores stay; a new cell has one side."""
    ratio = {"ratio": 2.0, "low": 1.9, "high": 2.1, "n": 240}
    golden = {
        "schema_version": 1,
        "commit": "b",
        "records": {"rag": {"metrics": {"em": {"mean": 0.5, "n": 200}}}},
        "speeds": {"v2": {"ttft": ratio}},
        "provenance": {"cpu": "a CPU", "device": "cpu"},
    }
    path = tmp_path / "records" / "gate" / "smoke" / "b.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(golden))
    new = {"cell": "mine", "figure": "em", "n": 200, "base": None, "candidate": 0.25}
    for name, changes in {
        "times": {"answers": []},
        "dirty": {"candidate": {"commit": "b", "dirty": True}},
        "new": {"answers": [new], "times": None},
    }.items():
        runs = tmp_path / name
        report(runs, "a", "b", (1.0, 0.5), 4.0, **changes)
        history = read(runs, tmp_path / "records", suites="smoke", order=list("ab"))
        at_b = {series.name: [p.value for p in points if p.commit == "b"] for series, points in history.series.items()}
        assert at_b["rag: EM (n 200)"] == [0.5], name
        assert at_b["v2: TTFT, cached, a CPU"] == pytest.approx([math.log(4.0 if name == "times" else 2.0)]), name
        assert at_b.get("mine: EM (n 200)") == ([0.25] if name == "new" else None)
