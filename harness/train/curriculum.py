"""How hard the examples of a stage are: the mixture over numbers of chunks, and how it moves through training.

Difficulty is the number of chunks L that are reconstructed (or read) together: 1, 2, 4, ... 256. The paper trains
easy first and shifts the mixture over nine stages (arXiv:2509.01092v2, section 4 and Table 8). Its table is printed
as counts of data points, 42,000 in all, far fewer than 20 B tokens hold; so it is used as a mixture and as relative
stage lengths, never as absolute counts.

A schedule is a list of stages; a stage gives each multiplier its weight. The seed document tells of other schedules,
kept for the ablations and named after what it says of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from harness.errors import InputError, unknown

MULTIPLIERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
N_STAGES = 9

# Table 8 by rule: row j (2^j chunks) is a geometric sequence with this first term and this sum over the nine stages.
_TOTALS = (2000, 2000, 2000, 4000, 4000, 4000, 8000, 8000, 8000)
_EASIEST_FIRST = 4000 / 3


def paper_table8() -> list[list[int]]:
    """The paper's Table 8 (p. 20): 9 rows of multipliers 1..256 by 9 stages, as printed counts.

    Row j starts at floor(4000/3 / 4^j), at least 1, and grows by the constant ratio that gives its total; cells are
    the rounded terms. Reproduces all 81 printed cells.
    """
    rows = []
    for row, total in enumerate(_TOTALS):
        first = max(1, int(_EASIEST_FIRST / 4**row))
        ratio = _ratio(first, total)
        rows.append([round(first * ratio**stage) for stage in range(N_STAGES)])
    return rows


def _ratio(first: int, total: int) -> float:
    """r in (0, 10) with first * (1 + r + ... + r^8) = total, which grows with r: halved until two floats are left.

    By hand, since importing scipy's root finder takes longer than all nine ratios, and results draws with them.
    """
    low, high = 0.0, 10.0
    while low < (middle := (low + high) / 2) < high:
        if first * sum(middle**stage for stage in range(N_STAGES)) < total:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Stages in order: ``lengths[i]`` is stage i's share of the steps, ``mixtures[i]`` its weights by multiplier."""

    name: str
    multipliers: tuple[int, ...]
    lengths: tuple[float, ...]
    mixtures: tuple[tuple[float, ...], ...]

    def stage(self, step: int, steps: int) -> int:
        """The stage that 0-based ``step`` of ``steps`` falls into."""
        done = sum(self.lengths) * (step / max(1, steps - 1))
        return next((i for i, end in enumerate(accumulate(self.lengths)) if done < end), len(self.lengths) - 1)

    def draw(self, step: int, steps: int, rng: Random) -> int:
        """The number of chunks of an example at ``step``."""
        return rng.choices(self.multipliers, self.mixtures[self.stage(step, steps)])[0]


SCHEDULES = ("paper", "none", "linear", "geometric", "3-stage", "6-stage")


def build_curriculum(name: str, max_chunks: int) -> Curriculum:
    """The schedule ``name`` over multipliers up to ``max_chunks`` (a power of two, at most 256).

    - ``paper``: Table 8; a shorter maximum keeps its leading rows.
    - ``none``: every example at full length from the first step (the paper's "w/o curriculum").
    - ``linear``: v1's plan, one number of chunks at a time, growing evenly from 1 to the maximum.
    - ``geometric``: v2's approximation in the seed, weights 0.5^(stage - j) below the stage and 0.1 * 0.5^(j - stage)
      above it, equal stage lengths.
    - ``3-stage`` and ``6-stage``: the paper's mixture at evenly spaced columns, for the seed's ablation.
    """
    multipliers = tuple(m for m in MULTIPLIERS if m <= max_chunks)
    if not multipliers or multipliers[-1] != max_chunks:
        raise InputError(f"expected a maximum of {', '.join(map(str, MULTIPLIERS))} chunks, got {max_chunks}")
    n = len(multipliers)
    columns = [column[:n] for column in zip(*paper_table8(), strict=True)]
    match name:
        case "paper":
            return _of_counts(name, multipliers, columns)
        case "3-stage" | "6-stage":
            count = int(name[0])
            picked = [columns[round(i * (N_STAGES - 1) / (count - 1))] for i in range(count)]
            return _of_counts(name, multipliers, picked)
        case "none":
            return Curriculum(name=name, multipliers=(max_chunks,), lengths=(1.0,), mixtures=((1.0,),))
        case "linear":
            every = tuple(range(1, max_chunks + 1))
            alone = tuple(tuple(float(m == only) for m in every) for only in every)
            lengths = (1.0,) * (max_chunks - 1) + (0.0,)  # v1 reaches the maximum at the very last step
            return Curriculum(name=name, multipliers=every, lengths=lengths, mixtures=alone)
        case "geometric":
            weights = tuple(
                tuple(0.5 ** (stage - j) if j <= stage else 0.1 * 0.5 ** (j - stage) for j in range(n))
                for stage in range(n)
            )
            return Curriculum(name=name, multipliers=multipliers, lengths=(1.0,) * n, mixtures=weights)
        case _:
            raise unknown("curriculum", name, SCHEDULES)


def _of_counts(name: str, multipliers: tuple[int, ...], columns: Sequence[Sequence[int]]) -> Curriculum:
    """Stages as long as their share of data points, mixed as their column says; a stage without any is left out."""
    columns = [column for column in columns if sum(column)]
    return Curriculum(
        name=name,
        multipliers=multipliers,
        lengths=tuple(float(sum(column)) for column in columns),
        mixtures=tuple(tuple(float(count) for count in column) for column in columns),
    )
