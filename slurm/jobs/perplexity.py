"""Measure the log-perplexity of one system at one context length: one row of a table, at every length of output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.catalog import find_system
from harness.config import plain
from harness.data.text import open_text
from harness.device import open_device
from harness.errors import InputError
from harness.metrics import METRIC_VERSION
from harness.prompts import PROMPT_VERSION
from harness.protocol import LogLikelihood
from harness.record import DecodeSpec, RunRecord, RunSpec, SystemSpec, experiment_name
from harness.train.export import read_training
from slurm.jobs import Progress
from slurm.jobs.system import Opened, open_system, with_likelihood

if TYPE_CHECKING:
    import torch

    from suites.perplexity import PerplexitySuite


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A cell of a table, ready to run."""

    spec: RunSpec
    suite: PerplexitySuite
    system: LogLikelihood[Any]
    notes: tuple[str, ...]
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class PerplexityJob:
    """A system with a checkpoint on a set of a prepared ``text``, by the protocol of ``suites.perplexity``.

    With ``again`` it is that of ``suites.reconstruction``: the context itself is to be foretold.
    """

    system: str
    checkpoint: str
    text: Path
    set: str
    context: int
    runs: Path
    output: int
    outputs: tuple[int, ...]
    longest: int
    limit: int | None = None
    batch_size: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)
    experiment: str = "adhoc"
    again: bool = False

    @property
    def title(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.options.items())
        again = " read back" if self.again else ""
        return f"{self.system}{f' ({settings})' if settings else ''}, {self.context} tokens of {self.set}{again}"

    def run(self, progress: Progress | None = None) -> RunRecord:
        """Score from where the journal ends; returns the record, old or new."""
        scored = self.open()
        from harness.likelihood import measure

        return measure(
            scored.spec,
            scored.suite,
            scored.system,
            self.runs,
            experiment=self.experiment,
            notes=scored.notes,
            device=scored.device,
            progress=progress,
        )

    def open(self) -> Scored:
        """All that the cell is made of, and what identifies it.

        Raises ``InputError`` for a system that has no likelihood, and for one whose tokens are not the text's.
        """
        from suites.perplexity import PerplexitySuite
        from suites.reconstruction import ReconstructionSuite

        experiment_name(self.experiment)
        find_system(self.system)
        suite = (ReconstructionSuite if self.again else PerplexitySuite)(
            text=open_text(self.text),
            set=self.set,
            context=self.context,
            output=self.output,
            outputs=self.outputs,
            longest=self.longest,
            limit=self.limit,
        )
        training = read_training(Path(self.checkpoint))
        if training.get("data") != suite.text.name:
            raise InputError(
                f"{self.checkpoint} was trained on {training.get('data', 'nothing known')}; its tokens are not those "
                f"of {suite.text.name}"
            )
        opened = _opened(self.system, self.checkpoint, tuple(self.options.items()), self.dtype, self.device)
        system = with_likelihood(self.system, opened.system)
        spec = RunSpec(
            suite=suite.spec,
            retrieval=None,
            passages=self.context // suite.spec.passage,
            system=SystemSpec(name=self.system, config=plain(opened.config), checkpoint=opened.checkpoint),
            decode=DecodeSpec(
                max_new_tokens=self.output, batch_size=self.batch_size, device=self.device, dtype=self.dtype
            ),
            seed=0,
            prompt_version=PROMPT_VERSION,
            metric_version=METRIC_VERSION,
        )
        return Scored(
            spec=spec,
            suite=suite,
            system=system,
            notes=_notes(training, suite),
            device=open_device(self.device),
        )

    def said(self, result: RunRecord) -> str:
        figures = [
            f"P{n} {m['mean']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"
            for n in self.outputs
            if (m := result.metrics.get(f"log_perplexity_{n}"))
        ]
        return f"{'  '.join(figures)}  n={result.n_examples}" + (
            f"  {result.n_errors} windows raised errors" if result.n_errors else ""
        )


@lru_cache(maxsize=1)  # cells of one system follow one another, and opening it can take longer than a cell
def _opened(system: str, checkpoint: str, options: tuple[tuple[str, Any], ...], dtype: str, device: str) -> Opened:
    return open_system(system, checkpoint, dict(options), dtype=dtype, device=device)


def _notes(training: Mapping[str, Any], suite: PerplexitySuite) -> tuple[str, ...]:
    """Of the windows: how many documents they come from, and how many gave none."""
    documents = len({window.document for window in suite.windows})
    return (
        f"{suite.set}: {len(suite.windows)} windows of {documents} documents; {suite.too_short} documents were shorter "
        f"than {suite.longest + suite.output} tokens and gave none.",
        f"{training['scale']}: {training['tokens']:,} decoder tokens in {training['lineage'][-1]}.",
    )
