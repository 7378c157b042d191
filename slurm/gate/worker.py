"""One commit at work: answers what the gate asks, a JSON line for a JSON line, with the code of its own worktree.

Started by its path, ``python -P worker.py WORKTREE TIMING``, with the worktree on PYTHONPATH: so this file and the
clock (``harness/timing.py`` at TIMING) are the gate's, the same for both commits, and all else is the commit's. Of its
code this file uses no more than the jobs ``WorldJob``, ``RetrieveJob`` and ``EvaluateJob``, the catalog of experiments
and ``score_answer``; a commit where one of these is something else cannot be judged.

Requests are ``{"ask": NAME, ...}``; each is answered by one line ``{"said": ...}`` or ``{"error": ...}``, and while it
runs by lines ``{"progress": [done, total]}``. What the code prints goes to standard error.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

# Of an experiment these jobs are run, in order; what draws, races and compares is not needed.
PREPARING = ("WorldJob", "TrainJob", "RetrieveJob")


class Commit:
    """The requests. ``cells`` and ``lanes`` are jobs and opened cells of the commit's own classes."""

    def __init__(self, root: Path, timing: Path, channel: TextIO) -> None:
        import slurm

        if root.resolve() not in Path(str(slurm.__file__)).resolve().parents:
            raise RuntimeError(f"expected the code of {root}, got {slurm.__file__}")
        self.root, self.channel = root, channel
        spec = importlib.util.spec_from_file_location("gate_timing", timing)
        assert spec and spec.loader
        self.timing = importlib.util.module_from_spec(spec)
        sys.modules["gate_timing"] = self.timing  # its dataclasses look their module up
        spec.loader.exec_module(self.timing)
        self.cells: dict[str, Any] = {}
        self.lanes: dict[str, Any] = {}
        self.prompts: Sequence[Any] = ()

    def lacks(self, system: str) -> str:
        """Why this commit has no such system; empty where it has one, whether or not that works."""
        from harness.cli.catalog import SYSTEMS

        module, _, name = SYSTEMS.get(system, system).partition(":")
        if not name:
            return f"its catalog has no {system!r}"
        try:
            if importlib.util.find_spec(module) is None:
                return f"it has no module {module!r}"
        except ImportError as error:  # of a package above it
            return f"it has no module {module!r} ({error})"
        try:
            found = importlib.import_module(module)
        except Exception:  # what is wrong with it is told by its cells
            return ""
        return "" if hasattr(found, name) else f"its {module} has no {name!r}"

    def prepare(
        self, *, cells: Mapping[str, Any] | None, experiment: str | None, own: Mapping[str, Any], **where: Any
    ) -> list[str]:
        """Make the data of ``cells`` (or of the evaluations of ``experiment``); their names, ready to be evaluated.

        Of ``own`` those are made whose system this commit has.
        """
        self.cells = self._experiment(str(experiment), **where) if cells is None else self._listed(cells, **where)
        if known := {name: cell for name, cell in own.items() if not self.lacks(cell["system"])}:
            self.cells |= self._listed(known, **where)
        return list(self.cells)

    def evaluate(self, cell: str) -> str:
        """Answer the questions of ``cell``; the folder of its record and journal."""
        job = self.cells[cell]
        record = job.run(self._progress)
        return str(job.runs / record.spec["suite"]["name"] / record.spec["system"]["name"] / record.run_id)

    def open(self, lanes: Mapping[str, Any], own: Mapping[str, Any], prompts: int, **where: Any) -> dict[str, Any]:
        """Load the systems of ``lanes``, which answer the same prompts; how many there are of those, and the specs.

        One of ``own`` that cannot be timed stays out; why is said by its name.
        """
        from harness.config import plain

        self.lanes = {name: self._opened(job) for name, job in self._listed(lanes, limit=prompts, **where).items()}
        self.prompts = list(next(iter(self.lanes.values())).suite.examples())
        untimed = {}
        for name, job in self._listed(own, limit=prompts, **where).items():
            try:
                self.lanes[name] = self._opened(job)
                self.answer(name, 0, 2)
            except Exception as error:
                traceback.print_exception(error)
                untimed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        gc.collect()
        gc.freeze()
        specs = {name: plain(lane.spec) for name, lane in self.lanes.items() if name not in untimed}
        return {"prompts": len(self.prompts), "specs": specs, "untimed": untimed}

    def _opened(self, job: Any) -> Any:
        lane = job.open()
        # A value is one token and ends the answer: to time a decode loop it has to go on.
        lane.system.prompting.stop_ids = []
        return lane

    def answer(self, lane: str, prompt: int, tokens: int) -> dict[str, Any]:
        """Answer one prompt with ``tokens`` tokens: seconds to the first one and between all of them."""
        cell, example = self.lanes[lane], self.prompts[prompt]
        timed = self.timing.timed_batch(
            lambda: cell.system.encode([example.passages]),
            lambda context: cell.system.generate([example.question], context, max_new_tokens=tokens),
            cell.device,
            cell.system.pad_id,
        )
        if len(timed.columns) != tokens:
            raise RuntimeError(f"expected {tokens} tokens of {lane}, got {len(timed.columns)}")
        return {"ttft_s": timed.ttft_s, "ttft_with_encode_s": timed.ttft_with_encode_s, "ttit_s": timed.ttit_s}

    def score(self, pairs: Sequence[tuple[str, Sequence[str]]]) -> dict[str, Any]:
        """The scores that this commit gives to predictions, each with its golds, and its version of the metric."""
        from harness.metrics import METRIC_VERSION, score_answer

        return {"metric_version": METRIC_VERSION, "scores": [score_answer(said, golds) for said, golds in pairs]}

    def _progress(self, done: int, total: int, note: str = "") -> None:
        self.say({"progress": [done, total, note]})

    def say(self, line: Mapping[str, Any]) -> None:
        print(json.dumps(line), file=self.channel, flush=True)

    def _experiment(self, name: str, *, runs: str, data: str | None, limit: int | None, device: str) -> dict[str, Any]:
        from harness.cli.catalog import EXPERIMENTS, find

        phases = find("experiment", EXPERIMENTS, name)(
            data=None if data is None else Path(data),
            checkpoint=None,
            limit=limit,
            device=device,
            runs=Path(runs),
            out=Path(runs) / "results",
            budget=None,
            from_scratch=False,
        )
        jobs = [job for phase in phases for job in phase.jobs]
        for job in jobs:
            if type(job).__name__ in PREPARING:
                job.run(self._progress)
        cells: dict[str, Any] = {}
        for job in jobs:
            if type(job).__name__ == "EvaluateJob":
                same = sum(1 for other in cells.values() if other.title == job.title and other != job)
                cells.setdefault(f"{job.title} [{same + 1}]" if same else job.title, job)
        return cells

    def _listed(
        self, cells: Mapping[str, Any], *, runs: str, data: str | None, limit: int | None, device: str
    ) -> dict[str, Any]:
        from harness.data.world.mirror import WorldConfig
        from slurm.jobs.data import RetrieveJob, WorldJob
        from slurm.jobs.evaluate import EvaluateJob

        root = Path(data) if data else Path(runs) / "data" / WorldConfig().name
        if not data:
            WorldJob(config=WorldConfig(), folder=root).run()
        jobs = {}
        for name, cell in cells.items():
            retriever = cell.get("retriever")
            retrieval = retriever and RetrieveJob(suite=cell["suite"], retriever=retriever, data=root, runs=Path(runs))
            jobs[name] = EvaluateJob(
                system=cell["system"],
                suite=cell["suite"],
                checkpoint=str(self._shipped(cell["checkpoint"])),
                passages=cell["passages"],
                data=root,
                retrieval=retrieval or None,
                limit=limit,
                max_new_tokens=4,
                device=device,
                options=cell.get("options", {}),
                experiment="gate",
                runs=Path(runs),
            )
        return jobs

    def _shipped(self, name: str) -> Path:
        """The checkpoint that comes with the commit, by its name without the digest."""
        folder = self.root / "results" / "checkpoints" / Path(name).parent
        found = [path for path in folder.glob(f"{Path(name).name}-*") if path.name.count("-") == name.count("-") + 1]
        if len(found) != 1:
            raise RuntimeError(f"expected one checkpoint {name} in results/checkpoints, got {len(found)}")
        return found[0]


def main() -> None:
    root, timing = map(Path, sys.argv[1:])
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints is no answer
    try:
        commit = Commit(root, timing, channel)
    except Exception as error:
        _failed(channel, error)
        return
    print(json.dumps({"said": "ready"}), file=channel, flush=True)
    asks: Mapping[str, Callable[..., Any]] = {
        name: getattr(commit, name) for name in ("lacks", "prepare", "evaluate", "open", "answer", "score")
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            commit.say({"said": asks[request.pop("ask")](**request)})
        except Exception as error:
            _failed(channel, error)


def _failed(channel: TextIO, error: Exception) -> None:
    """The other side of the pipe is to know, whatever it was: the traceback goes to the log, one line of it there."""
    traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    print(
        json.dumps({"error": f"{type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno})"}),
        file=channel,
        flush=True,
    )


if __name__ == "__main__":
    main()
