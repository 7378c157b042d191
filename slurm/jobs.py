"""The operations that experiments are made of and that the command line offers one by one.

Each is a frozen dataclass of plain values, so that it can be printed, hashed and sent to another machine, with one
``run``. Running a job whose result is there already is a no-op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import provenance
from harness.cli.catalog import RECIPES, SUITES, SYSTEMS, find
from harness.config import digest
from harness.data.sources import DataRoot, load_questions
from harness.data.world import is_world
from harness.data.world.mirror import WorldConfig, write_world
from harness.errors import InputError, unknown
from harness.metrics import METRIC_VERSION
from harness.prompts import PROMPT_VERSION
from harness.record import DecodeSpec, RunRecord, RunSpec, SystemSpec
from harness.retrieval.catalogue import index_config
from harness.retrieval.corpus import read_corpus
from harness.retrieval.frozen import Frozen, Setting, freeze
from harness.retrieval.gold import read_gold
from harness.retrieval.index import ensure_index
from harness.train.export import read_training
from results.draw import draw, write
from results.formats import to_markdown
from results.tables import Table

Progress = Callable[..., None]

WORLD_READER = "The decoder was trained on the synthetic world alone."
HAND_BUILT = "Its training started from a hand-built match-and-copy circuit (harness/model/circuit_init.py)."
NOT_MEANT = "It has never read natural language: scores near zero on real questions are expected."


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train one stage of one system at one scale; the checkpoint lies in ``folder``."""

    system: str
    stage: str
    scale: str
    runs: Path
    device: str = "cpu"

    def recipe(self) -> Any:
        stages = find("system", RECIPES, self.system)
        scales = find(f"stage of {self.system}", stages, self.stage)
        if self.scale not in scales:
            raise unknown(f"scale of {self.system} {self.stage}", self.scale, scales)
        return scales[self.scale]

    @property
    def title(self) -> str:
        return f"train {self.system} {self.stage} ({self.scale})"

    @property
    def folder(self) -> Path:
        """Named after the recipe, so that a changed recipe never meets an old checkpoint."""
        return self.runs / "train" / self.system / f"{self.stage}-{self.scale}-{digest(self.recipe())}"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "final"

    def run(self, progress: Progress | None = None) -> Path:
        """Train from the newest checkpoint, if any, and export; returns the exported folder."""
        if (self.checkpoint / "config.json").exists():
            return self.checkpoint
        import torch

        from harness.data.world.tokenizer import ANSWER, build_tokenizer
        from harness.model.circuit_init import circuit_init
        from harness.model.load import random_decoder
        from harness.train.export import export
        from harness.train.loop import train
        from harness.train.losses import answer_loss

        recipe = self.recipe()
        tokenizer = build_tokenizer()
        model = random_decoder(recipe.shape, seed=recipe.stage.seed)
        if recipe.start == "circuit":
            circuit_init(model, tokenizer.convert_tokens_to_ids(ANSWER), recipe.stage.seed)
        device = torch.device(self.device)
        trained = train(
            recipe.stage,
            model.to(device),
            recipe.data.build(tokenizer),
            answer_loss(recipe.language_weight),
            self.folder,
            device=device,
            progress=None if progress is None else _training_progress(progress, recipe.stage.steps),
        )
        training = {
            "system": self.system,
            "lineage": [self.stage],
            "scale": self.scale,
            "data": "world",
            "recipe": recipe,
            "steps": trained.steps,
            "tokens": trained.tokens,
            "final_loss": trained.final_loss,
            "provenance": provenance.collect(self.device),
        }
        return export(model, tokenizer, training, self.checkpoint)

    def said(self, result: Path) -> str:
        return str(result)


@dataclass(frozen=True, kw_only=True)
class WorldJob:
    """Write the synthetic world's data root."""

    config: WorldConfig
    folder: Path

    @property
    def title(self) -> str:
        return f"write {self.config.name}"

    def run(self, progress: Progress | None = None) -> Path:
        return write_world(self.config, self.folder)

    def said(self, result: Path) -> str:
        return str(result)


@dataclass(frozen=True, kw_only=True)
class RetrieveJob:
    """Freeze the passages of one suite, indexing the corpus of the data root first if need be."""

    suite: str
    retriever: str
    data: Path | None
    runs: Path
    setting: Setting = Setting()
    encoder: str = "minilm"

    @property
    def title(self) -> str:
        return f"retrieve {self.suite} with {self.retriever}"

    def run(self, progress: Progress | None = None) -> Frozen:
        root = DataRoot.open(self.data)
        questions, source = load_questions(self.suite, root)
        corpus = root.file("corpus")
        if corpus is None:
            raise InputError(f"the data root {root.name!r} has no corpus/ to retrieve from")
        index = ensure_index(index_config(self.retriever, self.encoder), read_corpus(corpus), self.runs)
        gold = read_gold(self.suite, root, questions)
        return freeze(questions, source, index, self.setting, suite=self.suite, work=self.runs, gold=gold)

    def said(self, result: Frozen) -> str:
        rates = {key: rate for key, rate in result.manifest.measures.items() if key.startswith("hit@")}
        return "  ".join(f"{key} {100 * rate:.1f}" for key, rate in rates.items() if rate is not None) + (
            f"  n={result.manifest.n}"
        )


@dataclass(frozen=True, kw_only=True)
class TablesJob:
    """Draw an experiment's tables and figures from the records below ``runs``."""

    experiment: str
    runs: Path
    out: Path

    @property
    def title(self) -> str:
        return f"draw {self.experiment}"

    def run(self, progress: Progress | None = None) -> list[Table]:
        tables, files = draw([self.runs], self.out, experiment=self.experiment)
        write(files)
        return tables

    def said(self, result: list[Table]) -> str:
        return "\n\n" + "\n".join(to_markdown(table, self.out / "tables") for table in result)


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """One cell of a table: a system with a checkpoint on a suite with a number of passages."""

    system: str
    suite: str
    checkpoint: str
    passages: int
    runs: Path
    data: Path | None = None
    retrieval: Path | RetrieveJob | None = None
    limit: int | None = None
    max_new_tokens: int = 8
    batch_size: int = 8
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    template: str | None = None
    experiment: str = "adhoc"

    @property
    def title(self) -> str:
        return f"{self.system} on {self.suite}, {f'{self.passages} passages' if self.passages else 'closed-book'}"

    def run(self, progress: Progress | None = None) -> RunRecord:
        """Evaluate from where the journal ends; returns the record, old or new."""
        config_type = find("system", SYSTEMS, self.system)
        build_suite = find("suite", SUITES, self.suite)
        root = DataRoot.open(self.data)
        frozen = self.retrieval.run().path if isinstance(self.retrieval, RetrieveJob) else self.retrieval
        suite = build_suite(self.suite, root, passages=self.passages, frozen=frozen, limit=self.limit)

        import torch

        from harness.model.load import load_decoder
        from harness.run import evaluate

        decoder = load_decoder(self.checkpoint, dtype=self.dtype, device=self.device)
        training = read_training(Path(self.checkpoint))
        config = config_type(template=self.template or _own_template(training))
        spec = RunSpec(
            suite=suite.spec,
            retrieval=suite.retrieval,
            passages=self.passages,
            system=SystemSpec(name=self.system, config=config, checkpoint=decoder.checkpoint),
            decode=DecodeSpec(
                max_new_tokens=self.max_new_tokens, batch_size=self.batch_size, device=self.device, dtype=self.dtype
            ),
            seed=self.seed,
            prompt_version=PROMPT_VERSION,
            metric_version=METRIC_VERSION,
        )
        return evaluate(
            spec,
            suite,
            config.build(decoder),
            self.runs,
            experiment=self.experiment,
            notes=_notes(training, root.name),
            device=torch.device(self.device),
            progress=progress,
        )

    def said(self, result: RunRecord) -> str:
        return summary(result)


def summary(record: RunRecord) -> str:
    """EM with its interval, the chance line where there is one, n and errors, in one line."""
    em = record.metrics.get("em")
    if em is None:
        return f"all {record.n_examples} examples raised an error"
    text = f"EM {100 * em['mean']:.1f} [{100 * em['low']:.1f}, {100 * em['high']:.1f}]  n={em['n']}"
    if chance := record.metrics.get("chance"):
        text += f"  chance {100 * chance['mean']:.1f}"
    return text + (f"  errors {record.n_errors}" if record.n_errors else "")


@dataclass(frozen=True, kw_only=True)
class GenerateJob:
    """Answer one question, over an index or closed-book."""

    question: str
    system: str
    checkpoint: str
    index: Path | None
    passages: int
    max_new_tokens: int
    template: str | None
    dtype: str
    device: str

    def run(self) -> dict[str, Any]:
        """The passages, the answer and its times."""
        config_type = find("system", SYSTEMS, self.system)
        import torch

        from harness.model.load import load_decoder
        from harness.retrieval import open_index
        from harness.timing import timed_batch

        hits = open_index(self.index).search([self.question], self.passages)[0] if self.index else []
        passages = [hit.passage for hit in hits]
        decoder = load_decoder(self.checkpoint, dtype=self.dtype, device=self.device)
        template = self.template or _own_template(read_training(Path(self.checkpoint)))
        system = config_type(template=template).build(decoder)
        system.check([self.question], max_new_tokens=self.max_new_tokens)
        timed = timed_batch(
            lambda: system.encode([passages]),
            lambda context: system.generate([self.question], context, max_new_tokens=self.max_new_tokens),
            torch.device(self.device),
            system.pad_id,
        )
        return {
            "question": self.question,
            "passages": [{"title": hit.passage.title, "text": hit.passage.text, "score": hit.score} for hit in hits],
            "answer": system.text(timed.columns)[0],
            "ttft_s": timed.ttft_s,
            "total_s": timed.total_s,
        }


def _training_progress(progress: Progress, steps: int) -> Callable[[int, float, float], None]:
    return lambda step, loss, rate: progress(step, steps, f"loss {loss:.3f}, {rate:,.0f} tokens/s")


def _own_template(training: dict[str, Any]) -> str:
    """The prompt template that a checkpoint was trained with; published decoders read plain text."""
    template: str = training.get("recipe", {}).get("template", "text")
    return template


def _notes(training: dict[str, Any], root: str) -> tuple[str, ...]:
    """What a reader of the table has to know about the checkpoint."""
    notes = []
    if training.get("data") == "world":
        notes.append(WORLD_READER)
        if training["recipe"].get("start") == "circuit":
            notes.append(HAND_BUILT)
        if not is_world(root):
            notes.append(NOT_MEANT)
    return tuple(notes)
