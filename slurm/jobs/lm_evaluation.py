"""One system on one task through lm-eval: its loop, its metric, its files; our passages, system and decoding."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import provenance
from harness.cli.catalog import find_system
from harness.config import plain
from harness.data.world.mirror import WorldConfig
from harness.errors import InputError, unknown
from harness.protocol import LogLikelihood
from slurm.jobs import Progress
from slurm.jobs.data import RetrieveJob, WorldJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.system import with_likelihood

# Each task and the suite whose questions, passages and data it has.
TASKS: Mapping[str, str] = {"nq_open": "nq", "triviaqa": "triviaqa", "popqa": "popqa", "passkey": "passkey"}
# Of the passkey task, where nothing else was asked: the instructions are spelt in bytes by the world's tokenizer.
PASSKEY: Mapping[str, Any] = {"length": 256, "instructions": False}


def task_names(text: str) -> tuple[str, ...]:
    """``nq_open,passkey`` as names, each once. Raises ``InputError`` with the valid ones for any other."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in TASKS:
            raise unknown("task", name, TASKS)
    return names


@dataclass(frozen=True, kw_only=True)
class LmEvaluationJob:
    """``system`` with ``checkpoint`` on ``task``. ``retrieval`` None with ``passages``: BM25 over the data's corpus.

    Without ``data`` and without REFRAG_DATA the questions are the synthetic world's, written below ``runs``.
    """

    system: str
    task: str
    checkpoint: str
    out: Path
    runs: Path
    passages: int = 0
    asked: Mapping[str, Any] = field(default_factory=dict)
    data: Path | None = None
    retrieval: Path | None = None
    limit: int | None = None
    max_new_tokens: int = 16
    batch_size: int = 8
    device: str = "cpu"
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.system} on {self.task} (lm-eval)"

    def cell(self) -> EvaluateJob:
        """The same cell for our own loop: what it answers is what lm-eval gets.

        Raises ``InputError`` for an unknown task, and for settings of one that takes none.
        """
        if self.task not in TASKS:
            raise unknown("task", self.task, TASKS)
        made = self.task == "passkey"
        if self.asked and not made:
            raise InputError(f"task {self.task} takes no settings, got {', '.join(self.asked)}; tasks that do: passkey")
        data = None if made else self._data()
        retrieval: Path | RetrieveJob | None = None
        if self.passages and not made:
            retrieval = self.retrieval or RetrieveJob(
                suite=TASKS[self.task], retriever="bm25", data=data, runs=self.runs
            )
        return EvaluateJob(
            system=self.system,
            suite=TASKS[self.task],
            checkpoint=self.checkpoint,
            passages=0 if made else self.passages,
            asked={**PASSKEY, **self.asked} if made else {},
            data=data,
            retrieval=retrieval,
            limit=self.limit,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            device=self.device,
            dtype=self.dtype,
            options=self.options,
            runs=self.runs,
        )

    def run(self, progress: Progress | None = None) -> dict[str, Any]:
        """lm-eval's results, written below ``out`` as it writes them itself: results_*.json and samples_*.jsonl.

        Raises ``InputError`` where the extra is missing.
        """
        try:
            from lm_eval.evaluator import evaluate
            from lm_eval.loggers import EvaluationTracker
            from lm_eval.tasks import TaskManager
            from lm_eval.utils import handle_non_serializable
        except ImportError as error:
            raise InputError(f"lm-eval is not installed ({error}): pip install 'refrag-bench[lm-eval]'") from error
        from suites.lm_eval import documents

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        find_system(self.system)
        cell = self.cell()
        opened = cell.open()
        folder = (self.out / "documents").absolute()
        documents.write(opened.suite.examples(), folder, self.task)
        manager = TaskManager(
            include_path=str(Path(documents.__file__).parent),
            include_defaults=False,  # indexing lm-eval's own takes half a minute
            metadata={"documents": str(folder)},
        )
        tracker = EvaluationTracker(output_path=str(self.out))
        tracker.general_config_tracker.log_experiment_args(
            model_source="refrag-bench",
            model_args={"model": self.system},
            system_instruction=None,
            chat_template=None,
            fewshot_as_multiturn=False,
        )
        # Not simple_evaluate: it asks git and the whole machine for their versions.
        results: dict[str, Any] = evaluate(
            lm=self._model(opened, progress),
            task_dict=manager.load([self.task]),
            bootstrap_iters=1,  # 0 would leave the standard errors out; that of a mean is no bootstrap
        )
        samples = results.pop("samples")
        results["config"] = {
            "model": self.system,
            "model_args": plain(opened.spec.system),
            "batch_size": self.batch_size,
            "device": self.device,
            "limit": self.limit,
            "spec": plain(opened.spec),
            "notes": list(opened.notes),
            "provenance": provenance.collect(self.device),
        }
        tracker.save_results_aggregated(results=results, samples=samples)
        tracker.save_results_samples(task_name=self.task, samples=samples[self.task])
        plainly: dict[str, Any] = json.loads(json.dumps(results, default=handle_non_serializable))
        return plainly

    def said(self, result: Mapping[str, Any]) -> str:
        scores = result["results"][self.task]
        mean, error = scores["exact_match,remove_whitespace"], scores["exact_match_stderr,remove_whitespace"]
        n = result["n-samples"][self.task]["effective"]
        spread = f" ± {error:.4f}" if isinstance(error, float) else ""
        return f"{self.task}: exact_match {mean:.4f}{spread}  n={n}  {self.out / self.system}"

    def _data(self) -> Path | None:
        if self.data or os.environ.get("REFRAG_DATA"):
            return self.data
        config = WorldConfig()
        return WorldJob(config=config, folder=self.runs / "data" / config.name).run()

    def _model(self, opened: Any, progress: Progress | None) -> Any:
        from suites.lm_eval.answering import Answering

        def scoring() -> LogLikelihood[Any]:
            return with_likelihood(self.system, opened.system)

        # A system of somebody's own may have neither setting: it has one template then, and the decoder's window.
        decoder = opened.decoder
        window = getattr(opened.config, "max_positions", None)
        return Answering(
            opened.system,
            decoder,
            scoring=scoring,
            template=getattr(opened.config, "template", None),
            window=window or decoder.model.config.max_position_embeddings,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            progress=progress,
        )
