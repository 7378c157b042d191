"""How did the loss of trainings fall? Curves by way and seed, as accepted records: ``losses/NAME.csv``.

A line a logged step, with the mean loss of that step's batch (nats a supervised token, as ``harness.train.loop`` logs
it): batches differ, so a single value says little. ``slurm.jobs.losses`` collects the file from the trainings' logs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from harness.errors import InputError

FOLDER = "losses"
HEAD = ("way", "k", "seed", "step", "tokens", "loss", "training", "commit")


class Point(NamedTuple):
    """A logged step: how many were done, decoder tokens so far, and the loss of its batch."""

    step: int
    tokens: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One training of a ``way``; ``training`` names its run folder, ``commit`` the code that trained it."""

    way: str
    k: int
    seed: int
    training: str
    commit: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The curves in the file ``path``."""

    path: Path
    curves: Sequence[Curve]

    def by_k(self) -> Mapping[int, Sequence[Curve]]:
        """The curves of each k, smallest first."""
        return {k: [curve for curve in self.curves if curve.k == k] for k in sorted({curve.k for curve in self.curves})}


def to_csv(curves: Iterable[Curve]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    for curve in curves:
        for point in curve.points:
            writer.writerow([curve.way, curve.k, curve.seed, *point, curve.training, curve.commit])
    return text.getvalue()


def read(path: Path) -> Losses:
    """The file that ``to_csv`` wrote. Raises ``InputError`` where it is damaged."""
    found: dict[tuple[str, int, int, str, str], list[Point]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                key = row["way"], int(row["k"]), int(row["seed"]), row["training"], row["commit"]
                point = Point(int(row["step"]), int(row["tokens"]), float(row["loss"]))
                found.setdefault(key, []).append(point)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no losses of trainings: {error}") from None
    if not found:
        raise InputError(f"{path} holds no losses of trainings: it is empty")
    return Losses(
        path=path,
        curves=[
            Curve(way=way, k=k, seed=seed, training=training, commit=commit, points=points)
            for (way, k, seed, training, commit), points in found.items()
        ],
    )


def read_all(folders: Iterable[Path]) -> dict[str, Losses]:
    """By name, of the first of ``folders`` that has it."""
    found: dict[str, Losses] = {}
    for path in (path for folder in folders for path in sorted(folder.rglob(f"{FOLDER}/*.csv"))):
        if path.stem not in found:
            found[path.stem] = read(path)
    return found
