"""Train one stage of one system: find its start, check the order of stages, run the loop, export."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from harness import provenance
from harness.cli.catalog import RECIPES, find
from harness.config import digest
from harness.data.missing import Missing
from harness.data.stream.window_practice import WindowExercise
from harness.data.stream.windows import MANIFEST, name_of, open_windows
from harness.data.text import MADE_BY
from harness.data.text import MANIFEST as TEXT
from harness.data.text_practice import TextExercise
from harness.errors import InputError, unknown
from harness.train.export import TRAINING_FILE, read_training
from harness.train.stage import Muon
from harness.train.tracking import parameters, store, tracking
from slurm.jobs import Progress

if TYPE_CHECKING:
    import torch

    from harness.data.stream.window_practice import Stream
    from harness.train.loop import Batches, Logged, Loss
    from harness.train.stage import Stage
    from harness.train.tracking import Run

ACCEPTED = Path(__file__).resolve().parents[2] / "results" / "checkpoints"


class Recipe(Protocol):
    """A stage with all that it needs: plain data, so that its digest names the checkpoint.

    ``after`` is the stage whose checkpoint it starts from, as (system, stage, scale); None starts from nothing.
    ``requires`` names the stages ("system/stage") that must be in that checkpoint's lineage. ``stored_as`` is the
    dtype of the exported weights, whatever they were trained in. A recipe that several processes cannot train together
    yet has a ``for_one`` beside all this, which says what of it that is.
    """

    @property
    def stage(self) -> Stage: ...

    @property
    def after(self) -> tuple[str, str, str] | None: ...

    @property
    def requires(self) -> Sequence[str]: ...

    @property
    def stored_as(self) -> str: ...

    @property
    def init(self) -> str | None:
        """How the weights come about where there is no start: ``random``, or ``circuit`` (hand-built)."""

    def open(self, start: Path | None) -> tuple[Any, Any]:
        """The model, as the stage finds it, and its tokenizer."""

    def batches(self, model: Any, tokenizer: Any) -> Batches: ...

    def loss(self) -> Loss: ...

    def export(self, model: Any, tokenizer: Any, training: dict[str, Any], folder: Path) -> Path: ...


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train one stage of one system at one scale; the checkpoint lies in ``folder``.

    ``start`` replaces the stage before it: a checkpoint, or the job that makes one. ``skip`` names required stages that
    an ablation leaves out. ``seed`` replaces that of the recipe (of this stage alone). An accepted checkpoint of the
    same recipe is taken as it is, unless ``from_scratch``. ``recompute`` saves memory and changes no number.
    ``text`` is the prepared text of the scales that train on one (``harness.data.text``, ``harness.data.stream``), and
    of those before them that do. ``nodes`` times
    ``tasks_per_node`` processes train it together (``harness.train.distributed``), on its batches as they are; which
    start them is the cluster's business. Of each, ``loaders`` processes make the batches ahead, which are the same.
    """

    system: str
    stage: str
    scale: str
    runs: Path
    device: str = "cpu"
    start: Path | TrainJob | None = None
    skip: tuple[str, ...] = ()
    seed: int | None = None
    from_scratch: bool = False
    recompute: bool = False
    text: Path | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    loaders: int = 0

    def recipe(self) -> Recipe:
        """The recipe of this stage at this scale, with the job's own seed if it has one.

        Raises ``InputError`` naming the valid ones for an unknown system, stage or scale.
        """
        stages = find("system", RECIPES, self.system)
        scales = find(f"stage of {self.system}", stages, self.stage)
        if self.scale not in scales:
            raise unknown(f"scale of {self.system} {self.stage}", self.scale, scales)
        recipe: Any = scales[self.scale]
        if self.seed is not None:
            recipe = replace(recipe, stage=replace(recipe.stage, seed=self.seed))
        found: Recipe = recipe
        return found

    @property
    def title(self) -> str:
        return f"train {self.system} {self.stage} ({self.scale})"

    @property
    def before(self) -> TrainJob | None:
        """The job that makes this one's start; None where there is nothing to make."""
        if isinstance(self.start, TrainJob):
            return self.start
        after = self.recipe().after
        if self.start is not None or after is None:
            return None
        system, stage, scale = after
        before = TrainJob(
            system=system,
            stage=stage,
            scale=scale,
            runs=self.runs,
            device=self.device,
            from_scratch=self.from_scratch,
        )
        return replace(before, text=self.text) if before.on_text else before

    @property
    def on_text(self) -> bool:
        """Does it train on a prepared text, and not on the synthetic world?"""
        recipe: Any = self.recipe()
        return isinstance(recipe.data, TextExercise)

    @property
    def chain(self) -> list[TrainJob]:
        """This job, and before it all that it needs and that is not finished."""
        before = None if self.finished else self.before
        return [*(before.chain if before else []), self]

    @property
    def identity(self) -> str:
        """The digest of the recipe and of all before it: a changed recipe never meets an old checkpoint.

        A start that was given as a folder is in it by content, wherever it lies: other weights at the same path are
        another training, which lies beside the first.
        """
        before = self.before
        given = _content(self.start) if isinstance(self.start, Path) else ""
        text = [name_of(self.text)] if self.text else []
        return digest([self.recipe(), given, self.skip, before.identity if before else None, *text])

    @property
    def name(self) -> str:
        return f"{self.system}/{self.stage}-{self.scale}-{self.identity}"

    @property
    def folder(self) -> Path:
        """Where the training lies."""
        return self.runs / "train" / self.name

    @property
    def checkpoint(self) -> Path:
        """The finished checkpoint: the accepted one, or the one that this job trains."""
        accepted = ACCEPTED / self.name
        return accepted if accepted.is_dir() and not self.from_scratch else self.folder / "final"

    @property
    def finished(self) -> bool:
        return (self.checkpoint / "config.json").exists()

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why this training cannot run, as far as that is known before anything does."""
        if self.finished:
            return ()
        recipe: Any = self.recipe()
        found = [recipe.data.said] if isinstance(recipe.data, Missing) else []
        if isinstance(recipe.data, WindowExercise) and (lacking := self._lacking(recipe.data)):
            found.append(lacking)
        if recipe.after is None and recipe.init is None and self.start is None:
            found.append("there is no decoder to start from (--checkpoint, --start of `refrag-bench train`)")
        if self.loaders and not isinstance(recipe.data, WindowExercise):
            found.append("nothing but prepared windows is read ahead (--loaders)")
        if self.nodes * self.tasks_per_node > 1:
            muon = "Muon" if isinstance(recipe.stage.optimizer, Muon) else ""
            found += [f"{what} is for one process yet" for what in (muon, getattr(recipe, "for_one", "")) if what]
        return tuple(found)

    def _lacking(self, data: WindowExercise) -> str:
        """What the exercise wants of prepared windows and has not; empty where it has all."""
        how = (
            f"`refrag-bench data prepare` makes windows of at least {data.longest:,} tokens, with the tokenizer of the "
            "decoder that the first stage starts from"
        )
        if self.text is None:
            return f"there are no prepared windows (--text; {how})"
        if not (self.text / MANIFEST).exists():
            instead = ", but a text for the text-* scales" if (self.text / TEXT).exists() else ""
            return f"there are no prepared windows at {self.text}{instead} ({how})"
        if (length := open_windows(self.text).length) < data.longest:
            return f"the windows at {self.text} have {length:,} tokens ({how})"
        return ""

    def run(self, progress: Progress | None = None, *, track: str | None = None) -> Path:
        """Train from the newest checkpoint, if any, and export; returns the exported folder.

        ``track`` is where to track to, a URI or ``off``, None as the environment says (``harness.train.tracking``); not
        a field, because jobs are written down and a URI may hold a password.

        Raises ``InputError`` with all that is known to be missing; and where the start never went through a required
        stage, and where this process is not one of as many as the job asks for.
        """
        if self.finished:
            return self.checkpoint
        if missing := self.obstacles:
            raise InputError(f"{self.title} cannot begin: {'; '.join(missing)}")
        recipe = self._bound(self.recipe())
        start, uri = self._start(recipe), store(track)
        from harness.train.distributed import joined

        with joined(self.nodes * self.tasks_per_node, self.device) as device:
            files = [self.checkpoint / TRAINING_FILE, self.folder / "log.jsonl"]
            with tracking(self._tracked(recipe, uri), uri or "", files) as logged:
                return self._train(recipe, start, device, progress, logged)

    def _tracked(self, recipe: Recipe, uri: str | None) -> Callable[[], Run] | None:
        """What opens this training as a run of MLflow, in the first of its processes."""
        from harness.train.distributed import rank

        if uri is None or rank():
            return None
        made = provenance.collect(self.device)
        about = {"system": self.system, "scale": self.scale, "seed": recipe.stage.seed}
        about |= {"processes": self.nodes * self.tasks_per_node, "recompute": self.recompute}
        about |= {name: made[name] for name in ("commit", "dirty", "device", "cpu", "threads")}
        flat = dict(item for name, value in about.items() for item in parameters(value, name))
        flat |= dict(parameters(recipe, "recipe"))

        def open_run() -> Run:
            from harness.train.mlflow_run import MlflowRun

            return MlflowRun(uri, self.name, flat, self.folder, self.runs / "mlflow-artifacts")

        return open_run

    def _train(
        self,
        recipe: Recipe,
        start: Path | None,
        device: torch.device,
        progress: Progress | None,
        logged: Logged | None,
    ) -> Path:
        folder, checkpoint = self.folder, self.checkpoint  # by what the start holds now, whatever comes to lie there
        history = read_training(start) if start else {}
        skipped = [stage for stage in self.skip if stage not in history.get("lineage", [])]
        import torch

        from harness.train.distributed import by_first, world
        from harness.train.loop import train
        from harness.train.recompute import recompute_activations
        from harness.train.sharding import gathered
        from slurm.plan.utilisation import peak_flops, with_mfu

        torch.set_num_threads(1)  # the order of sums, and so the weights, must not depend on the machine's cores
        model, tokenizer = recipe.open(start)
        if self.recompute:
            recompute_activations(model)
        batches = recipe.batches(model, tokenizer)
        if self.loaders:
            from harness.data.stream.ahead import Ahead

            batches = Ahead(cast("Stream", batches), self.loaders)
        loss = recipe.loss()
        if logged:
            loss, logged = with_mfu(model, loss, logged, peak_flops(device, recipe.stage.precision))
        trained = train(
            recipe.stage,
            model,
            batches,
            loss,
            folder,
            device=device,
            progress=None if progress is None else _training_progress(progress, recipe.stage.steps),
            logged=logged,
        )
        training = {
            "system": self.system,
            "lineage": [*history.get("lineage", []), f"{self.system}/{self.stage}"],
            "init": history.get("init", recipe.init),
            "skipped": [*history.get("skipped", []), *skipped],
            "scale": self.scale,
            "data": name_of(self.text) if self.text else "world",
            "recipe": self.recipe(),
            "steps": trained.steps,
            "tokens": trained.tokens,
            "final_loss": trained.final_loss,
            "provenance": provenance.collect(self.device),
        }
        whole = gathered(model) if world() > 1 else {}

        def export() -> None:
            trained_model = model
            if whole:
                trained_model, _ = recipe.open(start)
                trained_model.load_state_dict(whole)
            recipe.export(trained_model.to(getattr(torch, recipe.stored_as)), tokenizer, training, checkpoint)

        by_first(export)
        return checkpoint

    def _bound(self, recipe: Any) -> Recipe:
        """The recipe over its text, if it trains on one. Raises ``InputError`` where one is missing or not wanted."""
        if not self.on_text:
            if self.text is not None:
                raise InputError(f"{self.title} trains on the synthetic world; leave --text {self.text} out")
            return cast("Recipe", recipe)
        if self.text is None:
            raise InputError(f"{self.title} trains on a prepared text: give it with --text ({MADE_BY})")
        return cast("Recipe", replace(recipe, data=recipe.data.over(self.text)))

    def _start(self, recipe: Recipe) -> Path | None:
        """The checkpoint to start from, if any, which has gone through what the recipe requires."""
        for stage in self.skip:
            if stage not in recipe.requires:
                raise unknown(f"stage that {self.title} requires and could skip:", stage, recipe.requires)
        before = self.before
        start = before.checkpoint if before else self.start
        if not isinstance(start, Path):
            return None
        if not (start / "config.json").exists():
            how = before._how_to_have_it() if before else "expected a checkpoint"
            raise InputError(f"{self.title} starts from {start}, which is not there; {how}")
        lineage: list[str] = read_training(start).get("lineage", [])
        if missing := [stage for stage in recipe.requires if stage not in lineage and stage not in self.skip]:
            raise InputError(
                f"{self.title} expects a checkpoint that went through {', '.join(missing)}; {start} went through "
                f"{', '.join(lineage) or 'nothing known'} (an ablation says --skip {missing[0]})"
            )
        return start

    def _how_to_have_it(self) -> str:
        """What the stage after this one is told where this one's checkpoint is not there.

        One that went on from a --start of its own lies elsewhere, and is found by nothing but a --start that names it.
        """
        given: dict[str, Path | str | None] = {
            "text": self.text,
            "start": self.start if isinstance(self.start, Path) else None,
            "runs": self.runs,
            "device": None if self.device == "cpu" else self.device,
        }
        words = [self.system, self.stage, "--scale", self.scale]
        words += [str(word) for name, value in given.items() if value for word in (f"--{name}", value)]
        words += ["--from-scratch"] * self.from_scratch
        there = self.folder.parent.glob(f"{self.stage}-{self.scale}-*/final/config.json")
        found = ", ".join(str(path.parent) for path in sorted(there))
        other = f"; or give one that was trained otherwise with --start: {found}" if found else ""
        return f"run `refrag-bench train {shlex.join(words)}` first{other}"

    def said(self, result: Path) -> str:
        return str(result)


def _content(start: Path) -> str:
    """The digest of the checkpoint in ``start``, as records have it; its path while nothing is there.

    Its files are read once per process, and again where one was written since.
    """
    from harness.model.load import content_files

    files = [(file.name, file.stat()) for file in content_files(start)]
    stamp = tuple((name, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in files)
    return _content_at(start.absolute(), stamp) if stamp else str(start)


@lru_cache(maxsize=64)
def _content_at(start: Path, stamp: tuple[tuple[Any, ...], ...]) -> str:  # noqa: ARG001
    from harness.model.load import checkpoint_digest

    return checkpoint_digest(start)


def _training_progress(progress: Progress, steps: int) -> Callable[[int, float, float], None]:
    return lambda step, loss, rate: progress(step, steps, f"loss {loss:.3f}, {rate:,.0f} tokens/s")
