"""Alignment: hand-computed readings, a floor that sees no chunk, and a gate that stops what would come after it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_level import byte_level_tokenizer
from tiny_refrag import tiny_refrag, write_tiny_refrag
from tiny_refrag_v1 import tiny_v1
from torch import Tensor, nn

from harness.cli import catalog
from harness.cli.main import main
from harness.data.world.practice import Copying, Growing, Practice
from harness.data.world.tokenizer import build_tokenizer, content_tokens
from harness.errors import GateMissed, InputError
from harness.train.alignment import ALL, Alignment, Gate, Reconstruction, measure
from harness.train.loop import NonFiniteLoss
from harness.train.read_back import held_out, read_back
from harness.train.rows import IGNORED, Batch
from refrag_v1.checkpoint import save
from slurm.jobs.align import AlignJob
from slurm.phases import Phase, run_phases

TOKENIZER = build_tokenizer()
NOWHERE = nn.Module()
NAMES, VALUES = frozenset({2}), frozenset({3, 4})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_refrag(tmp_path_factory.mktemp("refrag") / "final")


def batch(labels: list[list[int]], is_answer: list[list[bool]]) -> Batch:
    return {"labels": torch.tensor(labels), "is_answer": torch.tensor(is_answer)}


def certain(labels: Tensor) -> Tensor:
    """Logits (B, T, 6) that put all but e-50 of the probability on the next label."""
    following = labels.roll(-1, dims=1).clamp(min=0)
    return 50.0 * nn.functional.one_hot(following, 6).float()


# --- what is measured


def test_perplexity_and_accuracy_by_hand() -> None:
    """Two batches; the answers are 2, 3 and 4, read with probabilities 1/2, 1/4 and 1/8."""
    told = [batch([[1, 2, 3]], [[False, True, True]]), batch([[5, 4]], [[False, True]])]
    probabilities = {
        (1, 2, 3): [[0.1, 0.1, 0.5, 0.1, 0.1, 0.1], [0.3, 0.25, 0.1, 0.25, 0.05, 0.05], [1 / 6] * 6],
        (5, 4): [[0.0, 0.0, 0.0, 0.875, 0.125, 0.0], [1 / 6] * 6],
    }

    def forward(model: nn.Module, given: Batch, zeroed: bool) -> Tensor:
        if zeroed:
            return torch.zeros(1, given["labels"].shape[1], 6)
        return torch.tensor([probabilities[tuple(given["labels"][0].tolist())]]).clamp(min=1e-30).log()

    (row,) = measure(NOWHERE, forward, {4: told}, {"names": NAMES, "values": VALUES})
    assert row.chunks == 4
    assert {kind: found.tokens for kind, found in row.read.items()} == {"all": 3, "names": 1, "values": 2}
    assert row.read["all"].perplexity == pytest.approx((2 * 4 * 8) ** (1 / 3), rel=1e-6)
    assert row.read["names"].perplexity == pytest.approx(2, rel=1e-6)
    assert row.read["values"].perplexity == pytest.approx((4 * 8) ** (1 / 2), rel=1e-6)
    assert [row.read[kind].accuracy for kind in ("all", "names", "values")] == pytest.approx([1 / 3, 1, 0])
    assert [row.floor[kind].perplexity for kind in ("all", "names", "values")] == pytest.approx([6, 6, 6])


def test_a_perfect_reader_passes_the_strictest_gate() -> None:
    told = batch([[0, 1, 2, 3, IGNORED]], [[False, True, True, True, False]])
    measured = measure(NOWHERE, lambda model, given, zeroed: certain(given["labels"]), {1: [told]}, {})
    assert measured[0].read == {ALL: Reconstruction(perplexity=1.0, accuracy=1.0, tokens=3)}
    assert Gate(max_perplexity=1, min_accuracy=1).failures(measured) == []


def test_tokens_count_at_answers_alone() -> None:
    """A name in the context and a value in padding are of their kind, but nobody asked for them."""
    told = batch([[2, 3, 2, 1, IGNORED]], [[False, False, True, True, False]])
    (row,) = measure(NOWHERE, lambda model, given, zeroed: certain(given["labels"]), {1: [told]}, {"names": NAMES})
    assert {kind: found.tokens for kind, found in row.read.items()} == {"all": 2, "names": 1}


def test_a_kind_that_never_occurs_is_left_out() -> None:
    told = batch([[0, 1]], [[False, True]])
    (row,) = measure(NOWHERE, lambda model, given, zeroed: certain(given["labels"]), {1: [told]}, {"names": NAMES})
    assert list(row.read) == list(row.floor) == [ALL]


def test_a_hopeless_reader_has_a_perplexity_that_can_be_written() -> None:
    told = batch([[0, 1]], [[False, True]])
    (row,) = measure(NOWHERE, lambda model, given, zeroed: -1e4 * certain(given["labels"]), {1: [told]}, {})
    assert 1e300 < row.read[ALL].perplexity < math.inf
    with pytest.raises(NonFiniteLoss, match="reading 1 chunks back"):
        measure(NOWHERE, lambda model, given, zeroed: torch.full((1, 2, 6), torch.nan), {1: [told]}, {})


# --- the gate


def alignment(perplexity: float, accuracy: float, chunks: int = 1) -> Alignment:
    found = {ALL: Reconstruction(perplexity=perplexity, accuracy=accuracy, tokens=100)}
    return Alignment(chunks=chunks, read=found, floor=found)


@pytest.mark.parametrize(
    ("perplexity", "accuracy", "passes"),
    [(1.0, 1.0, True), (2.0, 0.95, True), (2.001, 1.0, False), (1.0, 0.9499, False), (3.0, 0.5, False)],
)
def test_the_default_gate_is_the_seed_documents(perplexity: float, accuracy: float, passes: bool) -> None:
    assert (Gate().failures([alignment(perplexity, accuracy)]) == []) == passes


def test_one_line_per_number_of_chunks_that_misses() -> None:
    measured = [alignment(1.2, 0.99), alignment(2.5, 0.99, 2), alignment(1.2, 0.5, 4)]
    lines = Gate().failures(measured)
    assert [line.split(":")[0] for line in lines] == ["2 chunks", "4 chunks"]
    assert lines[0] == "2 chunks: perplexity 2.5 (at most 2), token accuracy 99.00 % (at least 95)"


@pytest.mark.parametrize("bounds", [{"max_perplexity": 0.5}, {"min_accuracy": 95}, {"max_perplexity": math.nan}])
def test_a_gate_that_makes_no_sense(bounds: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected a"):
        Gate(**bounds)


# --- REFRAG


def test_rows_are_exactly_that_many_chunks_and_then_their_text() -> None:
    model, k, chunks = tiny_refrag(), 8, 4
    drawn = next(held_out(model, TOKENIZER, chunks, seed=0))
    assert drawn["n_chunks"].tolist() == [chunks] * (1024 // (k * chunks))
    assert ((drawn["input_ids"] < 0).sum(1) == chunks).all()
    assert (drawn["is_answer"].sum(1) == k * chunks).all()
    told = drawn["labels"][drawn["is_answer"]].view(-1, k * chunks)
    assert torch.equal(told, drawn["encoder_ids"].view(-1, k * chunks))


def test_text_is_the_same_every_time_and_never_trainings() -> None:
    model = tiny_refrag()
    growing = Growing(k=8, steps=1, max_chunks=2, tokens=1024, curriculum="none")
    training = Practice(Copying(growing=growing), TOKENIZER, held_out(model, TOKENIZER, 2, seed=0).collate, seed=0)

    def texts(practice: Practice) -> list[list[int]]:
        return [row for _ in range(3) for row in next(practice)["encoder_ids"].tolist()]

    ours = texts(held_out(model, TOKENIZER, 2, seed=0))
    assert ours == texts(held_out(model, TOKENIZER, 2, seed=0))
    assert ours != texts(held_out(model, TOKENIZER, 2, seed=1))
    assert not {tuple(row) for row in ours} & {tuple(row) for row in texts(training)}


def test_a_context_without_room() -> None:
    with pytest.raises(InputError, match="256 chunks of 16 tokens and their text need 4353 .* holds 4096"):
        held_out(tiny_refrag(k=16), TOKENIZER, 256, seed=0)


@torch.inference_mode()
def test_the_floor_sees_no_chunk() -> None:
    model = tiny_refrag()
    drawn = next(held_out(model, TOKENIZER, 2, seed=0))
    read, floor = read_back(model, drawn, False), read_back(model, drawn, True)
    zeros = torch.zeros(int(drawn["n_chunks"].sum()), model.decoder.config.hidden_size)
    assert torch.equal(floor, model(drawn["input_ids"], zeros))
    model.projector.skip.weight.mul_(-1)
    assert torch.equal(floor, read_back(model, drawn, True))
    assert not torch.allclose(read, read_back(model, drawn, False))


def test_names_and_values_are_the_lexicons() -> None:
    kinds = content_tokens(TOKENIZER)
    assert {kind: len(ids) for kind, ids in kinds.items()} == {"names": 320, "values": 360}
    ids = TOKENIZER("The birthplace of Mirel Tovan is Grell.", add_special_tokens=False)["input_ids"]
    assert not kinds["names"] & {ids[0], ids[1], ids[2], ids[-1]}
    with pytest.raises(InputError, match="one token each; this tokenizer makes"):
        content_tokens(byte_level_tokenizer())


# --- the verb


def align(checkpoint: Path, *more: str) -> list[str]:
    return ["align", "--checkpoint", str(checkpoint), "--chunks", "1,2", "--batches", "1", *more]


LOOSE = ("--max-perplexity", "1e9", "--min-accuracy", "0")


def test_a_missed_gate_is_exit_code_1_and_a_line_each(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(align(checkpoint)) == 1
    out, err = capsys.readouterr()
    gates = [line for line in err.splitlines() if "/" not in line]  # not how far it is, said every ten seconds
    assert [line.split(":")[0] for line in gates] == ["gate missed at 1 chunk", "gate missed at 2 chunks"]
    assert all(word in out for word in ("all tokens", "names", "values", "read", "floor"))
    assert "gate passed" not in out
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_a_passed_gate_is_exit_code_0(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(align(checkpoint, *LOOSE)) == 0
    out, err = capsys.readouterr()
    assert "gate passed: perplexity at most 1e+09, token accuracy at least 0 %" in out
    assert err == ""


def test_json_has_the_documented_keys_and_is_what_out_holds(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.cli import align as verb

    file = tmp_path / "new" / "alignment.json"
    assert main(align(checkpoint, "--json", "--out", str(file), *LOOSE)) == 0
    out = capsys.readouterr().out
    assert out == file.read_text()
    document = json.loads(out)
    assert list(document) == [
        "folder", "checkpoint", "k", "batches", "seed", "gate", "measured", "missed",
    ]  # fmt: skip
    assert all(key in verb.EPILOG.split("keys of --json:")[1] for key in document)
    assert [row["chunks"] for row in document["measured"]] == [1, 2]
    assert all(list(row["read"]) == ["all", "names", "values"] for row in document["measured"])
    assert document["measured"][0]["read"]["all"]["tokens"] == 1024
    assert main(align(checkpoint, "--json", *LOOSE)) == 0
    assert capsys.readouterr().out == out, "the same numbers every time"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--chunks", "3"), "expected numbers of chunks of 1, 2, 4, 8, 16, 32, 64, 128, 256, got 3"),
        (("--chunks", "one"), "expected numbers with commas between them, got 'one'"),
        (("--chunks", ""), "expected numbers with commas between them"),
        (("--batches", "0"), "expected at least 1 batch"),
        (("--min-accuracy", "95"), "a fraction of the tokens, got 95"),
        (("--device", "tpu9"), "device 'tpu9'"),
        (("--checkpoint", "no/such/folder"), "has no chunk encoder (refrag.json)"),
        (("--out", "."), "expected a file to write, got the folder ."),
    ],
)
def test_bad_input_is_one_line(
    checkpoint: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(align(checkpoint, *words))
    except SystemExit as exit_:  # argparse's own errors
        code = exit_.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1
    assert message in err


def test_a_plain_decoder_is_refused(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(align(tiny_checkpoint)) == 2
    assert "has no chunk encoder (refrag.json); expected what `train refrag_v2` made" in capsys.readouterr().err


# --- in a pipeline


@dataclasses.dataclass
class Cpt:
    """Stands for the stage that comes after the gate."""

    title: str = "train refrag_v2 cpt"
    started: bool = False

    def run(self, progress: Any = None) -> str:
        self.started = True
        return "trained"

    def said(self, result: str) -> str:
        return result


def pipeline(checkpoint: Path, gate: Gate, out: Path | None = None) -> tuple[Cpt, list[Phase]]:
    cpt = Cpt()
    job = AlignJob(checkpoint=checkpoint, chunks=(1, 2), batches=1, gate=gate, stop=True, out=out)
    return cpt, [Phase(title="align", jobs=[job]), Phase(title="train", jobs=[cpt])]


def test_a_missed_gate_stops_the_pipeline(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpt, phases = pipeline(checkpoint, Gate(), tmp_path / "alignment.json")
    with pytest.raises(GateMissed, match=r"misses the alignment gate: 1 chunk: .*; 2 chunks: "):
        run_phases(phases)
    assert not cpt.started
    assert len(json.loads((tmp_path / "alignment.json").read_text())["missed"]) == 2, "and says why"

    monkeypatch.setattr(catalog, "EXPERIMENTS", {"gated": lambda **settings: phases})
    capsys.readouterr()
    assert main(["run", "gated"]) == 1
    assert "misses the alignment gate" in capsys.readouterr().err.splitlines()[-1]
    assert not cpt.started


def test_a_passed_gate_does_not(checkpoint: Path) -> None:
    cpt, phases = pipeline(checkpoint, Gate(max_perplexity=1e9, min_accuracy=0))
    assert run_phases(phases) == 0
    assert cpt.started


def test_without_a_gate_nothing_is_missed(checkpoint: Path) -> None:
    job = AlignJob(checkpoint=checkpoint, chunks=(1,), batches=1, stop=True)
    result = job.run()
    assert result.missed == ()
    assert "gate" not in job.said(result)


def test_v1_is_read_back_in_the_same_way(tmp_path: Path) -> None:
    training = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}
    folder = save(tiny_v1(), TOKENIZER, training, tmp_path / "final")
    (measured,) = AlignJob(checkpoint=folder, chunks=(1,), batches=1).run().measured
    assert measured.read[ALL].tokens == measured.floor[ALL].tokens == 1024
    assert measured.read[ALL].perplexity != measured.floor[ALL].perplexity, "its chunks say something else than zeros"
