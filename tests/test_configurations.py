"""The comparison of configurations: counted, up to date, and every disagreement marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT

from harness.errors import InputError
from harness.train.stage import AdamW
from refrag_v2 import paper_scale
from results.ledger.entries import read_ledger
from results.replication import configurations
from results.replication import draw as replication
from results.replication.layouts import OURS, PAPER, SEED, Cell, Layout
from results.replication.published import Ledger
from slurm.jobs import configurations as job

FILE = PROJECT / "results" / "records" / "configurations.json"


@pytest.fixture(scope="module")
def facts() -> job.Facts:
    return job.gather()


@pytest.fixture(scope="module")
def layouts(facts: job.Facts) -> dict[str, Layout]:
    ledger = Ledger(read_ledger())
    return {name: build(ledger, facts) for name, build in configurations.TABLES.items()}


def cells(layout: Layout, row: str) -> dict[str, Cell]:
    (line,) = [line for line in layout.lines if line.row == row]
    return {cell.column: cell for cell in line.cells}


def test_the_committed_facts_are_those_of_the_code(facts: job.Facts) -> None:
    assert FILE.read_text() == job.to_json(facts), "run slurm.jobs.configurations again: `refrag-bench run tiny`"


def test_the_projector_is_two_linear_layers_of_the_papers_widths(facts: job.Facts) -> None:
    """p. 19: hidden = output = 4096, from 1024; and one gain, which the paper does not have."""
    layers = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert facts["sizes"]["projector"]["v2-paper"] == layers + 1


def test_v1_has_the_seeds_sizes_but_for_its_projector(facts: job.Facts) -> None:
    sizes = {part: facts["sizes"][part]["v1-seed"] for part in ("encoder", "decoder", "policy", "projector")}
    assert sizes["encoder"] == pytest.approx(125e6, rel=0.01)
    assert sizes["decoder"] == pytest.approx(3.2e9, rel=0.01)
    assert sizes["policy"] == pytest.approx(100e3, rel=0.05)
    assert sizes["projector"] == 768 * 3072 + 3072 + 3072 * 3072 + 3072  # the seed says ~3M


def test_cepes_added_parameters_are_those_of_the_release(facts: job.Facts) -> None:
    """The ledger: 435.4 M in the encoder, 32 (2 x 4096^2 + 2 x 1024 x 4096) in cross-attention; norms on top."""
    assert facts["sizes"]["encoder"]["cepe-7b"] == pytest.approx(435.4e6, rel=1e-3)
    blocks = 32 * (2 * 4096**2 + 2 * 1024 * 4096)
    assert facts["sizes"]["cross-attention"]["cepe-7b"] == blocks + 32 * 4096


@pytest.mark.parametrize("column", ["rag", "cepe", "v1", "v2", "rag-7b", "cepe-7b", "v1-seed", "v2-paper"])
def test_a_total_is_the_sum_of_its_parts(facts: job.Facts, column: str) -> None:
    sizes = facts["sizes"]
    assert sizes["total"][column] == sum(sizes[part].get(column, 0) for part in job.PARTS)


@pytest.mark.parametrize(
    ("column", "folder"),
    [
        ("rag", "standard_rag/finetune-tiny-*"),
        ("cepe", "cepe/cpt-tiny-*"),
        ("v1", "refrag_v1/train_policy-tiny-k64-*"),
        ("v2", "refrag_v2/policy-tiny-k16-*"),
    ],
)
def test_tiny_sizes_are_those_of_the_accepted_checkpoints(facts: job.Facts, column: str, folder: str) -> None:
    from safetensors import safe_open

    (checkpoint,) = (PROJECT / "results" / "checkpoints").glob(folder)
    found = 0
    for path in checkpoint.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            found += sum(
                weights.get_tensor(name).numel()
                for name in weights.keys()  # noqa: SIM118
                if "target_length" not in name
            )
    assert found == facts["sizes"]["total"][column]


def test_the_planned_numbers_are_the_plans(facts: job.Facts) -> None:
    hyper = facts["hyperparameters"]
    for role, stage in zip(job.ROLES["v2"], paper_scale.STAGES.values(), strict=True):
        assert isinstance(stage.stage.optimizer, AdamW)
        assert hyper[f"LR, {role}"]["v2-paper"] == stage.stage.optimizer.lr
        assert facts["pipeline"][f"{role}: steps"]["v2-paper"] == stage.stage.steps
    assert facts["hyperparameters"]["batch"]["v2-paper"] == 256


# --- the tables


def test_a_table_has_the_name_it_is_found_by(layouts: dict[str, Layout]) -> None:
    assert {name: layout.name for name, layout in layouts.items()} == {name: name for name in configurations.TABLES}


def test_ours_is_computed_and_published_cells_are_published(layouts: dict[str, Layout]) -> None:
    for layout in layouts.values():
        for cell in layout.cells:
            assert cell.status in (
                {"computed", "not published"} if cell.source == OURS else {"published", "not published"}
            )


def test_our_column_at_the_papers_size_has_what_the_paper_prints(layouts: dict[str, Layout]) -> None:
    """Where the paper prints a number of the same kind, the plan has it; the tiny scale differs, and is marked."""
    layout = layouts["configurations-hyperparameters"]
    compared = [aspect.title for aspect in configurations.HYPERPARAMETERS if aspect.compare]
    assert len(compared) == 8
    for row in compared:
        found = cells(layout, row)
        assert not found["REFRAG v2, paper's size"].marks
    assert cells(layout, "Optimizer")["REFRAG v2"].marks == ("≠ paper: AdamW",)
    assert cells(layout, "Warm-up, linear (% of steps)")["REFRAG v1"].marks == ("≠ paper: 4",)
    assert not cells(layout, "Warm-up, linear (% of steps)")["REFRAG v2"].marks


def test_the_seeds_sizes_are_held_against_the_counted_ones(layouts: dict[str, Layout]) -> None:
    layout = layouts["configurations-sizes"]
    marked = {line.row for line in layout.lines if cells(layout, line.row)[configurations.CLAIM].marks}
    assert marked == {"Projector", "Policy network"}
    projector = cells(layout, "Projector")
    assert projector[configurations.CLAIM].marks == ("≠ counted here: 20,979,713",)
    assert projector[configurations.VERDICT].marks
    assert projector[configurations.PRINTED].entry is not None
    assert projector[configurations.PRINTED].entry.source_class == "derived"


def test_what_the_seed_says_stands_with_the_seed(layouts: dict[str, Layout]) -> None:
    for layout in layouts.values():
        for cell in layout.cells:
            if cell.entry:
                assert (cell.source == SEED) == (cell.entry.source_class == "seed-claim")
    assert {cell.source for layout in layouts.values() for cell in layout.cells} == {OURS, SEED, PAPER}


def test_every_file_and_command_that_is_named_is_there(facts: job.Facts) -> None:
    from harness.cli.catalog import RECIPES
    from harness.cli.main import VERBS

    files: dict[str, dict[str, Any]] = facts["files"]
    for aspect in ("main file", "numbers"):
        for names in files[aspect].values():
            assert all((PROJECT / name).is_file() for name in names.split(", "))
    for aspect, commands in files.items():
        for command in commands.values() if aspect not in ("main file", "numbers") else ():
            verb, *rest = command.split()
            assert verb in VERBS
            if verb == "train":
                system, stage = rest
                assert stage in RECIPES[system]


# --- where the facts come from


def test_without_facts_their_tables_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    layouts, _ = replication.draw([tmp_path / "runs"], tmp_path / "out")
    assert "no configurations.json" in str(replication.left_out(layouts))
    assert not {layout.name for layout in layouts} & configurations.TABLES.keys()
    with pytest.raises(InputError, match="refrag-bench run tiny"):
        replication.draw([tmp_path / "runs"], tmp_path / "out", only=["configurations-sizes"])


def test_facts_of_another_schema_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "configurations.json"
    path.write_text(json.dumps(json.loads(FILE.read_text()) | {"schema": 0}))
    with pytest.raises(InputError, match="schema 0; expected 1"):
        configurations.read(path)


def test_the_job_writes_what_the_tables_read(tmp_path: Path, facts: job.Facts) -> None:
    path = job.ConfigurationsJob(out=tmp_path / "records" / "configurations.json").run()
    assert configurations.find([tmp_path, tmp_path / "records"]) == path
    assert configurations.read(path) == facts
    layouts, _ = replication.draw([path.parent], tmp_path, only=[*configurations.TABLES])
    assert replication.left_out(layouts) is None
