"""REFRAG v1 from decoder to record: each stage moves its own parts, nothing is lost between, all runs again alike."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_level import byte_level_tokenizer
from safetensors.torch import load_file, save_file
from tiny_refrag_v1 import STAGES, TOKENIZER, K, changed, encoded, recipe, small, state, tiny_v1, words, write_tiny_v1
from torch import Tensor

from harness.cli.catalog import RECIPES
from harness.cli.main import main
from harness.errors import InputError
from harness.model.encoders import random_roberta
from harness.model.load import load_decoder, random_decoder
from harness.train.loop import train
from harness.train.optim import freeze
from refrag_v1.checkpoint import FILES, load, read_config, save
from refrag_v1.model import RefragV1, RefragV1Config
from refrag_v1.recipe import ENCODING
from refrag_v1.stages import BUDGETS
from refrag_v1.system import RefragV1SystemConfig
from slurm.jobs.train import TrainJob

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TRAINING = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}
RAGGED = [words(11), [], words(1, first=50), words(K, first=60), words(25, first=70)]


@pytest.fixture(scope="module")
def own_words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a RoBERTa with another tokenizer than the decoder's, as a published one has."""
    folder = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(0)
    random_roberta("roberta-tiny", len(byte_level_tokenizer())).model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return str(folder)


def trained(**config: Any) -> RefragV1:
    """A model with a policy and no parameter where its initialisation left it."""
    model = tiny_v1(policy=True, **config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("decoder."):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def reloaded(folder: Path, dtype: str = "float32") -> RefragV1:
    torch.manual_seed(999)  # what is not read from the checkpoint must not come back by chance
    return load(folder, load_decoder(str(folder), dtype=dtype).model)


# An encoder as it is published


@pytest.mark.parametrize("encoder", ["random:roberta-tiny", "its own tokenizer"])
@torch.no_grad()
def test_a_first_tokens_state_is_a_chunks_embedding(own_words: str, encoder: str) -> None:
    """A ragged batch as its texts one by one, and no two chunks alike."""
    name = own_words if encoder == "its own tokenizer" else encoder
    model = tiny_v1(encoder=name, pooling="cls")
    together = encoded(model, RAGGED)
    alone = [encoded(model, [text]) for text in RAGGED]
    assert [tuple(chunks.shape) for chunks in alone] == [(n, 128) for n in (2, 0, 1, 1, 4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    distances = torch.cdist(together, together) + 9 * torch.eye(len(together))
    assert distances.min() > 1e-3, "chunks that look alike prove nothing"
    inputs = model.inputs(RAGGED, TOKENIZER)
    if encoder == "its own tokenizer":
        assert (inputs.ids_NS[:, 0] == byte_level_tokenizer().bos_token_id).all(), "the state is that of <s>"
    states = model.encoder(inputs.ids_NS, inputs.mask_NS)
    scaled = model.projector(7 * states, inputs)
    torch.testing.assert_close(scaled, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "at least 1 token, got k=0"),
        ({"pooling": "mean"}, "unknown pooling 'mean'.*valid choices: cls, concat"),
        ({"encoder": "decoder:1", "pooling": "cls"}, "'cls' needs an encoder with a classification token"),
        ({"encoder": "roberta-base", "pooling": "concat"}, r"'concat' needs an encoder that shares .* \(decoder:N\)"),
        ({"encoder": "no/such/folder", "pooling": "cls"}, "no tokenizer 'no/such/folder' for the encoder"),
        ({"encoder": "random:roberta-huge"}, "'roberta-huge'.*valid choices: minilm, roberta-base"),
    ],
)
def test_a_model_that_cannot_be_says_what_could(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_v1(**settings)


# Checkpoints


@pytest.mark.parametrize("encoder", ["decoder:2", "random:roberta-tiny", "its own tokenizer"])
@torch.no_grad()
def test_a_saved_model_comes_back_whole(tmp_path: Path, own_words: str, encoder: str) -> None:
    elsewhere = shutil.copytree(own_words, tmp_path / "roberta")
    name = str(elsewhere) if encoder == "its own tokenizer" else encoder
    model = trained(encoder=name, pooling="concat" if encoder.startswith("decoder") else "cls", norm=3.0)
    expected = encoded(model, RAGGED)
    folder = save(model, TOKENIZER, TRAINING, tmp_path / "final")
    shutil.rmtree(elsewhere)  # a checkpoint needs no second folder
    back = reloaded(folder)
    assert read_config(folder) == (model.config, model.policy.config)
    assert (back.config, back.policy.config) == (model.config, model.policy.config)
    assert not any(module.training for module in back.modules())
    assert not changed(back, state(model))
    assert torch.equal(encoded(back, RAGGED), expected)
    assert torch.equal(back.policy(expected), model.policy(expected))
    assert torch.equal(back.repeated(expected), model.repeated(expected))


def test_a_checkpoint_misses_nothing_and_its_decoder_stands_alone(tmp_path: Path) -> None:
    model = trained()
    folder = save(model, TOKENIZER, TRAINING, tmp_path / "final")
    stored = load_file(folder / FILES.weights_file).keys()
    assert stored == {name for name in model.state_dict() if not name.startswith("decoder.")}
    assert {name.split(".")[0] for name in stored} == {"encoder", "projector", "policy", "target_length"}
    plain = load_decoder(str(folder)).model.state_dict()
    assert all(torch.equal(plain[name], tensor) for name, tensor in model.decoder.state_dict().items())


@torch.no_grad()
def test_a_model_is_loaded_as_it_is_and_in_the_decoders_dtype(tmp_path: Path) -> None:
    folder = save(tiny_v1(), TOKENIZER, TRAINING, tmp_path / "final")
    assert reloaded(folder).policy is None
    back = reloaded(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in back.parameters()} == {torch.bfloat16}
    assert encoded(back, RAGGED).dtype == torch.bfloat16


def _rewrite(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        document = json.loads((folder / FILES.config_file).read_text())
        change(document)
        (folder / FILES.config_file).write_text(json.dumps(document))

    return apply


def _reweigh(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / FILES.weights_file)
        change(weights)
        save_file(weights, folder / FILES.weights_file)

    return apply


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / FILES.config_file).unlink(), "has no chunk encoder of v1 .*train refrag_v1"),
    "half a config": (lambda f: (f / FILES.config_file).write_text('{"model"'), "refrag_v1.json is damaged"),
    "a list": (lambda f: (f / FILES.config_file).write_text("[1]"), "refrag_v1.json is damaged"),
    "no policy entry": (_rewrite(lambda d: d.pop("policy")), "refrag_v1.json is damaged"),
    "unknown setting": (_rewrite(lambda d: d["model"].update(colour="red")), "refrag_v1.json is damaged"),
    "no such pooling": (_rewrite(lambda d: d["model"].update(pooling="max")), "refrag_v1.json is damaged"),
    "another k": (_rewrite(lambda d: d["model"].update(k=4)), "refrag_v1.safetensors cannot be loaded"),
    "no policy": (_rewrite(lambda d: d.update(policy=None)), "does not fit refrag_v1.json: policy"),
    "a policy of words": (_rewrite(lambda d: d["policy"].update(width="wide")), "refrag_v1.json: no policy can be"),
    "a policy below 0": (_rewrite(lambda d: d["policy"].update(width=-1)), "refrag_v1.json: no policy can be built"),
    "another policy": (_rewrite(lambda d: d["policy"].update(width=8)), "refrag_v1.safetensors cannot be loaded"),
    "no weights": (lambda f: (f / FILES.weights_file).unlink(), "refrag_v1.safetensors cannot be loaded"),
    "half the weights": (
        lambda f: (f / FILES.weights_file).write_bytes((f / FILES.weights_file).read_bytes()[:5000]),
        "refrag_v1.safetensors cannot be loaded",
    ),
    "no projector": (_reweigh(lambda w: w.pop("projector.out.weight")), "does not fit .*: projector.out.weight"),
    "no length": (_reweigh(lambda w: w.pop("target_length")), "does not fit .*: target_length"),
    "one too many": (_reweigh(lambda w: w.update(extra=torch.ones(1))), "does not fit .*: extra"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(trained(), TOKENIZER, TRAINING, tmp_path_factory.mktemp("whole") / "final")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(whole: Path, tmp_path: Path, damage: str) -> None:
    apply, message = DAMAGES[damage]
    folder = Path(shutil.copytree(whole, tmp_path / "final"))
    apply(folder)
    with pytest.raises(InputError, match=message):
        reloaded(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [("config.json", "no encoder shape in .*/encoder: "), ("tokenizer.json", "no tokenizer '.*/encoder' for the ")],
)
def test_a_damaged_encoder_folder_is_named(tmp_path: Path, own_words: str, file: str, message: str) -> None:
    folder = save(trained(encoder=own_words, pooling="cls"), TOKENIZER, TRAINING, tmp_path / "final")
    (folder / "encoder" / file).write_text("{")
    with pytest.raises(InputError, match=message):
        reloaded(folder)


def test_v1_and_v2_do_not_read_one_another(whole: Path, tiny_checkpoint: Path) -> None:
    from refrag_v2.checkpoint import read_config as read_v2

    with pytest.raises(InputError, match="expected what `train refrag_v2` made"):
        read_v2(whole)
    with pytest.raises(InputError, match="expected what `train refrag_v1` made"):
        RefragV1SystemConfig.defaults(str(tiny_checkpoint))
    assert RefragV1SystemConfig.defaults(str(whole)) == {"k": K, "template": "tagged"}


# Stages


def run(stage: str, start: Path, folder: Path, steps: int = 2) -> RefragV1:
    """The model after training as the job trains it."""
    found = small(stage, steps=steps)
    model, tokenizer = found.open(start)
    train(found.stage, model, found.batches(model, tokenizer), found.loss(), folder, device=CPU)
    return model.model if stage == "train_policy" else model


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The jobs of the stages at a scale of a few steps."""

    def job(stage: str, start: Path, steps: int = 2, runs: str = "runs") -> TrainJob:
        monkeypatch.setitem(RECIPES, "refrag_v1", {name: {"small": small(name, steps)} for name in STAGES})
        return TrainJob(system="refrag_v1", stage=stage, scale="small", runs=tmp_path / runs, start=start)

    return job


def test_reading_back_moves_encoder_and_projector_and_no_byte_of_the_decoder(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    found = small("cpt_recon", steps=3)
    model, tokenizer = found.open(tiny_checkpoint)
    before = state(model)
    freeze(model, found.stage)
    found.loss()(model, next(found.batches(model, tokenizer))).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith(ENCODING), name
    model = run("cpt_recon", tiny_checkpoint, tmp_path, steps=3)
    parts = {name for name, _ in model.named_parameters() if name.startswith(("encoder.", "projector."))}
    assert changed(model, before) == parts
    assert not changed(model.decoder, load_decoder(str(tiny_checkpoint)).model.state_dict())


def test_the_next_paragraph_moves_everything(tmp_path: Path) -> None:
    start = write_tiny_v1(tmp_path / "start", policy=False, norm=32.0)
    before = state(small("cpt_next").open(start)[0])
    model = run("cpt_next", start, tmp_path / "run")
    tied = {"decoder.lm_head.weight"}  # the embedding under another name
    assert changed(model, before) == {name for name, _ in model.named_parameters()} | tied


def test_the_policy_stage_moves_the_policy_alone(tmp_path: Path) -> None:
    start = write_tiny_v1(tmp_path / "start", policy=True, norm=32.0)
    before = state(small("train_policy").open(start)[0].model)
    model = run("train_policy", start, tmp_path / "run")
    assert changed(model, before) == {name for name, _ in model.named_parameters() if name.startswith("policy.")}


@pytest.mark.parametrize("scale", BUDGETS)
def test_the_recipes_train_what_the_seed_says(scale: str) -> None:
    stages = [recipe(stage, scale) for stage in STAGES]
    assert [found.stage.trained for found in stages] == [ENCODING, ("",), ("model.policy.",)]
    assert [found.stored_as for found in stages] == ["bfloat16"] * 3
    assert {found.model.k for found in stages} == {BUDGETS[scale].k}


def test_a_fresh_encoder_and_policy_depend_on_the_seed_alone(tiny_checkpoint: Path) -> None:
    def fresh(seed: int, of_process: int) -> RefragV1:
        torch.manual_seed(of_process)
        return small("train_policy", seed=seed).open(tiny_checkpoint)[0].model

    assert not changed(fresh(0, of_process=1), state(fresh(0, of_process=2)))
    assert {"projector.hidden.weight", "policy.hidden.weight"} <= changed(fresh(0, 1), state(fresh(1, 1)))


def test_a_stage_refuses_what_it_cannot_start_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="starts from a decoder; none was given"):
        small("cpt_recon").open(None)
    start = write_tiny_v1(tmp_path / "start", norm=3.0)
    with pytest.raises(InputError, match="was built as .*norm=3.0.*; this stage expects .*norm=32.0"):
        small("cpt_next").open(start)


def test_all_stages_make_a_system(jobs: Any, tiny_checkpoint: Path) -> None:
    checkpoint = tiny_checkpoint
    for index, stage in enumerate(STAGES):
        job = jobs(stage, checkpoint)
        checkpoint = job.run()
        training = json.loads((checkpoint / "training.json").read_text())
        assert training["lineage"] == [f"refrag_v1/{earlier}" for earlier in STAGES[: index + 1]]
        assert (training["steps"], training["skipped"], training["init"]) == (2, [], "random")
        assert math.isfinite(training["final_loss"]) and training["tokens"] > 0
        assert job.finished and job.run() == checkpoint
        stored = load_file(checkpoint / FILES.weights_file)
        assert any(name.startswith("policy.") for name in stored) == (stage == "train_policy")
        assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    settings = RefragV1SystemConfig.defaults(str(checkpoint))
    system = RefragV1SystemConfig(**settings, expand=0.5).build(load_decoder(str(checkpoint)))
    assert len(system.text(list(system.generate(["what is"], system.encode([[]]), max_new_tokens=2)))) == 1


@pytest.mark.parametrize("killed_at", [1, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_resumed_equals_unbroken(jobs: Any, tmp_path: Path, stage: str, killed_at: int) -> None:
    """The exported bytes. Of the policy also its baseline and the coins that come after the kill."""
    start = write_tiny_v1(tmp_path / "start", norm=32.0)
    whole = jobs(stage, start, steps=5, runs="whole").run()
    broken = jobs(stage, start, steps=5, runs="broken")
    found = broken.recipe()
    model, tokenizer = found.open(start)
    batches = found.batches(model, tokenizer)
    train(found.stage, model, batches, found.loss(), broken.folder, device=CPU, stop_after=killed_at)
    assert not broken.finished
    torch.manual_seed(999)  # a new process has another random state; the checkpoint must bring its own
    resumed = broken.run()
    assert resumed != whole
    for file in ("model.safetensors", FILES.weights_file):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes()
    losses = [json.loads((folder / "training.json").read_text())["final_loss"] for folder in (resumed, whole)]
    assert losses[0] == losses[1]


def test_what_is_exported_is_what_was_trained(jobs: Any, tmp_path: Path) -> None:
    start = write_tiny_v1(tmp_path / "start", norm=32.0)
    for stage in STAGES:
        model = run(stage, start, tmp_path / stage)
        checkpoint = jobs(stage, start).run()
        exported = load(checkpoint, load_decoder(str(checkpoint)).model)
        assert not changed(exported, {name: t.to(torch.bfloat16).float() for name, t in model.state_dict().items()})


# From the command line to a record


def evaluate(checkpoint: Path, data: Path, runs: Path, *more: str) -> list[str]:
    where = ["--checkpoint", str(checkpoint), "--data", str(data), "--runs", str(runs)]
    how = ["--suite", "same_relation", "--passages", "4", "--limit", "10", "--batch-size", "4", "--max-new-tokens", "3"]
    return ["evaluate", "--system", "refrag_v1", *how, *where, *more]


def journal(runs: Path) -> Path:
    (found,) = runs.rglob("predictions.jsonl")
    return found


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRAG_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_an_evaluation_is_repeatable_and_resumes(whole: Path, world_root: Path, tmp_path: Path) -> None:
    """Coins and all: of the same seed the same bytes, in one go or two; of another seed others."""
    runs = {name: tmp_path / name for name in ("one", "again", "other", "broken")}
    for name in runs:
        seed = "1" if name == "other" else "0"
        assert main(evaluate(whole, world_root, runs[name], "--set", "expand=0.5", "--set", f"seed={seed}")) == 0
    expected = journal(runs["one"]).read_bytes()
    assert journal(runs["again"]).read_bytes() == expected
    assert journal(runs["other"]).read_bytes() != expected
    path = journal(runs["broken"])
    (path.parent / "record.json").unlink()
    path.write_bytes(b"".join(expected.splitlines(keepends=True)[:6]))
    assert main(evaluate(whole, world_root, runs["broken"], "--set", "expand=0.5", "--set", "seed=0")) == 0
    assert path.read_bytes() == expected

    rows = [json.loads(line) for line in expected.splitlines()]
    assert len(rows) == 10 and not any("error" in row for row in rows)
    usage = [row["usage"] for row in rows]
    assert {u["chunks"] for u in usage} == {4 * 4}, "four passages of four chunks"
    assert {u["passages_read"] for u in usage} == {4}
    assert len({u["chunks_expanded"] for u in usage}) > 1 and max(u["chunks_expanded"] for u in usage) <= 8
    record = json.loads((path.parent / "record.json").read_text())
    assert record["spec"]["system"]["config"]["seed"] == 0 and record["spec"]["system"]["config"]["expand"] == 0.5
    mean = sum(u["chunks_expanded"] for u in usage) / 10
    assert record["metrics"]["chunks_expanded"]["mean"] == pytest.approx(mean)
    assert record["n_errors"] == 0


def test_a_plain_decoder_is_no_v1(
    tiny_checkpoint: Path, world_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluate(tiny_checkpoint, world_root, tmp_path)) == 2
    assert "has no chunk encoder of v1" in capsys.readouterr().err


def test_the_identity_of_a_checkpoint_is_all_that_can_move_an_answer(whole: Path, tmp_path: Path) -> None:
    """Also the length of its embeddings, which stands in no weight."""
    folder = Path(shutil.copytree(whole, tmp_path / "final"))
    assert load_decoder(str(folder)).checkpoint == load_decoder(str(whole)).checkpoint
    _rewrite(lambda d: d["model"].update(norm=5.0))(folder)
    assert load_decoder(str(folder)).checkpoint != load_decoder(str(whole)).checkpoint


def test_the_models_config_has_the_fields_that_it_is_built_from(whole: Path) -> None:
    document = json.loads((whole / FILES.config_file).read_text())
    assert RefragV1Config(**document["model"]) == trained().config
    narrower = random_decoder("tiny", seed=0)
    narrower = type(narrower)(type(narrower.config)(**narrower.config.to_dict() | {"hidden_size": 64, "head_dim": 16}))
    with pytest.raises(InputError, match="refrag_v1.safetensors cannot be loaded"):
        load(whole, narrower)
