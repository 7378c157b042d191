"""Evaluate one system on one suite: one cell of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.catalog import ASKED_SUITES, MADE_SUITES, SUITES, find, find_system
from harness.config import plain
from harness.data.sources import DataRoot
from harness.data.world import is_world
from harness.device import open_device
from harness.errors import InputError
from harness.metrics import METRIC_VERSION
from harness.prompts import PROMPT_VERSION
from harness.protocol import Suite, System
from harness.record import DecodeSpec, RunRecord, RunSpec, SystemSpec, experiment_name
from harness.train.export import read_training
from results.records import PASSAGES_READ, read_of
from slurm.jobs import Progress
from slurm.jobs.data import RetrieveJob
from slurm.jobs.system import open_system, read_settings

if TYPE_CHECKING:
    import torch

    from harness.model.load import Decoder

WORLD_READER = "The decoder was trained on the synthetic world alone."
HAND_BUILT = "Its training started from a hand-built match-and-copy circuit (harness/model/circuit_init.py)."
WORLD_ORDER = (
    "Retrieval over the world ranks the right passage first, or nearly: only the same-relation set, where it stands "
    "anywhere, tests whether people are bound to their facts."
)
HEADLINES = {"em": "EM", "rougeL": "ROUGE-L"}  # what is said of a cell, the first that it has
NOT_MEANT = "It has never read natural language: scores near zero on real questions are expected."


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table, ready to run."""

    spec: RunSpec
    suite: Suite
    system: System[Any]
    config: Any
    decoder: Decoder
    notes: tuple[str, ...]
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """One cell of a table: a system with a checkpoint on a suite with a number of passages.

    ``asked`` are the settings of a suite that has some of its own. One that makes its questions from them
    (``MADE_SUITES``) makes its passages too: there ``passages`` stays 0.
    """

    system: str
    suite: str
    checkpoint: str
    runs: Path
    passages: int = 0
    asked: Mapping[str, Any] = field(default_factory=dict)
    data: Path | None = None
    retrieval: Path | RetrieveJob | None = None
    limit: int | None = None
    max_new_tokens: int = 8
    batch_size: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)
    chunk_cache: Path | None = None
    shots: int = 0
    experiment: str = "adhoc"

    @property
    def title(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.options.items())
        system = f"{self.system} ({settings})" if settings else self.system
        asked = "".join(f", {name} {value}" for name, value in self.asked.items())
        if self.suite in MADE_SUITES:
            return f"{system} on {self.suite}{asked}"
        return f"{system} on {self.suite}{asked}, {f'{self.passages} passages' if self.passages else 'closed-book'}"

    def run(self, progress: Progress | None = None) -> RunRecord:
        """Evaluate from where the journal ends; returns the record, old or new."""
        cell = self.open()
        from harness.run import evaluate

        return evaluate(
            cell.spec,
            cell.suite,
            cell.system,
            self.runs,
            experiment=self.experiment,
            notes=cell.notes,
            device=cell.device,
            progress=progress,
        )

    def open(self) -> Cell:
        """All that the cell is made of, and what identifies it.

        Raises ``InputError`` for counts below 1 (no passages is 0), unknown names and settings, and for data, passages
        or a checkpoint that cannot be had.
        """
        check_counts(passages=self.passages, max_new_tokens=self.max_new_tokens)
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise InputError(
                f"expected a batch and a limit of at least 1 question, got {self.batch_size} and {self.limit}"
            )
        experiment_name(self.experiment)
        find_system(self.system)
        suite, passages, root = self._made() if self.suite in MADE_SUITES else self._found()

        device = open_device(self.device)
        opened = open_system(
            self.system,
            self.checkpoint,
            self.options,
            dtype=self.dtype,
            device=self.device,
            cache=self.chunk_cache,
            demonstrations=suite.demonstrations,
        )
        spec = RunSpec(
            suite=suite.spec,
            retrieval=suite.retrieval,
            passages=passages,
            system=SystemSpec(
                name=self.system,
                config=plain(opened.config) | ({"shots": self.shots} if self.shots else {}),
                checkpoint=opened.checkpoint,
            ),
            decode=DecodeSpec(
                max_new_tokens=self.max_new_tokens, batch_size=self.batch_size, device=self.device, dtype=self.dtype
            ),
            seed=0,  # what is drawn in answering is drawn by settings of the system
            prompt_version=PROMPT_VERSION,
            metric_version=METRIC_VERSION,
        )
        notes = _notes(read_training(Path(self.checkpoint)), root)
        return Cell(
            spec=spec,
            suite=suite,
            system=opened.system,
            config=opened.config,
            decoder=opened.decoder,
            notes=notes,
            device=device,
        )

    def _found(self) -> tuple[Any, int, str | None]:
        """The suite whose questions lie in the data root, how many passages it gives, and the root's name."""
        build = self._builder()
        root = DataRoot.open(self.data)
        frozen = self.retrieval.run().path if isinstance(self.retrieval, RetrieveJob) else self.retrieval
        suite = build(self.suite, root, passages=self.passages, frozen=frozen, limit=self.limit, shots=self.shots)
        return suite, self.passages, root.name

    def _builder(self) -> Any:
        """What builds such a suite: with its settings, where it has some."""
        target = find("suite", {**SUITES, **ASKED_SUITES, **MADE_SUITES}, self.suite)
        if self.suite in ASKED_SUITES:
            return target(**self._settings(target)).build
        if self.asked:
            raise InputError(
                f"suite {self.suite} takes no settings, got {', '.join(self.asked)}; suites that do: "
                f"{', '.join([*ASKED_SUITES, *MADE_SUITES])}"
            )
        return target

    def _made(self) -> tuple[Any, int, None]:
        """The suite that makes its questions and their passages, and how many passages; no data root is read."""
        if self.passages or self.retrieval or self.shots:
            raise InputError(f"suite {self.suite} makes its own passages; it takes no passages, retrieval or shots")
        from harness.model.load import load_tokenizer

        config_type = find("suite", MADE_SUITES, self.suite)
        settings = self._settings(config_type)
        suite = config_type(**settings).build(self.suite, load_tokenizer(self.checkpoint), self.limit)
        return suite, suite.passages, None

    def _settings(self, config_type: Any) -> dict[str, Any]:
        """What was asked of a suite. Raises ``InputError`` for unknown settings and for missing ones."""
        settings = read_settings(self.suite, config_type, self.asked)
        if missing := [name for name in _required(config_type) if name not in settings]:
            raise InputError(f"suite {self.suite} needs a setting of {', '.join(missing)} (--ask NAME=VALUE)")
        return settings

    def said(self, result: RunRecord) -> str:
        """EM (of summaries ROUGE-L) with its interval, n, and where there are: chance line, retrieval, errors.

        Where it read fewer passages than there were, how many.
        """
        name = next((name for name in HEADLINES if name in result.metrics), None)
        if name is None:
            return f"all {result.n_examples} examples raised an error"
        score = result.metrics[name]
        text = f"{HEADLINES[name]} {100 * score['mean']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
        text += f"  n={score['n']}"
        if chance := result.metrics.get("chance"):
            text += f"  chance {100 * chance['mean']:.1f}"
        if retrieval := result.spec["retrieval"]:
            text += f"  {retrieval['retriever']}, {retrieval['setting']}"
        read = result.metrics.get(PASSAGES_READ)
        if unread := read_of(result.spec, read["mean"] if read else None):
            text += f"  {unread} passages"
        if result.n_errors:
            text += f"  {result.n_errors} examples raised errors (delete runs/**/{result.run_id} to run them again)"
        return text


def check_counts(*, passages: int, max_new_tokens: int) -> None:
    """Raise ``InputError`` for counts that no question can be answered with."""
    if passages < 0 or max_new_tokens < 1:
        raise InputError(f"expected at least 0 passages and 1 new token, got {passages} and {max_new_tokens}")


def _required(config_type: Any) -> list[str]:
    return [field.name for field in fields(config_type) if field.default is MISSING]


def _notes(training: dict[str, Any], root: str | None) -> tuple[str, ...]:
    """What a reader of the table has to know about the checkpoint; ``root`` is None where a suite makes its text."""
    notes = [WORLD_ORDER] if root and is_world(root) else []
    if training.get("data") == "world":
        notes.append(WORLD_READER)
        if training.get("init") == "circuit":
            notes.append(HAND_BUILT)
        if root and not is_world(root):
            notes.append(NOT_MEANT)
    return tuple(notes)
