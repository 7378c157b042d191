"""All of REFRAG's training by the real commands in a few steps, tracked; and what the tracking says of it.

The store is read back by MLflow's own client and compared with the training's log, with the recipe in ``training.json``
and with the schedule as the paper states it (p. 19), written down here once more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.train import loop

pytest.importorskip("mlflow")
pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = "paper-k16-smoke"
STAGES = ("reconstruction", "cpt", "mixed", "finetune", "policy")
WARMUP = 0.04


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the five commands left their trainings. Every step is logged, and the stages share one store."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 1)
        patch.delenv("MLFLOW_TRACKING_URI")  # its default: a file below the folder of runs
        for stage in STAGES:
            assert main(["train", "refrag_v2", stage, "--scale", SCALE, "--runs", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def client(runs: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")


@pytest.fixture(params=STAGES)
def tracked(request: pytest.FixtureRequest, runs: Path, client: Any) -> tuple[Any, Path]:
    """The one run of a stage, and the folder of its training."""
    (folder,) = (runs / "train" / "refrag_v2").glob(f"{request.param}-{SCALE}-*")
    (experiment,) = [each for each in client.search_experiments() if each.name == "refrag-bench"]
    found = client.search_runs([experiment.experiment_id], f"run_name = 'refrag_v2/{folder.name}'")
    assert len(found) == 1 and found[0].info.status == "FINISHED"
    return found[0], folder


def test_its_parameters_are_those_of_the_recipe(tracked: tuple[Any, Path]) -> None:
    run, folder = tracked
    training = json.loads((folder / "final" / "training.json").read_text())
    leaves = dict(leaves_of(training["recipe"], "recipe"))
    assert len(leaves) > 25
    assert {name: run.data.params[name] for name in leaves} == leaves
    assert run.data.params["seed"] == str(training["recipe"]["stage"]["seed"])
    assert run.data.params["commit"] == (training["provenance"]["commit"] or "null")
    assert (run.data.params["device"], run.data.params["scale"]) == (training["provenance"]["device"], SCALE)


def leaves_of(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves_of(item, f"{name}.{key}")
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def test_its_numbers_are_those_of_the_log(tracked: tuple[Any, Path], client: Any) -> None:
    run, folder = tracked
    training = json.loads((folder / "final" / "training.json").read_text())
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(1, training["steps"] + 1)) and len(log) > 1
    for name in ("loss", "lr_scale", "grad_norm", "tokens", "tokens_per_s"):
        assert history(client, run, name) == [(row["step"], row[name]) for row in log]
    assert run.data.metrics["loss"] == training["final_loss"]
    assert run.data.metrics["tokens"] == training["tokens"]
    assert "mfu" not in run.data.metrics, "nobody states this machine's peak"


def test_its_learning_rates_are_the_papers(tracked: tuple[Any, Path], client: Any) -> None:
    """Linear over 4 % of the steps, then half a cosine to zero; of one group at the peak rate."""
    run, folder = tracked
    stage = json.loads((folder / "final" / "training.json").read_text())["recipe"]["stage"]
    assert (stage["schedule"]["warmup"], stage["schedule"]["decay"], stage["boost"]) == (WARMUP, "cosine", 1.0)
    warm, steps, peak = math.ceil(WARMUP * stage["steps"]), stage["steps"], stage["optimizer"]["lr"]
    rates = [name for name in run.data.metrics if name.startswith("lr.")]
    assert rates == ["lr.AdamW.0"]
    for step, rate in history(client, run, "lr.AdamW.0"):
        rising = step / warm
        falling = 0.5 * (1 + math.cos(math.pi * (step - 1 - warm) / (steps - warm)))
        assert rate == pytest.approx(peak * (rising if step <= warm else falling), rel=1e-12)


def history(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]


def test_each_stage_went_through_those_before(runs: Path) -> None:
    (last,) = (runs / "train" / "refrag_v2").glob(f"policy-{SCALE}-*")
    lineage = json.loads((last / "final" / "training.json").read_text())["lineage"]
    assert lineage[-5:] == [f"refrag_v2/{stage}" for stage in STAGES]


def test_alignment_is_added_to_the_run_that_it_measures(
    runs: Path, client: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = (runs / "train" / "refrag_v2").glob(f"reconstruction-{SCALE}-*")
    run = json.loads((folder / "mlflow.json").read_text())["run"]
    align = ["align", "--checkpoint", str(folder / "final"), "--chunks", "1,2", "--batches", "1", "--json"]
    assert main(align) == 1
    assert not any(name.startswith("alignment") for name in client.get_run(run).data.metrics), (
        "off, says the environment"
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    capsys.readouterr()
    assert main(align) == 1
    measured = json.loads(capsys.readouterr().out)["measured"]
    told = client.get_run(run)
    assert [row["chunks"] for row in measured] == [1, 2] and told.info.status == "FINISHED"
    for row in measured:
        for side in ("read", "floor"):
            for kind, found in row[side].items():
                for name, value in found.items():
                    assert told.data.metrics[f"alignment.{row['chunks']}.{side}.{kind}.{name}"] == value
