"""Is one training's loss curve another's? Two logs, step by step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import provenance
from harness.errors import GateMissed, InputError
from harness.files import write_atomically
from slurm.jobs import Progress
from slurm.jobs.train import TrainJob


@dataclass(frozen=True, kw_only=True)
class CurvesJob:
    """The loss of ``against`` minus that of ``of`` at every logged step, in nats; both are finished trainings.

    Leaves ``comparisons/<name>/curves.json`` below ``runs``. Raises ``GateMissed`` where the largest difference is more
    than ``most``, and ``InputError`` where the two did not log the same steps.
    """

    name: str
    of: TrainJob
    against: TrainJob
    most: float
    runs: Path

    @property
    def title(self) -> str:
        return f"compare two loss curves ({self.name})"

    def run(self, progress: Progress | None = None) -> dict[str, Any]:
        """Compare, and return what ``curves.json`` holds: both losses at every logged step, in nats.

        The file is written before the gate is judged. Raises ``GateMissed`` where the largest difference is more than
        ``most`` or no number, and ``InputError`` where a log is missing, damaged or empty, or the steps differ.
        """
        first, second = (_losses(job.folder / "log.jsonl") for job in (self.of, self.against))
        if first.keys() != second.keys():
            raise InputError(f"expected the same steps in both logs, got {sorted(first)} and {sorted(second)}")
        # A NaN, which compares with nothing, is the largest.
        largest = max((abs(second[step] - first[step]) for step in first), key=lambda gap: (math.isnan(gap), gap))
        document = {
            "name": self.name,
            "steps": [{"step": step, "of": first[step], "against": second[step]} for step in sorted(first)],
            "largest_difference": largest,
            "most": self.most,
            "provenance": provenance.collect("cpu"),
        }
        path = self.runs / "comparisons" / self.name / "curves.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(document, indent=1) + "\n")
        if not largest <= self.most:
            raise GateMissed(
                f"{self.name}: losses differ by up to {largest:.3g} nats; at most {self.most:g} is allowed"
            )
        return document

    def said(self, result: dict[str, Any]) -> str:
        steps = len(result["steps"])
        return f"losses differ by at most {result['largest_difference']:.3g} nats over {steps} logged steps"


def _losses(log: Path) -> Mapping[int, float]:
    return {step: row["loss"] for step, row in read_log(log).items()}


def read_log(log: Path) -> Mapping[int, Mapping[str, Any]]:
    """What a training logged, by step; of a step that was repeated after an interruption the last.

    Raises ``InputError`` without any.
    """
    try:
        rows = [json.loads(line) for line in log.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"no log of a training in {log}: {error}") from error
    if not rows:
        raise InputError(f"no log of a training in {log}: it is empty")
    return {row["step"]: row for row in rows}
