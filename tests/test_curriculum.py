"""The paper's Table 8 by rule, cell by cell, and the schedules of the ablations."""

import csv
from collections import Counter
from random import Random

import pytest
from conftest import PROJECT

from harness.errors import InputError
from harness.train.curriculum import MULTIPLIERS, SCHEDULES, build_curriculum, paper_table8


def printed_table8() -> dict[tuple[int, int], int]:
    with (PROJECT / "results" / "reference" / "table08_curriculum.csv").open() as file:
        return {
            (int(row["row/method"].split()[0]), int(row["column/metric"].split()[-1])): int(row["value"])
            for row in csv.DictReader(file)
            if row["row/method"].endswith("x 8")
            and row["column/metric"].startswith("Stage")
            and row["unit"].startswith("data points")
        }


def test_all_81_cells_are_the_printed_ones() -> None:
    printed = printed_table8()
    ours = {
        (multiplier, stage): count
        for multiplier, row in zip(MULTIPLIERS, paper_table8(), strict=True)
        for stage, count in enumerate(row, start=1)
    }
    assert len(printed) == 81
    assert ours == printed


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("max_chunks", [1, 8, 256])
def test_every_schedule_ends_hard_and_stays_in_range(name: str, max_chunks: int) -> None:
    curriculum, rng = build_curriculum(name, max_chunks), Random(0)
    steps = 3000
    drawn = [curriculum.draw(step, steps, rng) for step in range(steps)]
    assert set(drawn) <= set(range(1, max_chunks + 1))
    assert max(drawn[-100:]) == max_chunks
    stages = [curriculum.stage(step, steps) for step in range(steps)]
    assert stages == sorted(stages)
    assert stages[-1] == len(curriculum.lengths) - 1


def test_the_paper_starts_three_quarters_easy() -> None:
    """Figure 6: 75 % of stage 1 reconstructs one chunk (1,333 of 1,778 data points)."""
    curriculum, rng = build_curriculum("paper", 256), Random(0)
    drawn = Counter(curriculum.draw(0, 42_008, rng) for _ in range(20_000))
    assert drawn[1] / 20_000 == pytest.approx(1333 / 1778, abs=0.01)
    assert curriculum.stage(1777, 42_008) == 0
    assert curriculum.stage(1778, 42_008) == 1


def test_no_curriculum_is_full_length_from_the_start() -> None:
    curriculum = build_curriculum("none", 64)
    assert {curriculum.draw(step, 10, Random(step)) for step in range(10)} == {64}


@pytest.mark.parametrize("max_chunks", [1, 8, 64])
@pytest.mark.parametrize("steps", [1, 16, 1000])
def test_linear_is_v1s_plan(max_chunks: int, steps: int) -> None:
    """The seed document: c = 1 + int((max_chunks - 1) * (t / max(1, total_steps - 1)))."""
    curriculum = build_curriculum("linear", max_chunks)
    planned = [1 + int((max_chunks - 1) * (t / max(1, steps - 1))) for t in range(steps)]
    assert [curriculum.draw(step, steps, Random(0)) for step in range(steps)] == planned


def test_geometric_weights_are_the_seeds() -> None:
    curriculum = build_curriculum("geometric", 4)
    assert curriculum.mixtures == ((1.0, 0.05, 0.025), (0.5, 1.0, 0.05), (0.25, 0.5, 1.0))


def test_bad_names_and_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="valid choices: 3-stage"):
        build_curriculum("cubic", 8)
    with pytest.raises(InputError, match="got 7"):
        build_curriculum("paper", 7)
