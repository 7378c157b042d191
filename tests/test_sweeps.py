"""The experiments as plans: which phases, which cells, and that training comes in an order that can run."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from harness.cli.catalog import EXPERIMENTS, SYSTEMS
from harness.cli.main import main
from harness.config import digest, load
from harness.data.sources import DataRoot
from harness.data.world.mirror import WorldConfig, write_world
from harness.errors import InputError
from harness.model.chunking import context_positions, expanded_count, split
from harness.prompts import template
from slurm.jobs.align import AlignJob
from slurm.jobs.compare import CompareJob
from slurm.jobs.configurations import ConfigurationsJob
from slurm.jobs.data import RetrieveJob, WorldJob
from slurm.jobs.evaluate import EvaluateJob
from slurm.jobs.race import RaceJob
from slurm.jobs.tables import ReplicationJob, ReportJob, TablesJob
from slurm.jobs.train import TrainJob
from slurm.phases import Phase
from slurm.plan.plan import make_plan
from slurm.sweeps.expansion import NAME, SELECTORS, TOKENS, expansion, shares
from slurm.sweeps.main_table import main_table, seeded
from slurm.sweeps.objective import STAGES as OBJECTIVE_STAGES
from slurm.sweeps.objective import objective
from slurm.sweeps.paper import paper
from slurm.sweeps.passkey import passkey
from slurm.sweeps.selection import SEEDS, K, selection
from slurm.sweeps.tiny import CHOICES, RATES, rag_training, refrag_training, tiny, train_phase
from suites.same_relation import build as build_same_relation

ORDER = ("reconstruction", "cpt", "mixed", "finetune", "policy_start", "policy")
Plan = Callable[..., dict[str, Phase]]
DECODER = next((Path(__file__).parents[1] / "results" / "checkpoints" / "decoder").glob("pretrain-tiny-*"))


@pytest.fixture(autouse=True)
def accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where accepted checkpoints lie: none, whatever comes with the project."""
    folder = tmp_path / "accepted"
    monkeypatch.setattr("slurm.jobs.train.ACCEPTED", folder)
    return folder


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """An experiment's phases by title. Nothing of them runs."""

    def planned(experiment: Callable[..., Iterator[Phase]], **changes: Any) -> dict[str, Phase]:
        settings: dict[str, Any] = dict(
            data=None, checkpoint=None, limit=None, device="cpu", runs=tmp_path / "runs", out=tmp_path / "out"
        )
        phases = list(experiment(**settings | changes))
        assert len({phase.title for phase in phases}) == len(phases)
        return {phase.title: phase for phase in phases}

    return planned


def accept(folder: Path, job: TrainJob) -> Path:
    """As if the checkpoint of ``job`` had come with the project."""
    checkpoint = folder / job.name
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    return checkpoint


def job(stage: str = "policy", runs: Path = Path("runs"), system: str = "refrag_v2", **changes: Any) -> TrainJob:
    scale = "tiny-k8" if system == "refrag_v2" else "tiny"
    return TrainJob(**{"system": system, "stage": stage, "scale": scale, "runs": runs} | changes)


ASKED = ("evaluate", "select", "compare systems")
BUDGETED = ("tiny", "selection", "expansion", "real")


def cells(phase: Phase) -> list[EvaluateJob]:
    assert all(isinstance(cell, EvaluateJob) for cell in phase.jobs)
    return list(phase.jobs)


def expanded(cell: EvaluateJob) -> tuple[float, str]:
    return cell.options["expand"], cell.options["select"]


# The main job


def test_tiny_goes_from_data_to_tables(plan: Plan, tmp_path: Path) -> None:
    phases = plan(tiny)
    assert list(phases) == [
        "data",
        "train",
        "verify alignment",
        "retrieve",
        *ASKED,
        "race",
        "configurations",
        "tables",
        "report",
    ]
    kinds = {title: {type(each) for each in phase.jobs} for title, phase in phases.items()}
    assert kinds == {
        "data": {WorldJob},
        "train": {TrainJob},
        "verify alignment": {AlignJob},
        "retrieve": {RetrieveJob},
        **{title: {EvaluateJob} for title in ASKED},
        "race": {RaceJob},
        "configurations": {ConfigurationsJob},
        "tables": {TablesJob, ReplicationJob},
        "report": {ReportJob},
    }
    (world,) = phases["data"].jobs
    reading = [each for title in ("retrieve", *ASKED) for each in phases[title].jobs]
    assert {each.data for each in reading} == {world.folder}
    *experiments, replication = phases["tables"].jobs
    assert [each.experiment for each in experiments] == ["tiny", "tiny-selection", "tiny-systems"]
    assert isinstance(replication, ReplicationJob)
    assert {each.out for each in phases["tables"].jobs} == {tmp_path / "out"}
    assert [each.out for each in phases["report"].jobs] == [tmp_path / "out" / "report.html"]


def test_tiny_holds_standard_rag_at_every_number_of_passages(plan: Plan) -> None:
    rag = [cell for cell in cells(plan(tiny)["evaluate"]) if cell.system == "standard_rag"]
    asked = [(cell.suite, cell.passages) for cell in rag]
    expected = [(suite, n) for suite in ("nq", "triviaqa", "popqa") for n in (0, 1, 4, 8)]
    expected += [("same_relation", n) for n in (2, 4, 8)]
    assert sorted(asked) == sorted(expected)
    assert len({cell.checkpoint for cell in rag}) == 1


def test_tiny_holds_refrag_at_every_rate_with_nothing_expanded_and_by_policy_at_the_most(plan: Plan) -> None:
    phases = plan(tiny)
    refrag = [cell for cell in cells(phases["evaluate"]) if cell.system == "refrag_v2"]
    trained = [each for each in phases["train"].jobs if each.stage == "policy"]
    assert [each.scale for each in trained] == ["tiny-k8", "tiny-k16", "tiny-k32"]
    assert {cell.checkpoint for cell in refrag} == {str(each.checkpoint) for each in trained}
    contexts = [(suite, n) for suite in ("nq", "triviaqa", "popqa") for n in (1, 4, 8)]
    contexts += [("same_relation", n) for n in (2, 4, 8)]
    expected = Counter((*context, 0.0, "none") for context in contexts)
    expected.update((suite, 8, 0.1, "policy") for suite in ("nq", "triviaqa", "popqa", "same_relation"))
    for each in trained:
        own = [cell for cell in refrag if cell.checkpoint == str(each.checkpoint)]
        assert Counter((cell.suite, cell.passages, *expanded(cell)) for cell in own) == expected


def test_tiny_verifies_every_refrag_and_stops_at_nothing(plan: Plan) -> None:
    phases = plan(tiny)
    checks = phases["verify alignment"].jobs
    trained = [each for each in phases["train"].jobs if each.stage == "policy"]
    assert [check.checkpoint for check in checks] == [each.checkpoint for each in trained]
    assert all(check.gate is not None and not check.stop for check in checks)
    assert len({check.out for check in checks}) == len(checks)


def test_what_is_retrieved_is_read_and_the_rest_brings_its_own(plan: Plan) -> None:
    phases = plan(tiny)
    by_suite = {each.suite: each for each in phases["retrieve"].jobs}
    assert by_suite.keys() == {"nq", "triviaqa", "popqa"}
    for cell in cells(phases["evaluate"]):
        assert cell.retrieval == (by_suite.get(cell.suite) if cell.passages else None)


def test_tiny_selects_in_every_way_at_one_context_and_races_just_that(plan: Plan) -> None:
    phases = plan(tiny)
    chosen = cells(phases["select"])
    assert {(cell.suite, cell.passages, cell.experiment) for cell in chosen} == {("same_relation", 8, "tiny-selection")}
    reference, *others = chosen
    assert (reference.system, dict(reference.options)) == ("standard_rag", {})
    by_checkpoint = Counter(cell.checkpoint for cell in others)
    assert len(by_checkpoint) == len(RATES) == 3
    ways = {
        (0.0, "none"),
        *((0.1, way) for way in ("random", "perplexity-desc", "perplexity-asc", "policy", "oracle")),
        (1.0, "all"),
    }
    for checkpoint in by_checkpoint:
        assert {expanded(cell) for cell in others if cell.checkpoint == checkpoint} == ways
    assert set(by_checkpoint.values()) == {len(ways)} == {len(CHOICES)}
    (race,) = phases["race"].jobs
    assert list(race.cells)[: len(chosen)] == chosen, "the first, standard RAG, is the reference"
    assert race.experiments == ("tiny-selection", "tiny-systems")


def test_tiny_compares_every_system_on_the_same_passages(plan: Plan) -> None:
    phases = plan(tiny)
    compared = cells(phases["compare systems"])
    assert {cell.experiment for cell in compared} == {"tiny-systems"}
    assert {cell.system for cell in compared} == set(SYSTEMS)
    of_suite = {
        suite: [c for c in compared if c.suite == suite] for suite in ("nq", "triviaqa", "popqa", "same_relation")
    }
    rows = [(c.system, c.checkpoint, dict(c.options)) for c in of_suite["nq"]]
    assert all([(c.system, c.checkpoint, dict(c.options)) for c in of_one] == rows for of_one in of_suite.values())
    assert {cell.passages for cell in compared} == {8}
    assert sum(cell.system == "refrag_v2" for cell in of_suite["nq"]) == 2
    (race,) = phases["race"].jobs
    raced = [(c.system, c.checkpoint, dict(c.options)) for c in race.cells]
    assert all(row in raced for row in rows)
    assert all(raced.count(row) == 1 for row in raced), "nobody races against itself but the reference"


@pytest.mark.parametrize("select", [expand["select"] for expand in CHOICES])
def test_every_way_of_selecting_is_one_that_the_system_has(select: str) -> None:
    from refrag_v2.system import RefragV2Config

    (options,) = (choice for choice in CHOICES if choice["select"] == select)
    assert RefragV2Config(k=8, **options).select == select


def test_the_two_tables_share_the_runs_that_are_in_both(plan: Plan) -> None:
    """A cell of both experiments is one run: it differs in the experiment alone."""
    phases = plan(tiny)
    read = [cell for cell in cells(phases["evaluate"]) if cell.system in ("standard_rag", "refrag_v2")]
    both = [cell for cell in read if (cell.suite, cell.passages) == ("same_relation", 8)]
    selected = [replace(cell, experiment="tiny") for cell in cells(phases["select"])]
    assert len(both) == 1 + 2 * len(RATES)
    assert all(cell in selected for cell in both)


def test_a_decoder_of_ones_own_is_read_by_standard_rag_alone(plan: Plan, tmp_path: Path) -> None:
    phases = plan(tiny, checkpoint="DECODER", data=tmp_path / "world", limit=7)
    assert list(phases) == ["retrieve", "evaluate", "tables", "report"]
    assert {(c.system, c.checkpoint, c.data, c.limit) for c in cells(phases["evaluate"])} == {
        ("standard_rag", "DECODER", tmp_path / "world", 7)
    }
    assert [each.experiment for each in phases["tables"].jobs] == ["tiny"]


@pytest.mark.parametrize("name", BUDGETED)
def test_another_budget_is_an_input_error_with_the_valid_ones(plan: Plan, name: str, tmp_path: Path) -> None:
    valid = "half, long, short" if name == "selection" else "long, short"
    with pytest.raises(InputError, match=rf"unknown budget 'longer' \(did you mean 'long'\?\); .*: {valid}"):
        plan(load(EXPERIMENTS[name]), budget="longer", data=tmp_path)


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize(("budget", "suffix"), [("long", ""), ("short", "-short")])
@pytest.mark.parametrize("from_scratch", [False, True])
def test_budget_and_from_scratch_reach_every_training(
    plan: Plan, name: str, budget: str, suffix: str, from_scratch: bool
) -> None:
    phases = plan(load(EXPERIMENTS[name]), budget=budget, from_scratch=from_scratch)
    trainings = [each for phase in phases.values() for each in phase.jobs if isinstance(each, TrainJob)]
    assert len(trainings) >= 2
    for each in trainings:
        # Selection trains the policy at full length on whatever model it is given.
        of_policy = name == "selection" and each.stage.startswith("policy")
        assert each.scale.endswith("-short") == (bool(suffix) and not of_policy), each.title
        assert each.from_scratch == from_scratch


@pytest.mark.parametrize(
    ("name", "from_scratch", "suffix"),
    [
        ("tiny", False, ""),
        ("tiny", True, "-short"),
        ("selection", False, "-half"),
        ("selection", True, "-half"),
        ("expansion", False, ""),
        ("expansion", True, "-short"),
        ("real", False, ""),
    ],
)
def test_the_budget_where_none_is_given(plan: Plan, name: str, from_scratch: bool, suffix: str) -> None:
    trained = plan(load(EXPERIMENTS[name]), from_scratch=from_scratch)["train"].jobs
    assert {each.scale.removeprefix(f"tiny-k{K}") for each in trained if each.scale.startswith(f"tiny-k{K}")} <= {
        suffix
    }
    assert all(each.scale.endswith(suffix) for each in trained if each.system != "decoder")


# Expansion


def test_expansion_asks_every_selector_at_every_share_and_the_ends_once(plan: Plan) -> None:
    phases = plan(expansion)
    assert list(phases) == ["data", "train", "evaluate", "compare", "tables"]
    asked = cells(phases["evaluate"])
    assert {(c.system, c.suite, c.passages, c.experiment) for c in asked} == {("refrag_v2", "same_relation", 8, NAME)}
    ends = [(0.0, "none"), (1.0, "all")]
    some = {8: (0.05, 0.1, 0.2, 0.5), 16: (0.05, 0.1, 0.2, 0.5), 32: (0.1, 0.2, 0.5)}
    trained = {each.scale: str(each.checkpoint) for each in phases["train"].jobs if each.stage == "policy"}
    for k, between in some.items():
        own = [c for c in asked if c.options["k"] == k]
        assert {c.checkpoint for c in own} == {trained[f"tiny-k{k}"]}
        assert Counter(expanded(c) for c in own) == Counter(ends + [(p, s) for p in between for s in SELECTORS])
    assert len(asked) == 6 + 11 * len(SELECTORS)


def test_expansion_has_every_selector_of_the_system_and_valid_choices_alone(plan: Plan) -> None:
    from refrag_v2.selectors import SELECTORS as ALL
    from refrag_v2.system import RefragV2Config

    assert {"none", "all", *SELECTORS} == ALL.keys()
    for cell in cells(plan(expansion)["evaluate"]):
        assert RefragV2Config(**cell.options).expand == cell.options["expand"]


def test_expansion_counts_its_chunks_as_the_passages_have_them(plan: Plan, tmp_path: Path) -> None:
    """Names say what the system expands: the world's own passages, in tokens of the decoder."""
    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    root = DataRoot.open(write_world(WorldConfig(questions=20, people=60, documents=1), tmp_path / "world-0"))
    suite = build_same_relation("same_relation", root, passages=8, frozen=None, limit=None)
    counts = set()
    for example in suite.examples():
        texts = [text for _, text in template("tagged").passage_blocks(tokenizer, example.passages)]
        counts.add(tuple(sum(len(split(text, k)) for text in texts) for k in RATES))
        assert sum(map(len, texts)) == TOKENS
    assert counts == {(32, 16, 8)}
    for k, chunks in zip(RATES, (32, 16, 8), strict=True):
        assert TOKENS / k == chunks
        assert 0 not in [expanded_count(p, chunks) for p in shares(k)]
    names = [way.name for job in plan(expansion)["compare"].jobs for pair in job.contrasts for way in pair]
    assert {"k=8, policy, 2 of 32", "k=16, random, 3 of 16", "k=32, oracle, 4 of 8"} <= set(names)


def test_expansion_compares_rates_at_the_decoder_positions_that_come_nearest(plan: Plan) -> None:
    """p = 1 / (2k - 1) of the chunks of 2k tokens expanded read as many positions as the chunks of k (Table 13)."""
    positions, _ = plan(expansion)["compare"].jobs
    assert isinstance(positions, CompareJob)
    assert positions.name == "expansion-positions" and "decoder_positions" in positions.beside

    def read(cell: EvaluateJob) -> int:
        """Positions of the context."""
        k, share = cell.options["k"], cell.options["expand"]
        return context_positions(0, [k] * (TOKENS // k), share)

    found = [
        [(c.options["k"], *expanded(c), read(c)) for way in pair for c in way.cells] for pair in positions.contrasts
    ]
    assert found == [
        [(16, 0.05, "policy", 31), (8, 0.0, "none", 32)],
        [(32, 0.0, "none", 8), (16, 0.0, "none", 16)],
        [(32, 0.1, "policy", 39), (16, 0.0, "none", 16)],
        [(32, 0.1, "policy", 39), (8, 0.0, "none", 32)],
    ]
    for k, more, ours in ((16, 8, 0.05), (32, 8, 0.1)):
        chunks = TOKENS // k
        exact = (TOKENS / more - chunks) / (chunks * (k - 1))
        assert chunks + exact * chunks * (k - 1) == pytest.approx(TOKENS / more)
        assert expanded_count(exact, chunks) == expanded_count(ours, chunks) == 1
    assert (TOKENS / 16 - 8) / 31 < 1, "k = 32 has no whole chunk to expand at the positions of k = 16"


def test_expansion_compares_selectors_at_one_k_and_one_share(plan: Plan) -> None:
    phases = plan(expansion)
    _, pairs = phases["compare"].jobs
    asked = cells(phases["evaluate"])
    contrasts = [(a.cells[0], b.cells[0]) for a, b in pairs.contrasts]
    assert all(cell in asked for pair in contrasts for cell in pair)
    assert all(a.options["k"] == b.options["k"] for a, b in contrasts)
    by_selector = Counter((a.options["select"], b.options["select"]) for a, b in contrasts)
    assert by_selector == {
        ("all", "none"): 3, ("policy", "random"): 11, ("policy", "perplexity-desc"): 11, ("oracle", "random"): 11
    }  # fmt: skip
    assert all(a.options["expand"] == b.options["expand"] for a, b in contrasts if a.options["select"] != "all")


def test_expansion_has_no_checkpoint_of_ones_own(plan: Plan) -> None:
    with pytest.raises(InputError, match="leave --checkpoint out"):
        plan(expansion, checkpoint="somewhere")


# Pass keys


def test_passkey_asks_every_system_the_same_and_refrag_at_k_times_the_length(plan: Plan) -> None:
    phases = plan(passkey)
    assert list(phases) == ["train", "evaluate", "tables"]
    last = [each for each in phases["train"].jobs if each.stage == "memory"]
    assert [(each.system, each.scale) for each in last] == [
        ("standard_rag", "tiny"), ("kv_reuse", "tiny"), ("cepe", "tiny"),
        *(("refrag_v2", f"tiny-k{k}") for k in (8, 16, 32)),
    ]  # fmt: skip
    asked = {each.checkpoint: [] for each in cells(phases["evaluate"])}
    for each in cells(phases["evaluate"]):
        asked[each.checkpoint].append((each.suite, tuple(sorted(each.asked.items()))))
    assert asked.keys() == {str(each.checkpoint) for each in last}
    reference = set(asked[str(last[0].checkpoint)])
    assert all(reference <= set(found) for found in asked.values())
    assert all(len(set(found)) == len(found) for found in asked.values())
    lengths: dict[int | None, set[int]] = {}
    for each in cells(phases["evaluate"]):
        if each.suite == "passkey":
            lengths.setdefault(each.options.get("k"), set()).add(each.asked["length"])
    for k in (8, 16, 32):
        assert {k * length for length in lengths[None]} & lengths[k], "some length has a partner of as many positions"


def test_all_systems_practise_on_the_same_rows_for_as_many_steps(plan: Plan) -> None:
    recipes = [each.recipe() for each in plan(passkey)["train"].jobs if each.stage == "memory"]
    assert (
        len({digest([r.data, r.stage.steps, r.stage.seed, r.stage.optimizer, r.stage.schedule]) for r in recipes}) == 1
    )


# The main table


def read_by(cell: EvaluateJob) -> tuple[str, str, tuple[Any, ...]]:
    return cell.system, cell.checkpoint, tuple(cell.options.items())


def test_the_main_table_holds_every_system_from_three_trainings_on_the_same_questions(plan: Plan) -> None:
    phases = plan(main_table)
    assert list(phases) == ["data", "train", "retrieve", "evaluate", "compare", "tables"]
    of_suite: dict[str, list[EvaluateJob]] = {}
    for cell in cells(phases["evaluate"]):
        of_suite.setdefault(cell.suite, []).append(cell)
    assert of_suite.keys() == {"nq", "triviaqa", "popqa", "same_relation"}
    rows = [read_by(cell) for cell in of_suite["nq"]]
    assert len(set(rows)) == len(rows)
    for suite, asked in of_suite.items():
        assert [read_by(cell) for cell in asked] == rows
        retrievals = {cell.retrieval for cell in asked}
        (retrieval,) = retrievals
        assert (retrieval is None) == (suite == "same_relation")
    assert {system for system, _, _ in rows} == set(SYSTEMS)
    assert {dict(o)["k"] for system, _, o in rows if system == "refrag_v2"} == {8, 16, 32}
    checkpoints: dict[Any, set[str]] = {}
    for system, checkpoint, options in rows:
        checkpoints.setdefault((system, options), set()).add(checkpoint)
    assert {len(each) for each in checkpoints.values()} == {3}
    trained = {str(each.checkpoint) for each in phases["train"].jobs}
    assert {checkpoint for _, checkpoint, _ in rows} <= trained


def test_the_main_tables_first_seed_is_tinys_and_all_share_its_decoder(plan: Plan) -> None:
    trained = plan(main_table)["train"].jobs
    tinys = plan(tiny)["train"].jobs
    assert {each.name for each in trained} > {each.name for each in tinys}
    by_stage = Counter((each.system, each.stage, each.scale) for each in trained)
    (decoder,) = (stage for stage, n in by_stage.items() if n == 1)
    assert decoder == ("decoder", "pretrain", "tiny") and set(by_stage.values()) == {1, 3}
    for each in trained:
        before = each.before
        assert before is None or before.system == "decoder" or before.seed == each.seed, "a seed goes all the way"


def test_each_system_is_compared_with_standard_rag_of_the_same_seed(plan: Plan) -> None:
    phases = plan(main_table)
    assert [each.name for each in phases["compare"].jobs] == [
        f"main_table-{suite}" for suite in ("nq", "triviaqa", "popqa", "same-relation")
    ]
    for compared in phases["compare"].jobs:
        (reference,) = {other.name for _, other in compared.contrasts}
        assert reference == "standard_rag"
        names = [way.name for way, _ in compared.contrasts]
        assert len(set(names)) == len(names) == 14
        for way, other in compared.contrasts:
            assert all(cell in phases["evaluate"].jobs for cell in (*way.cells, *other.cells))
            if way.name == "no_context":
                assert [cell.checkpoint for cell in way.cells] == [cell.checkpoint for cell in other.cells]


def test_a_smoke_of_the_main_table_is_one_seed_and_few_questions(plan: Plan) -> None:
    whole, smoke = cells(plan(main_table)["evaluate"]), cells(plan(main_table, budget="smoke")["evaluate"])
    assert {cell.limit for cell in whole} == {None} and {cell.limit for cell in smoke} == {8}
    assert [replace(cell, limit=None) for cell in smoke] == [
        cell for cell in whole if cell.checkpoint in {each.checkpoint for each in smoke}
    ]
    assert {cell.limit for cell in cells(plan(main_table, budget="smoke", limit=3)["evaluate"])} == {3}


def test_on_real_questions_a_decoder_of_ones_own_is_read_by_what_needs_no_training(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "root" / "hub").mkdir(parents=True)
    phases = plan(main_table, data=tmp_path / "root", checkpoint="DECODER")
    assert list(phases) == ["retrieve", "evaluate", "compare", "tables"]
    asked = cells(phases["evaluate"])
    assert {cell.checkpoint for cell in asked} == {"DECODER"}
    assert {cell.suite for cell in asked} == {"nq", "triviaqa", "popqa"}, "the set of the same relation is the world's"
    assert {cell.system for cell in asked} == {
        "standard_rag", "no_context", "replug", "llama_k", "extract", "kv_reuse_plain"
    }  # fmt: skip
    assert {cell.limit for cell in asked} == {None}
    assert {cell.max_new_tokens for cell in asked} == {16}


def test_a_seed_of_the_recipes_own_names_the_same_training(tmp_path: Path) -> None:
    last = job(runs=tmp_path)
    assert seeded(last, 0).name == last.name
    assert len({seeded(last, seed).name for seed in (0, 1, 2)}) == 3
    assert [each.seed for each in seeded(last, 1).chain] == [None] + [1] * len(ORDER)


# The paper's training

PAPER_STAGES = ("reconstruction", "cpt", "mixed", "finetune", "policy")


def test_the_paper_trains_its_stages_in_order_on_64_gpus_and_fills_a_table(plan: Plan) -> None:
    phases = plan(paper, device="cuda", checkpoint="LLAMA")
    assert list(phases) == [*PAPER_STAGES, "retrieve", "evaluate", "compare", "tables"]
    before: Any = Path("LLAMA")
    planned = make_plan("7b", k=16, mfu=0.4, price_usd=2.5)
    for title in PAPER_STAGES:
        (each,) = phases[title].jobs
        assert isinstance(each, TrainJob)
        assert (each.stage, each.scale, each.start) == (title, "paper-k16", before)
        assert (each.nodes, each.tasks_per_node, each.device) == (8, 8, "cuda")
        recipe = each.recipe()
        stage = planned.stages[title]
        assert (recipe.stage.optimizer.lr, recipe.stage.steps) == (stage.lr, stage.steps)
        assert phases[title].gpu_hours == stage.gpu_hours
        before = each
    asked = cells(phases["evaluate"])
    assert {cell.checkpoint for cell in asked} == {"LLAMA", str(before.checkpoint)}
    assert {expanded(cell) for cell in asked if cell.system == "refrag_v2"} == {(0.0, "none"), (0.1, "policy")}


@pytest.mark.parametrize("k", [8, 16, 32, 64])
def test_the_papers_scale_is_its_k(plan: Plan, k: int) -> None:
    phases = plan(paper, device="cuda", budget=f"k{k}")
    assert {each.recipe().model.k for title in PAPER_STAGES for each in phases[title].jobs} == {k}
    assert phases["cpt"].gpu_hours == make_plan("7b", k=k, mfu=0.4, price_usd=2.5).stages["cpt"].gpu_hours
    assert {cell.options["k"] for cell in cells(phases["evaluate"]) if cell.system == "refrag_v2"} == {k}


def test_a_smoke_of_the_paper_has_its_phases_rates_and_order_in_two_processes(plan: Plan) -> None:
    whole, smoke = plan(paper, device="cuda"), plan(paper, budget="smoke")
    assert [title for title in smoke if title not in ("train", "data")] == list(whole)
    start = None
    for title in PAPER_STAGES:
        (large,), (small,) = whole[title].jobs, smoke[title].jobs
        ours, theirs = small.recipe(), large.recipe()
        same = {"steps": ours.stage.steps, "checkpoint_every": ours.stage.checkpoint_every}
        assert ours.stage == replace(theirs.stage, **same) and ours.stage.steps < 10
        assert ours.requires == theirs.requires
        assert ours.model == replace(theirs.model, encoder=ours.model.encoder)
        assert (small.nodes, small.tasks_per_node, small.device) == (1, 1 if title == "policy" else 2, "cpu")
        assert small.start == start and small.obstacles == ()
        start = small
    decoder, *_ = smoke["train"].jobs
    assert decoder.checkpoint == smoke["reconstruction"].jobs[0].before.checkpoint


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "cpu"}, "trains 64 processes with a GPU each: --device cuda"),
        ({"budget": "k7"}, "unknown scale of experiment 'paper' 'k7'.*k16, k32, k64, k8, smoke"),
        ({"budget": "smoke", "checkpoint": "x"}, "leave --data and --checkpoint out"),
    ],
)
def test_what_the_paper_does_not_take(plan: Plan, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(paper, **asked)


def windows(folder: Path, length: int) -> Path:
    """What a training looks at before it begins."""
    folder.mkdir()
    about = {"mixture": None, "dtype": "<u2", "tokenizer": {"digest": "t"}, "shards": []}
    manifest = {"format": 1, "layout": {"length": length}, "digest": "d", **about}
    (folder / "windows.json").write_text(json.dumps(manifest))
    return folder


def test_the_paper_reads_its_text_from_the_windows_of_its_data_root(plan: Plan, tmp_path: Path) -> None:
    windows(tmp_path / "windows", 4096)
    (tmp_path / "hub").mkdir()
    phases = plan(paper, device="cuda", checkpoint="LLAMA", data=tmp_path)
    jobs = {title: phases[title].jobs[0] for title in PAPER_STAGES}
    text = tmp_path / "windows"
    assert {title: each.text for title, each in jobs.items()} == dict.fromkeys(PAPER_STAGES, text) | {"finetune": None}
    assert {title: each.loaders for title, each in jobs.items()} == dict.fromkeys(PAPER_STAGES, 2) | {"finetune": 0}
    assert all(jobs[title].obstacles == () for title in ("reconstruction", "cpt", "mixed"))
    assert jobs["policy"].obstacles == ("a policy's training is for one process yet",)


def test_a_training_says_what_stands_in_its_way(tmp_path: Path, accepted: Path) -> None:
    def obstacles(stage: str, **changes: Any) -> tuple[str, ...]:
        return job(stage, tmp_path, **changes).obstacles

    made = "`refrag-bench data prepare` makes windows of at least {} tokens, with the tokenizer of the decoder that the"
    no_start = "there is no decoder to start from (--checkpoint, --start of `refrag-bench train`)"
    no_text, no_start_found = obstacles("reconstruction", scale="paper-k16")
    assert no_text.startswith(f"there are no prepared windows (--text; {made.format('2,048')}")
    assert no_start_found == no_start
    (found,) = obstacles("cpt", scale="paper-k16", text=tmp_path / "windows")
    assert found.startswith(f"there are no prepared windows at {tmp_path / 'windows'} ({made.format('4,096')}")
    (found,) = obstacles("cpt", scale="paper-k16", text=windows(tmp_path / "short", 4095))
    assert found.startswith(f"the windows at {tmp_path / 'short'} have 4,095 tokens ({made.format('4,096')}")
    assert obstacles("cpt", scale="paper-k16", text=windows(tmp_path / "long", 4096)) == ()
    assert obstacles("finetune", scale="paper-k16") == ("nothing here reads the 1.1 M instruction examples (p. 7) yet",)
    with pytest.raises(
        InputError, match=r"\(paper-k16\) cannot begin: there are no prepared windows .*; there is no dec"
    ):
        job("reconstruction", tmp_path, scale="paper-k16").run()
    assert obstacles("policy", scale="paper-k16-smoke") == ()
    assert obstacles("policy", scale="paper-k16-smoke", nodes=2) == ("a policy's training is for one process yet",)
    assert obstacles("cpt", tasks_per_node=2) == ("Muon is for one process yet",)
    assert obstacles("cpt") == ()
    assert obstacles("finetune", scale="fsdp", nodes=2, tasks_per_node=2) == ()
    accept(accepted, job("cpt", tmp_path))
    assert obstacles("cpt", tasks_per_node=2) == (), "what is there need not be trained"


# Training in order


def links(phase: Phase) -> list[tuple[TrainJob, TrainJob | None]]:
    return [(each, each.before) for each in phase.jobs]


@pytest.mark.parametrize(
    ("experiment", "budget"),
    [(e, b) for e in (tiny, selection, expansion) for b in ("long", "short")] + [(passkey, None)],
)
def test_each_training_stands_once_and_after_what_it_starts_from(
    plan: Plan, experiment: Any, budget: str | None
) -> None:
    phase = plan(experiment, budget=budget)["train"]
    names = [each.name for each in phase.jobs]
    assert len(set(names)) == len(names)
    for place, (_, before) in enumerate(links(phase)):
        assert before is None or before.name in names[:place]


def test_tiny_trains_one_decoder_for_all(plan: Plan) -> None:
    trained = [(each.system, each.stage, each.scale) for each in plan(tiny)["train"].jobs]
    assert Counter(trained) == Counter(
        [("decoder", "pretrain", "tiny"), ("standard_rag", "finetune", "tiny"), ("kv_reuse", "finetune", "tiny")]
        + [("cepe", stage, "tiny") for stage in ("warmup", "cpt")]
        + [("refrag_v1", stage, "tiny-k64") for stage in ("cpt_recon", "cpt_next", "train_policy")]
        + [("refrag_v2", stage, f"tiny-k{k}") for k in (8, 16, 32) for stage in ORDER]
    )


def test_a_shared_start_is_listed_once(tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(runs=tmp_path, device="cpu", budget="long", from_scratch=False)
    rag, refrag = rag_training(**settings), refrag_training(8, **settings)
    assert train_phase([rag, refrag]).jobs == [*rag.chain, *refrag.chain[1:]]
    assert train_phase([refrag, rag]).jobs == [*refrag.chain, rag]
    assert train_phase([refrag, refrag]).jobs == refrag.chain


def test_a_chain_leads_from_the_decoder_to_the_job(tmp_path: Path) -> None:
    chain = job(runs=tmp_path).chain
    assert [each.stage for each in chain] == ["pretrain", *ORDER]
    for earlier, later in itertools.pairwise(chain):
        assert later.before == earlier


@pytest.mark.parametrize("done", ["pretrain", "cpt", "policy_start"])
def test_a_chain_stops_at_what_is_finished(tmp_path: Path, accepted: Path, done: str) -> None:
    whole = job(runs=tmp_path).chain
    place = [each.stage for each in whole].index(done)
    checkpoint = accept(accepted, whole[place])
    assert whole[place].finished
    assert whole[place].checkpoint == checkpoint
    assert job(runs=tmp_path).chain == whole[place:], "the finished one stands first, and will say so at once"


def test_a_finished_job_needs_nothing(tmp_path: Path, accepted: Path) -> None:
    last = job(runs=tmp_path)
    accept(accepted, last)
    assert last.chain == [last]
    assert last.run() == last.checkpoint == accepted / last.name


def test_from_scratch_takes_nothing_that_was_accepted(tmp_path: Path, accepted: Path) -> None:
    for each in job(runs=tmp_path).chain:
        accept(accepted, each)
    again = job(runs=tmp_path, from_scratch=True)
    assert [each.stage for each in again.chain] == ["pretrain", *ORDER]
    for each in again.chain:
        assert each.from_scratch
        assert not each.finished
        assert each.checkpoint == each.folder / "final"
        assert each.name == replace(each, from_scratch=False).name, "and yet it is the same training"


def test_what_was_trained_here_is_finished_too(tmp_path: Path) -> None:
    trained = job("cpt", tmp_path, from_scratch=True)
    assert not trained.finished
    (trained.folder / "final").mkdir(parents=True)
    (trained.folder / "final" / "config.json").write_text("{}")
    assert trained.finished
    assert [each.stage for each in job("mixed", tmp_path, from_scratch=True).chain] == ["cpt", "mixed"]


# Which training is which


def test_a_start_given_as_the_job_before_changes_nothing(tmp_path: Path) -> None:
    default = job(runs=tmp_path)
    given = job(runs=tmp_path, start=default.before)
    assert given.before == default.before
    assert (given.name, given.checkpoint) == (default.name, default.checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"start": Path("elsewhere")},
        {"start": job("policy_start", seed=1)},
        {"start": job("finetune")},
        {"skip": ("refrag_v2/cpt",)},
        {"scale": "tiny-k16"},
        {"stage": "policy_start"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_another_training_has_another_name(changes: dict[str, Any]) -> None:
    assert job(**changes).name != job().name


def test_a_seed_changes_all_that_come_after_it_and_the_recipes_own_changes_nothing(tmp_path: Path) -> None:
    own = job("policy_start", tmp_path).recipe().stage.seed
    assert job("policy_start", tmp_path, seed=own).name == job("policy_start", tmp_path).name
    other = job(runs=tmp_path, start=job("policy_start", tmp_path, seed=own + 1))
    assert other.name != job(runs=tmp_path).name
    assert other.recipe() == job(runs=tmp_path).recipe(), "its own seed stays"


@pytest.mark.parametrize("where", [{"runs": Path("elsewhere")}, {"device": "cuda"}, {"from_scratch": True}])
def test_where_it_runs_is_no_part_of_the_name(where: dict[str, Any]) -> None:
    assert job(**where).name == job().name


# Selection


def test_selection_trains_three_seeds_on_one_model(plan: Plan) -> None:
    phases = plan(selection, budget="long")
    assert list(phases) == ["data", "train", "warm up", "train by GRPO", "evaluate", "compare", "tables"]
    starts, trained = phases["warm up"].jobs, phases["train by GRPO"].jobs
    assert [each.seed for each in starts] == [each.seed for each in trained] == list(SEEDS)
    assert [each.before for each in trained] == list(starts)
    (model,) = {each.before for each in starts}
    assert model == phases["train"].jobs[-1]
    assert (model.stage, model.scale) == ("finetune", f"tiny-k{K}")
    assert len({each.name for each in (*starts, *trained)}) == 2 * len(SEEDS)


@pytest.mark.parametrize("budget", ["long"])
def test_seed_0_of_selection_is_the_tiny_experiments_own_policy(plan: Plan, budget: str) -> None:
    phases = plan(selection, budget=budget)
    own = {each.name for each in plan(tiny, budget=budget)["train"].jobs}
    for title in ("warm up", "train by GRPO"):
        first, *others = phases[title].jobs
        assert first.name in own
        assert not {each.name for each in others} & own
    assert {each.name for each in phases["train"].jobs} <= own
    assert (
        phases["train by GRPO"].jobs[0].chain[-1].name
        == refrag_training(K, Path("runs"), "cpu", budget, from_scratch=False).name
    )


def test_selection_asks_every_policy_and_compares_them(plan: Plan) -> None:
    phases = plan(selection)
    starts, trained = phases["warm up"].jobs, phases["train by GRPO"].jobs
    (model,) = {each.before for each in starts}
    asked = Counter((cell.checkpoint, *expanded(cell)) for cell in cells(phases["evaluate"]))
    policies = [(str(each.checkpoint), 0.1, "policy") for each in (*trained, *starts)]
    unlearned = [(0.1, "random"), (0.0, "none"), (0.1, "oracle")]
    assert asked == Counter([*policies, *((str(model.checkpoint), *way) for way in unlearned)])
    assert {(cell.suite, cell.passages) for cell in cells(phases["evaluate"])} == {("same_relation", 8)}
    (compared,) = phases["compare"].jobs
    assert isinstance(compared, CompareJob)
    assert [other.name for _, other in compared.contrasts] == ["its start", "random"]
    for way, other in compared.contrasts:
        assert [cell.checkpoint for cell in way.cells] == [str(each.checkpoint) for each in trained]
        assert all(cell in phases["evaluate"].jobs for cell in (*way.cells, *other.cells))


def test_selection_is_on_other_people_than_the_main_table(plan: Plan) -> None:
    (ours,), (tinys,) = (plan(experiment)["data"].jobs for experiment in (selection, tiny))
    assert ours.config.seed != tinys.config.seed
    assert ours.folder != tinys.folder


def test_selection_on_a_model_of_ones_own(plan: Plan, tmp_path: Path) -> None:
    phases = plan(selection, checkpoint="REFRAG", data=tmp_path)
    assert list(phases) == ["warm up", "train by GRPO", "evaluate", "compare", "tables"]
    assert [each.start for each in phases["warm up"].jobs] == [Path("REFRAG")] * len(SEEDS)
    unlearned = [cell for cell in cells(phases["evaluate"]) if cell.options["select"] != "policy"]
    assert {cell.checkpoint for cell in unlearned} == {"REFRAG"}


# The names on the command line


@pytest.mark.parametrize(
    ("name", "stage"), [("train_reconstruction", "reconstruction"), ("train_cpt", "cpt"), ("train_policy", "policy")]
)
@pytest.mark.parametrize("before", [[], ["train", "refrag_v2"]], ids=["as a verb", "as a stage"])
def test_the_seed_documents_names_stand_for_stages(
    capsys: pytest.CaptureFixture[str], before: list[str], name: str, stage: str
) -> None:
    assert main([*before, name, "--scale", "nope"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"unknown scale of refrag_v2 {stage} 'nope'" in err
    assert "tiny-k16-short" in err


def test_v1s_own_train_policy_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "refrag_v1", "train_policy", "--scale", "nope"]) == 2
    assert "unknown scale of refrag_v1 train_policy 'nope'" in capsys.readouterr().err


# Known faults


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_another_budget_is_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    """``run real`` indexes and retrieves for minutes first."""
    settings: dict[str, Any] = dict(data=None, checkpoint=None, limit=None, device="cpu", out=tmp_path)
    with pytest.raises(InputError, match="budget|scale"):
        next(iter(load(EXPERIMENTS[name])(runs=tmp_path, budget="longer", **settings)))


# The 2 x 2 of recipes and k


def test_objective_trains_both_recipes_at_both_k_for_three_seeds(plan: Plan) -> None:
    phases = plan(objective)
    assert list(phases) == ["data", "train", "read back", "evaluate", "compare", "tables"]
    trained = [each for each in phases["train"].jobs if each.system.startswith("refrag")]
    cells_ = Counter((each.system, each.stage, each.scale, each.seed) for each in trained)
    assert set(cells_.values()) == {1}
    assert set(cells_) == {
        (system, stage, f"objective-k{k}", seed)
        for system, stages in OBJECTIVE_STAGES.items()
        for stage in stages
        for k in (8, 64)
        for seed in (0, 1, 2)
    }
    for each in trained:
        place = OBJECTIVE_STAGES[each.system].index(each.stage)
        before = each.before
        assert before is not None
        if place:
            assert (before.system, before.seed, before.scale) == (each.system, each.seed, each.scale)
        else:
            assert (before.system, before.stage, before.scale) == ("decoder", "pretrain", "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1], ids=["reconstruction", "next paragraph"])
def test_objective_gives_every_cell_the_same_number_of_decoder_tokens(plan: Plan, place: int) -> None:
    """Counted as the training loop counts them."""
    counts: dict[tuple[str, str], int] = {}
    for each in plan(objective)["train"].jobs:
        if each.seed != 0 or each.stage != OBJECTIVE_STAGES[each.system][place]:
            continue
        recipe: Any = each.recipe()
        batches = recipe.batches(*recipe.open(DECODER))
        tokens = (int(next(batches)["attention_mask"].sum()) for _ in range(recipe.stage.steps))
        counts[each.system, each.scale] = sum(tokens)
    assert len(counts) == 4
    assert max(counts.values()) == pytest.approx(min(counts.values()), rel=0.02), counts


def test_objective_compares_by_one_factor_at_a_time(plan: Plan) -> None:
    phases = plan(objective)
    for compared in phases["compare"].jobs:
        names = [(a.name, b.name) for a, b in compared.contrasts]
        assert names == [
            ("v2 k=8", "v1 k=8"),
            ("v2 k=64", "v1 k=64"),
            ("v1 k=8", "v1 k=64"),
            ("v2 k=8", "v2 k=64"),
        ]
        for contrast in compared.contrasts:
            for way in contrast:
                version, k = way.name.split(" k=")
                assert len(way.cells) == 3
                assert all(cell in phases["evaluate"].jobs for cell in way.cells)
                assert {cell.system for cell in way.cells} == {f"refrag_{version}"}
                assert all(f"objective-k{k}-" in cell.checkpoint for cell in way.cells)
                assert {cell.options["expand"] for cell in way.cells} == {0.0}
