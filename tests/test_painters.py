"""Processes that draw figures: the bytes of the one that asks, its errors, and none where they would not pay."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from results.ledger.entries import read_ledger
from results.painters import AT_MOST, WORTH_PROCESSES, Drawing, drawn, painters
from results.replication import paper_figures
from results.replication.evidence import Evidence
from results.replication.published import Ledger


def kinds(number: int) -> dict[str, bytes]:
    return {"png": str(os.getpid()).encode(), "svg": str(number).encode()}


def refusing() -> dict[str, bytes]:
    raise ValueError("nothing to draw")


def test_other_processes_draw_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    nothing_measured = Evidence(records=[], journals=[])
    name = "paper-figure-6"
    figure = partial(paper_figures.draw, name, Ledger(read_ledger()), nothing_measured)
    numbers: dict[Path, Drawing] = {tmp_path / f"a.{number}": partial(kinds, number) for number in range(3)}
    with painters(WORTH_PROCESSES) as found:
        assert found is not None
        assert drawn({tmp_path / name: figure}, found) == {}
        assert drawn(numbers, found) == {}
        files = found.files()
    assert list(files) == [
        tmp_path / f"{stem}.{kind}" for stem in (name, "a.0", "a.1", "a.2") for kind in ("png", "svg")
    ]
    assert {path: files[path] for path in list(files)[:2]} == drawn({tmp_path / name: figure}, None)
    assert [files[tmp_path / f"a.{number}.svg"] for number in range(3)] == [b"0", b"1", b"2"]
    assert str(os.getpid()).encode() not in files.values()


def test_what_a_drawing_raises_is_raised_where_its_files_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with painters(WORTH_PROCESSES) as found:
        assert found is not None
        found.begin({tmp_path / "a": refusing})
        with pytest.raises(ValueError, match="nothing to draw"):
            found.files()
    with pytest.raises(ValueError, match="nothing to draw"):
        drawn({tmp_path / "a": refusing}, None)


@pytest.mark.parametrize(
    ("processors", "figures", "processes"),
    [(1, 100, None), (2, WORTH_PROCESSES - 1, None), (2, WORTH_PROCESSES, 2), (128, 100, AT_MOST)],
)
def test_how_many_processes(
    monkeypatch: pytest.MonkeyPatch, processors: int, figures: int, processes: int | None
) -> None:
    started: list[int] = []

    class Pool:
        def __init__(self, number: int, context: object) -> None:
            started.append(number)

        def submit(self, *work: object) -> None: ...

        def shutdown(self, *, cancel_futures: bool) -> None: ...

    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    monkeypatch.setattr("results.painters.ProcessPoolExecutor", Pool)
    with painters(figures) as found:
        assert (found is None) == (processes is None)
    assert started == ([] if processes is None else [processes])
