"""Does the paper's recipe matter on real language? Its Tables 11, 12 and 13 in small, one seed, paired over windows.

    refrag-bench run text_ablation --data DIR                        DIR: as for `run perplexity`
    refrag-bench run text_ablation --scale mini --device cuda --data DIR

Fills     results/tables/text_order.*, text_curriculum.*, text_policy.* (mini: text_order-mini.*, ...)
Cost      in a quarter of the steps (the default) 25 minutes of a busy core, after the trainings of `run perplexity`
          that it shares; mini has not been run
Expect    at a quarter: reconstruction first .003 nats better on LaTeX and no different on books, whole contexts from
          the first step on .002 to .006 better, the policy .005 to .007 better than nothing expanded and no better than
          the first chunk (results/LOG.md)

Three questions, each a table:

order       REFRAG_8 after reconstruction and CPT, against CPT alone on the same windows: the tokens after a context
curriculum  REFRAG_8 after reconstruction with the paper's stages, against whole contexts from the first step on: the
            context's own tokens again
policy      REFRAG_16 with a sixteenth of its chunks expanded by the trained policy, against the same number taken from
            the start, against none, and against REFRAG_8, which reads about as many positions
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.data.text import open_text
from refrag_v2.study_stages import FLAT
from slurm.jobs.differences import DifferencesJob
from slurm.jobs.perplexity import PerplexityJob
from slurm.jobs.tables import TextTablesJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase
from slurm.sweeps.on_text import asked, called
from slurm.sweeps.tiny import train_phase

NAME = "text_ablation"
SHARE = 1 / 16  # of the chunks of 16 tokens: REFRAG_16 then reads about as many positions as REFRAG_8
Line = tuple[TrainJob, Mapping[str, Any]]


def text_ablation(
    *,
    data: Path | None,
    checkpoint: str | None,
    limit: int | None,
    device: str,
    runs: Path,
    out: Path,
    budget: str | None = None,
    from_scratch: bool = False,
) -> Iterator[Phase]:
    """Phases of the experiment; arguments and errors are those of ``perplexity``, the default budget a quarter."""
    budget = budget or "quarter"
    scale, text = asked(NAME, data=data, checkpoint=checkpoint, budget=budget, runs=runs)
    size = scale.size
    yield Phase(title="text", jobs=[text])

    def training(stage: str, recipes: str, system: str = "refrag_v2", **changes: Any) -> TrainJob:
        return TrainJob(
            system=system,
            stage=stage,
            scale=recipes,
            runs=runs,
            device=device,
            from_scratch=from_scratch,
            text=text.folder,
            **changes,
        )

    k8, k16 = scale.of_rate(8), scale.of_rate(16)
    both, chosen = training("cpt", k8), training("policy", k16)
    alone = training("cpt", k8, start=training("pretrain", scale.name, "decoder"), skip=("refrag_v2/reconstruction",))
    staged, flat = training("reconstruction", k8), training("reconstruction", f"{k8}{FLAT}")
    yield train_phase([both, alone, flat, chosen])

    eighth, sixteenth = {"k": 8}, {"k": 16}
    questions: Mapping[str, tuple[Mapping[str, Line], Sequence[tuple[str, str]]]] = {
        "text_order": (
            {"reconstruction, then CPT": (both, eighth), "CPT alone": (alone, eighth)},
            [("reconstruction, then CPT", "CPT alone")],
        ),
        "text_curriculum": (
            {"the paper's curriculum": (staged, eighth), "no curriculum": (flat, eighth)},
            [("the paper's curriculum", "no curriculum")],
        ),
        "text_policy": (
            {
                "REFRAG_8": (both, eighth),
                "REFRAG_16, 1/16 by the policy": (chosen, sixteenth | {"expand": SHARE, "select": "policy"}),
                "REFRAG_16, the first 1/16": (chosen, sixteenth | {"expand": SHARE, "select": "first"}),
                "REFRAG_16": (chosen, sixteenth),
            },
            [
                ("REFRAG_16, 1/16 by the policy", other)
                for other in ("REFRAG_8", "REFRAG_16, the first 1/16", "REFRAG_16")
            ],
        ),
    }
    names = {stem: called(stem, scale, budget) for stem in questions}

    def cell(stem: str, line: Line, set_: str) -> PerplexityJob:
        job, options = line
        return PerplexityJob(
            system="refrag_v2",
            checkpoint=str(job.checkpoint),
            text=text.folder,
            set=set_,
            context=size.paragraph.context,
            runs=runs,
            output=size.scoring.outputs[-1],
            outputs=size.scoring.outputs,
            longest=max(size.scoring.contexts),
            limit=limit,
            batch_size=size.scoring.batch_size,
            device=device,
            dtype=size.precision,
            options=options,
            experiment=names[stem],
            again=stem == "text_curriculum",
        )

    sets = open_text(text.folder).sets
    cells = {
        stem: {(name, set_): cell(stem, line, set_) for name, line in lines.items() for set_ in sets}
        for stem, (lines, _) in questions.items()
    }
    yield Phase(title="score", jobs=[job for each in cells.values() for job in each.values()])
    comparisons = [
        DifferencesJob(
            name=names[stem],
            contrasts=[(cells[stem][a, set_], cells[stem][b, set_]) for set_ in sets for a, b in contrasts],
            names=[(job, name) for (name, _), job in cells[stem].items()],
            runs=runs,
            out=out,
        )
        for stem, (_, contrasts) in questions.items()
    ]
    yield Phase(title="compare", jobs=comparisons)
    tables = [TextTablesJob(experiment=name, runs=runs, out=out) for name in names.values()]
    yield Phase(title="tables", jobs=tables)
