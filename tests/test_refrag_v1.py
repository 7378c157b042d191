"""REFRAG v1's faults, each kept on purpose: a control whose faults were mended in passing would show nothing.

At each stands what the seed document says of it and what is true. Kept are the repeated embedding, the linear
curriculum, the coins at inference, chunks of 64 tokens and RoBERTa-base, no order of stages, no prompt template, the
linear schedule, and a policy that sees one chunk at a time. *Not* kept are accidents of public code, which are no
method's. Each has a test that it would break:

1. p = 0 lifts the cap instead of the expansion, and half of the chunks are expanded.
2. NaN, or a constant 0 without a gradient, where the text is short.
3. The last token of every chunk is never supervised.
4. No passages at all is a crash.
5. An answer depends on which questions share its batch.
6. The log-probability is that of other coins than the mask came from; the frozen model moves, or drops out.
7. A start in the middle of the prompt, the prefill's logits thrown away, gradients recorded while generating.
8. What was cut off, or expanded, is not in the record.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import PROJECT
from tiny_refrag_v1 import TOKENIZER, K, changed, encoded, recipe, small, state, tiny_v1, words, write_tiny_v1
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from baselines.standard_rag import StandardRAGConfig
from harness import prompts
from harness.cli.catalog import RECIPES
from harness.data.world.practice import Copying, Growing, Reading
from harness.errors import InputError
from harness.model.chunking import EncoderInputs, split
from harness.model.load import load_decoder, random_decoder
from harness.protocol import Passage
from harness.train.chunk_model import lay_out_for, read_chunks
from harness.train.chunk_rows import condense
from harness.train.losses import answer_loss
from harness.train.optim import build_optimizers, freeze
from harness.train.rows import IGNORED, Batch, Block, Row
from refrag_v1.model import Projector, RefragV1, RefragV1Config
from refrag_v1.policy import Policy, PolicyConfig, PolicyTraining, ReinforceConfig, reinforce, toss
from refrag_v1.recipe import chunk_tokens, repetition_loss, run_together
from refrag_v1.stages import BUDGETS
from refrag_v1.system import Choice, RefragV1System, RefragV1SystemConfig
from refrag_v2.stages import CPT
from slurm.jobs.system import open_system
from slurm.jobs.train import TrainJob

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 128
PASSAGE_TAG = TOKENIZER.convert_tokens_to_ids("<passage>")
STEPS = 60


def telling(*texts: list[int]) -> list[Row]:
    """Rows of one text each, which is told again."""
    return [Row([TOKENIZER.bos_token_id], [Block([], text)], list(text), [True] * len(text)) for text in texts]


def from_the_world(tokens: int, rows: int = 1) -> list[Row]:
    growing = Growing(k=tokens, steps=1, max_chunks=1, tokens=rows * tokens, curriculum="none")
    return Copying(growing=growing).draw(random.Random(0), 0, TOKENIZER)


def chunks_of(model: RefragV1, batch: Batch) -> Tensor:
    return model.encode(EncoderInputs(batch["encoder_ids"], batch["encoder_mask"], batch["encoder_chunk"]))


def half_up(share: float, n: int) -> int:
    return math.floor(Fraction(str(share)) * n + Fraction(1, 2))


# One embedding at every position


@pytest.fixture(scope="module", params=["random", "accepted"])
def decoder(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    if request.param == "random":
        return random_decoder("tiny", seed=0)
    found = sorted((PROJECT / "results" / "checkpoints" / "decoder").glob("*/config.json"))
    if not found:
        pytest.skip("needs the accepted decoder in results/checkpoints/decoder")
    return load_decoder(str(found[0].parent)).model


def spread(logits_TV: Tensor) -> float:
    """How far the positions are apart, of logits of which none is larger than 1."""
    return float((logits_TV.amax(0) - logits_TV.amin(0)).max() / logits_TV.abs().max().clamp(min=1))


@pytest.mark.parametrize("k", [8, 64])
@pytest.mark.parametrize("norm", [None, 48.0])
@torch.no_grad()
def test_a_repeated_embedding_says_the_same_at_every_position(
    decoder: LlamaForCausalLM, k: int, norm: float | None
) -> None:
    """Seed: "like giving the answer at every step". Rather the same question: whatever position a query and the keys
    stand at, attention over copies of one value is that value, so no position can know where it is."""
    model = tiny_v1(decoder=decoder, k=k, norm=norm)
    (row,) = from_the_world(k)
    x = row.context[0].text
    assert len(x) == k
    e = encoded(model, [x])
    assert e.shape == (1, WIDTH)
    repeated = model.repeated(e)
    assert repeated.shape == (1, k, decoder.config.vocab_size)
    assert spread(repeated[0]) < 1e-5
    the_v2_way = torch.cat([e, decoder.model.embed_tokens(torch.tensor(x[:-1]))])
    assert spread(decoder(inputs_embeds=the_v2_way[None]).logits[0]) > 0.1


@torch.no_grad()
def test_other_embeddings_are_read_back_as_something_else() -> None:
    """The same at every position, and yet no constant."""
    model = tiny_v1()
    one, other = model.repeated(encoded(model, [words(2 * K)]))
    assert spread(torch.stack([one[0], other[0]])) > 0.1


# What can be learned from it: which tokens, never their order

LETTERS = words(4)
CHUNK = [LETTERS[i] for i in (0, 1, 0, 2, 0, 1, 3, 0)]


def entropy(ids: Sequence[int]) -> float:
    """Of the distribution of its tokens, in nats."""
    return -sum(n / len(ids) * math.log(n / len(ids)) for n in Counter(ids).values())


class Saying(nn.Module):
    """A v1 that reads given logits (M, V) back from its chunks, whatever it is shown."""

    def __init__(self, logits_MV: Tensor) -> None:
        super().__init__()
        self.config, self.logits_MV = RefragV1Config(k=K), logits_MV

    def encode(self, inputs: EncoderInputs) -> Tensor:
        return torch.zeros((len(self.logits_MV), 1))

    def repeated(self, chunks_ME: Tensor) -> Tensor:
        return self.logits_MV[:, None].expand(-1, K, -1)


def test_the_loss_is_at_best_the_entropy_of_each_chunks_tokens() -> None:
    """Seed: "model can't learn". True: it learns, down to the unigram entropy of each chunk and no further."""
    texts = [[*CHUNK, *CHUNK[2:7]], [LETTERS[0]], CHUNK[::-1]]
    chunks = [chunk for text in texts for chunk in split(text, K)]
    tokens = sum(map(len, chunks))
    floor = sum(len(chunk) * entropy(chunk) for chunk in chunks) / tokens
    assert 0.5 < floor < 2
    batch = lay_out_for(tiny_v1(), telling(*texts), TOKENIZER)
    counts = torch.stack([torch.bincount(torch.tensor(chunk), minlength=974).float() for chunk in chunks])
    best = (counts / counts.sum(1, keepdim=True)).log()
    assert float(repetition_loss(Saying(best), batch)) == pytest.approx(floor, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 0.1, 1.0, 10.0):
        for start in (best.clamp(min=-30), torch.zeros_like(best)):
            other = start + size * torch.randn(best.shape, generator=generator)
            assert float(repetition_loss(Saying(other), batch)) > floor - 1e-6


@torch.no_grad()
def test_no_embedding_is_read_back_better_than_that() -> None:
    model = tiny_v1()
    generator = torch.Generator().manual_seed(0)
    for ids in ([LETTERS[0]] * K, CHUNK, words(K)):
        e = torch.randn((50, WIDTH), generator=generator) * torch.logspace(-2, 2, 50)[:, None]
        losses = -model.repeated(e).double().log_softmax(-1)[:, range(K), ids].mean(1)
        assert losses.min() > entropy(ids) - 1e-6
        assert losses.std() > 0.1


def trained_on_one_chunk(loss: Callable[[nn.Module, Batch], Tensor], model: RefragV1, batch: Batch) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(STEPS):
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def test_training_ends_there_and_the_v2_way_goes_below() -> None:
    """Everything trained, encoder, projector and decoder, on one chunk alone. The seed's "decoder frozen" is no way
    out, nor is it the reason."""
    floor = entropy(CHUNK)
    model = tiny_v1()
    batch = lay_out_for(model, telling(CHUNK), TOKENIZER)
    losses = trained_on_one_chunk(repetition_loss, model, batch)
    assert min(losses) > floor - 1e-5
    assert losses[-1] < floor + 0.05 < losses[0]
    told = condense(batch, torch.tensor([[False]]))
    assert trained_on_one_chunk(answer_loss(read_chunks, 0.0), tiny_v1(), told)[-1] < 0.5 * floor


@torch.no_grad()
def test_any_order_of_a_chunks_tokens_has_the_same_loss() -> None:
    """Under the same embeddings: the inputs of the encoder stay as they are."""
    model, rows = tiny_v1(), telling(words(3 * K), words(K + 5, first=40), words(2, first=70))
    batch = lay_out_for(model, rows, TOKENIZER)
    before = float(repetition_loss(model, batch))
    rng = random.Random(0)

    def rearranged(order: Callable[[list[list[int]]], list[list[int]]]) -> float:
        ids = batch["input_ids"].clone()
        for row, n in enumerate(batch["n_chunks"].tolist()):
            places = [(batch["chunk"][row] == number).nonzero()[:, 0].tolist() for number in range(n)]
            for here, there in zip(places, order(places), strict=True):
                ids[row, here] = batch["input_ids"][row, there]
        return float(repetition_loss(model, batch | {"input_ids": ids}))

    for _ in range(3):
        assert rearranged(lambda places: [rng.sample(p, len(p)) for p in places]) == pytest.approx(before, rel=1e-6)
    other_chunks = rearranged(lambda places: [places[1], places[0], *places[2:]] if len(places) == 3 else places)
    assert abs(other_chunks - before) > 1e-3, "which chunk a token stands in has a say"


# Every token is supervised, and short texts train


@torch.no_grad()
def test_every_token_of_every_chunk_is_a_label() -> None:
    """The last of each too, and none twice; of rows of several chunks, of one, and of none."""
    texts = [words(3 * K), words(K + 1, first=30), [], words(1, first=60), words(K - 1, first=70)]
    model = tiny_v1()
    batch = lay_out_for(model, telling(*texts), TOKENIZER)
    chunks = [chunk for text in texts for chunk in split(text, K)]
    assert chunk_tokens(batch, K).tolist() == [chunk + [IGNORED] * (K - len(chunk)) for chunk in chunks]
    by_hand = []
    for chunk, e in zip(chunks, encoded(model, texts), strict=True):
        logits = model.decoder(inputs_embeds=e.repeat(K, 1)[None]).logits[0].double().log_softmax(-1)
        by_hand += [-float(logits[place, token]) for place, token in enumerate(chunk)]
    assert len(by_hand) == sum(map(len, texts))
    assert float(repetition_loss(model, batch)) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-6)


@pytest.mark.parametrize("length", [1, 2, K, K + 1])
def test_a_short_text_trains(length: int) -> None:
    model = tiny_v1().train()
    batch = lay_out_for(model, telling(words(length)), TOKENIZER)
    loss = repetition_loss(model, batch)
    loss.backward()
    assert 0 < loss.item() < math.inf
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name.startswith(("encoder.embed", "projector.")):
            assert parameter.grad.abs().sum() > 0, name


# The curriculum


def times(stage: str, scale: str) -> tuple[int, int]:
    found = recipe(stage, scale)
    return found.stage.steps, found.data.growing.max_chunks


@pytest.mark.parametrize("stage", ["cpt_recon", "cpt_next"])
@pytest.mark.parametrize("scale", BUDGETS)
def test_the_number_of_chunks_grows_linearly(stage: str, scale: str) -> None:
    """Seed: "exposed to hard examples too early". True: one number at a time, and no easy example ever comes back."""
    growing = recipe(stage, scale).data.growing
    steps, longest = times(stage, scale)
    assert (growing.curriculum, growing.steps) == ("linear", steps), "and ends with the stage"
    for t in [*range(0, steps, max(1, steps // 30)), steps - 1]:
        tokens, _ = growing.draw(random.Random(t), t)
        assert tokens == growing.k * (1 + int((longest - 1) * (t / max(1, steps - 1)))), "the seed's formula"
    assert growing.draw(random.Random(0), 0)[0] == growing.k


def test_a_batch_of_v1_has_the_chunks_of_its_step_and_one_of_v2_has_a_mixture(tiny_checkpoint: Path) -> None:
    found = small("cpt_recon", steps=7)
    batches = found.batches(*found.open(tiny_checkpoint))
    counts = [set(next(batches)["n_chunks"].tolist()) for _ in range(7)]
    assert counts == [{1}, {1}, {2}, {2}, {3}, {3}, {4}]
    mixed = CPT["tiny-k8"].data.growing
    assert len({mixed.draw(random.Random(seed), mixed.steps // 2)[0] for seed in range(20)}) > 1


# The defaults


def test_the_defaults_are_the_seeds() -> None:
    """Seed: "k=64 (too large)" and "less capacity". True for both: 64 tokens share one embedding."""
    assert RefragV1Config() == RefragV1Config(k=64, encoder="FacebookAI/roberta-base", pooling="cls", norm=None)
    policy = Policy(PolicyConfig(), 3072)
    assert sum(p.numel() for p in policy.parameters()) == pytest.approx(100_000, rel=0.05)
    assert [type(module) for module in policy.children()] == [nn.Linear, nn.Linear]


def tanh_by_hand(projector: Projector, pooled: Tensor) -> Tensor:
    unit = pooled / pooled.square().sum().sqrt()
    hidden = (projector.hidden.weight @ unit + projector.hidden.bias).tanh()
    return projector.out.weight @ hidden + projector.out.bias


def states_of(*lengths: int) -> tuple[Tensor, EncoderInputs]:
    states = torch.randn((len(lengths), K, WIDTH), generator=torch.Generator().manual_seed(0))
    chunk = torch.tensor([[row if place < n else -1 for place in range(K)] for row, n in enumerate(lengths)])
    return states, EncoderInputs(torch.zeros_like(chunk), chunk >= 0, chunk)


@torch.no_grad()
def test_the_projector_is_a_tanh_of_the_normalised_state() -> None:
    states, inputs = states_of(K, 3)
    first = Projector(RefragV1Config(k=K), WIDTH, WIDTH)
    expected = torch.stack([tanh_by_hand(first, own[0]) for own in states])
    torch.testing.assert_close(first(states, inputs), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(first(100 * states, inputs), expected, atol=1e-5, rtol=0)
    with_gelu = first.out(F.gelu(first.hidden(F.normalize(states[:, 0], dim=-1))))
    assert (with_gelu - expected).abs().max() > 1e-3


@torch.no_grad()
def test_side_by_side_the_missing_tokens_of_a_short_chunk_count_for_nothing() -> None:
    states, inputs = states_of(K, 3)
    projector = Projector(RefragV1Config(k=K, encoder="decoder:1", pooling="concat"), WIDTH, WIDTH)
    torch.nn.init.normal_(projector.skip.weight)
    expected = []
    for own, n in zip(states, (K, 3), strict=True):
        padded = torch.cat([own[:n], torch.zeros((K - n, WIDTH))])
        expected.append(tanh_by_hand(projector, padded.flatten()) + projector.skip.weight @ padded.sum(0) / K)
    torch.testing.assert_close(projector(states, inputs), torch.stack(expected), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_length_of_an_embedding_is_nobodys_or_the_norms() -> None:
    texts = [words(K), words(3, first=20)]
    free = encoded(tiny_v1(norm=None), texts).norm(dim=-1)
    assert abs(free[0] - free[1]) > 1e-3
    decoder = random_decoder("tiny", seed=0)
    length = 3 * float(decoder.model.embed_tokens.weight.norm(dim=-1).mean())
    normed = encoded(tiny_v1(decoder=decoder, norm=3.0), texts).norm(dim=-1)
    torch.testing.assert_close(normed, torch.full((2,), length), rtol=1e-5, atol=0)


# No order


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The jobs of v1's stages at a scale of two steps."""
    monkeypatch.setitem(RECIPES, "refrag_v1", {stage: {"small": small(stage)} for stage in RECIPES["refrag_v1"]})

    def job(stage: str, start: Path) -> TrainJob:
        return TrainJob(system="refrag_v1", stage=stage, scale="small", runs=tmp_path / "runs", start=start)

    return job


@pytest.mark.parametrize("stage", ["cpt_next", "train_policy"])
def test_no_order_of_stages_is_enforced(jobs: Any, tiny_checkpoint: Path, tmp_path: Path, stage: str) -> None:
    """Seed: "CPT doesn't converge". True: nothing keeps anybody from starting on a decoder that never saw a chunk."""
    job = jobs(stage, tiny_checkpoint)
    assert job.recipe().requires == ()
    model = load_decoder(str(job.run())).model
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    of_v2 = TrainJob(system="refrag_v2", stage="cpt", scale="tiny-k8", runs=tmp_path, start=tiny_checkpoint)
    with pytest.raises(InputError, match="expects a checkpoint that went through refrag_v2/reconstruction"):
        of_v2.run()


# No template, and the other schedule


@pytest.mark.parametrize("scale", BUDGETS)
@pytest.mark.parametrize("stage", ["cpt_recon", "cpt_next", "train_policy"])
def test_the_schedule_is_linear_after_six_percent(stage: str, scale: str) -> None:
    schedule = recipe(stage, scale).stage.schedule
    assert (schedule.warmup, schedule.decay, schedule.floor) == (0.06, "linear", 0.0)
    assert [schedule.scale(step, 100) for step in (0, 5, 6, 53, 99)] == pytest.approx([1 / 6, 1, 1, 0.5, 1 / 94])


@pytest.mark.parametrize("stage", ["cpt_recon", "cpt_next", "train_policy"])
def test_nothing_is_trained_on_a_passage_tag(tiny_checkpoint: Path, stage: str) -> None:
    """Seed: "poor generation". True: a chunk is cut wherever the count is full, also between two people."""
    found = small(stage)
    batches = found.batches(*found.open(tiny_checkpoint))
    for _ in range(2):
        assert not (next(batches)["input_ids"] == PASSAGE_TAG).any()


def test_rows_are_run_together_with_all_their_text() -> None:
    rows = Reading(sizes=((3, 2),), questions=1).draw(random.Random(0), 0, TOKENIZER)
    tags = {token for row in rows for block in row.context for token in block.tag}
    assert tags == {PASSAGE_TAG}
    for before, after in zip(rows, run_together(rows), strict=True):
        (block,) = after.context
        assert (block.tag, block.text) == ([], [token for block in before.context for token in block.text])
        assert (after.start, after.tail, after.is_answer) == (before.start, before.tail, before.is_answer)


# The system


@pytest.fixture(scope="session")
def v1_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_v1(tmp_path_factory.mktemp("v1") / "final")


@pytest.fixture(scope="module")
def loaded(v1_checkpoint: Path) -> Callable[..., RefragV1System]:
    """Systems on one decoder, each with coins of its own."""
    decoder = load_decoder(str(v1_checkpoint))
    return lambda **settings: RefragV1SystemConfig(**{"k": K, "template": "tagged"} | settings).build(decoder)


Loaded = Callable[..., RefragV1System]


def texts(*said: str) -> list[Passage]:
    return [Passage(id=str(i), title="Nobody", text=text) for i, text in enumerate(said)]


def of(tokens: int) -> str:
    """A text of so many tokens."""
    return " ".join(["of"] * tokens)


QUESTION, NEW = "what is the rival", 4  # 6 tokens with "?" and the tag, and the start token before
LONG = texts(
    "The birthplace of Mirel Tovan is Grell. Known rival of Mirel Tovan was Pavo. The faith",
    "Known rival was was was is",
    "",
    "The rival of is was The faith of is was Known birthplace of is was The rival The rival The rival of of of",
)


def ragged() -> tuple[list[str], list[list[Passage]]]:
    """Questions over different numbers of passages of different lengths; one over none, one over empty ones."""
    questions = [f"what is the {noun}" for noun in ("rival", "faith", "birthplace", "is", "was")]
    return questions, [LONG, LONG[1:2], [], texts("", ""), LONG[::-1]]


def by_hand(system: RefragV1System, row: Sequence[Passage]) -> list[list[int]]:
    """The passages' own words one after another, and nothing else, in chunks of k."""
    ids = prompts.text_ids(system.prompting.tokenizer, [passage.text for passage in row])
    return split([token for text in ids for token in text], K)


def call(
    system: RefragV1System, questions: Sequence[str], rows: Sequence[Sequence[Passage]], n: int = 6
) -> tuple[list[str], list[Choice]]:
    context = system.encode(rows)
    answers = system.text(list(system.generate(questions, context, max_new_tokens=n)))
    return answers, list(context.choices)


def masks(system: RefragV1System, calls: int, n: int = 1) -> list[list[int]]:
    """Which chunks each of equal calls expands, counted from the question's first."""
    found = []
    for _ in range(calls):
        ((choice,)) = call(system, [QUESTION], [LONG], n)[1]
        found.append(sorted(row - choice.rows.start for row in choice.expanded))
    return found


def all_heads(system: RefragV1System) -> RefragV1System:
    """Every coin falls on heads. The policy is that of the system's own decoder; each system has loaded its own."""
    with torch.no_grad():
        system.model.policy.out.bias.fill_(1e3)
    return system


def test_equal_calls_give_different_masks_and_answers(loaded: Loaded) -> None:
    """The mask is drawn wherever it is used, also where v2 always takes the best."""
    system = loaded(expand=0.5)
    found = masks(system, 5)
    assert len(set(map(tuple, found))) >= 2
    assert len({call(system, [QUESTION], [LONG])[0][0] for _ in range(8)}) >= 2


def test_a_seed_gives_one_sequence_of_masks(loaded: Loaded) -> None:
    one, again, other = (loaded(expand=0.5, seed=seed) for seed in (0, 0, 1))
    expected = masks(one, 6)
    random.seed(1), torch.manual_seed(1)  # no generator of the process has a say
    before = torch.get_rng_state(), random.getstate()
    assert masks(again, 6) == expected
    assert masks(other, 6) != expected
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1], "and none is drawn from"


def test_the_record_is_of_the_call_that_answered(loaded: Loaded) -> None:
    """Asking what a call cost throws no coins, or the next answer would depend on who asked."""
    quiet, asking = loaded(expand=0.5), loaded(expand=0.5)
    for _ in range(4):
        _, (choice,) = call(quiet, [QUESTION], [LONG])
        context = asking.encode([LONG])
        list(asking.generate([QUESTION], context, max_new_tokens=6))
        assert context.choices == [choice]
        for _ in range(3):
            (usage,) = asking.usage([QUESTION], context, max_new_tokens=6)
            assert (usage.chunks_expanded, usage.decoder_positions) == (len(choice.expanded), len(choice.codes))


def test_a_context_that_answers_twice_is_tossed_for_twice(loaded: Loaded) -> None:
    system = loaded(expand=0.5)
    context, found = system.encode([LONG]), []
    for _ in range(5):
        list(system.generate([QUESTION], context, max_new_tokens=1))
        (usage,) = system.usage([QUESTION], context, max_new_tokens=1)
        found.append(context.choices[0].expanded)
        assert usage.chunks_expanded == len(found[-1])
    assert len(set(found)) >= 2


def test_a_batch_answers_as_its_questions_do(loaded: Loaded) -> None:
    """Of coins as of everything else; the same question twice is its first and its second call."""
    together, alone = loaded(expand=0.5), loaded(expand=0.5)
    questions, rows = ragged()
    questions, rows = [*questions, questions[0]], [*rows, rows[0]]
    context = together.encode(rows)
    answers = together.text(list(together.generate(questions, context, max_new_tokens=6)))
    usages = together.usage(questions, context, max_new_tokens=6)
    for question, row, answer, usage in zip(questions, rows, answers, usages, strict=True):
        own = alone.encode([row])
        assert alone.text(list(alone.generate([question], own, max_new_tokens=6))) == [answer]
        assert alone.usage([question], own, max_new_tokens=6) == [usage]
    assert sum(usage.chunks_expanded for usage in usages) > 3
    assert len(set(answers)) > 3


@pytest.mark.parametrize("template", ["tagged", "text"])
def test_a_prompt_is_the_start_the_text_and_the_question(loaded: Loaded, template: str) -> None:
    """No tag, title or other word around a passage; chunks of k tokens of all of them run together."""
    system = loaded(expand=0.5, template=template)
    questions, rows = ragged()
    _, found = call(system, questions, rows)
    for question, row, choice in zip(questions, rows, found, strict=True):
        chunks = by_hand(system, row)
        assert len(choice.rows) == len(chunks)
        expected = list(system.prompting.start)
        for number, chunk in zip(choice.rows, chunks, strict=True):
            expected += chunk if number in choice.expanded else [-1 - number]
        assert choice.codes == expected + system.prompting.questions([question])[0]
        assert choice.codes.count(TOKENIZER.bos_token_id) == 1
        assert PASSAGE_TAG not in choice.codes
    assert sum(len(choice.expanded) for choice in found) > 3


@torch.no_grad()
def test_chunks_cross_the_borders_of_passages(loaded: Loaded) -> None:
    """So an embedding depends on what stands before its passage, and none can be kept for the next question."""
    system = loaded()
    first, second = texts(of(K + 1), "is was is was is")
    context = system.encode([[first, second]])
    ((text,),) = context.passages
    assert [len(chunk) for chunk in text.chunks] == [K, 6], "not 8, 1 and 5"
    own = encoded(system.model, [prompts.text_ids(TOKENIZER, [second.text])[0]])
    assert (context.embeddings_ME[1] - own[0]).abs().max() > 1e-3
    expected = encoded(system.model, by_hand(system, [first, second]))
    torch.testing.assert_close(context.embeddings_ME, expected, atol=1e-5, rtol=0)


def test_everything_expanded_generates_as_transformers_does(v1_checkpoint: Path) -> None:
    """From the prefill's own logits on: every coin heads and no cap is the plain decoder on the text run together."""
    config = RefragV1SystemConfig(k=K, template="tagged", expand=1.0)
    system = all_heads(config.build(load_decoder(str(v1_checkpoint))))
    questions, rows = ragged()
    context = system.encode(rows)
    columns = torch.stack(list(system.generate(questions, context, max_new_tokens=6)), dim=1)
    for question, row, ours in zip(questions, rows, columns.tolist(), strict=True):
        text = [token for chunk in by_hand(system, row) for token in chunk]
        ids = [*system.prompting.start, *text, *system.prompting.questions([question])[0]]
        theirs = system.model.decoder.generate(
            torch.tensor([ids]),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=system.prompting.stop_ids,
            pad_token_id=system.pad_id,
        )[0, len(ids) :].tolist()
        assert ours == theirs + [system.pad_id] * (columns.shape[1] - len(theirs))
    assert columns.unique().numel() > 4
    assert not context.embeddings_ME.requires_grad and not columns.requires_grad


def test_without_passages_it_is_standard_rag(loaded: Loaded, v1_checkpoint: Path) -> None:
    questions = ragged()[0]
    reference = StandardRAGConfig(template="tagged").build(load_decoder(str(v1_checkpoint)))
    plain: Any = reference.encode([[]] * 5)
    expected = reference.text(list(reference.generate(questions, plain, max_new_tokens=6)))
    for expand in (0.0, 0.5, 1.0):
        system = loaded(expand=expand)
        context = system.encode([[]] * 5)
        assert context.embeddings_ME.shape == (0, WIDTH)
        assert system.text(list(system.generate(questions, context, max_new_tokens=6))) == expected
        for usage in system.usage(questions, context, max_new_tokens=6):
            assert (usage.passages_read, usage.chunks, usage.chunks_expanded, usage.effective_rate) == (0, 0, 0, 1.0)
    assert loaded().encode([]).passages == []


# How many are expanded


def test_a_share_of_nothing_expands_nothing(v1_checkpoint: Path) -> None:
    """Also where every coin would fall on heads, and in training."""
    config = RefragV1SystemConfig(k=K, template="tagged", expand=0.0)
    system = all_heads(config.build(load_decoder(str(v1_checkpoint))))
    assert masks(system, 3) == [[]] * 3
    coins, expanded = toss(torch.full((1, 20), 9.0), torch.zeros(1, 20), [20], 0.0)
    assert coins.all() and not expanded.any()


@pytest.mark.parametrize("expand", [0.1, 0.3, 0.5, 1.0])
def test_no_more_than_the_share_is_expanded_and_the_record_says_how_many(loaded: Loaded, expand: float) -> None:
    system, counts = loaded(expand=expand), set()
    n = len(by_hand(system, LONG))
    assert n == 10
    for _ in range(12):
        context = system.encode([LONG])
        list(system.generate([QUESTION], context, max_new_tokens=1))
        (usage,), (choice,) = system.usage([QUESTION], context, max_new_tokens=1), context.choices
        assert (usage.chunks, usage.chunks_expanded) == (n, len(choice.expanded))
        p = len(choice.expanded) / n
        assert usage.effective_rate == pytest.approx(K / (1 - p + K * p))
        assert usage.decoder_positions == len(choice.codes)
        assert usage.stored_bytes == 0, "a chunk of several passages belongs to none"
        counts.add(len(choice.expanded))
    assert max(counts) <= half_up(expand, n)
    assert max(counts) == half_up(expand, n) or expand == 1.0
    assert expand == 0.1 or len(counts) > 1, "a share is a bound, not a number"


def test_of_too_many_heads_the_likeliest_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, uniform = (torch.rand((200, 9), generator=generator) for _ in range(2))
    logits = 4 * logits - 2
    lengths = [i % 10 for i in range(200)]
    for expand in (0.0, 0.1, 0.34, 0.5, 1.0):
        coins, expanded = toss(logits, uniform, lengths, expand)
        for row, n in enumerate(lengths):
            heads = [i for i in range(n) if uniform[row, i] < 1 / (1 + math.exp(-logits[row, i]))]
            kept = sorted(heads, key=lambda i: -float(logits[row, i]))[: half_up(expand, n)]
            assert coins[row].nonzero()[:, 0].tolist() == heads
            assert expanded[row].nonzero()[:, 0].tolist() == sorted(kept)


def test_among_equals_the_earlier_are_kept() -> None:
    _, expanded = toss(torch.zeros(1, 40), torch.zeros(1, 40), [40], 0.1)
    assert expanded.nonzero()[:, 1].tolist() == [0, 1, 2, 3]


# What finds room


@pytest.mark.parametrize("expand", [0.0, 0.5])
def test_what_does_not_fit_is_cut_at_a_chunk_and_said(v1_checkpoint: Path, expand: float) -> None:
    """Cut where it would not fit however the coins fall, and what is read is answered as if it were all there is."""
    decoder = load_decoder(str(v1_checkpoint))

    def system(room: int | None) -> RefragV1System:
        settings = RefragV1SystemConfig(k=K, template="tagged", expand=expand, max_positions=room)
        return all_heads(settings.build(decoder))

    lengths = (K + 4, 4, K, 3)  # chunks of 8, 8, 8 and 3 tokens
    row = texts(*map(of, lengths))
    chunks = [K, K, K, 3]
    needed = [n + sum(sorted(chunks[:n])[n - half_up(expand, n) :]) - half_up(expand, n) for n in range(5)]
    seen = set()
    for room in range(11, 12 + needed[-1]):
        bounded = system(room)
        context = bounded.encode([row])
        answer = bounded.text(list(bounded.generate([QUESTION], context, max_new_tokens=NEW)))
        (usage,), (choice,) = bounded.usage([QUESTION], context, max_new_tokens=NEW), context.choices
        n = max(count for count in range(5) if 1 + needed[count] + 6 + NEW <= room)
        assert usage.chunks == len(choice.rows) == n
        assert usage.passages_read == (0, 1, 2, 3, 4)[n], "a passage is read where its first token is"
        assert usage.decoder_positions == len(choice.codes) <= room - NEW
        assert choice.codes[-6:] == bounded.prompting.questions([QUESTION])[0], "the question is never cut"
        if n not in seen:
            whole = system(None)
            assert call(whole, [QUESTION], [texts(of(sum(chunks[:n])))], NEW)[0] == answer
        seen.add(n)
    assert seen == {0, 1, 2, 3, 4}


def test_passages_are_counted_that_were_read_at_least_in_part(loaded: Loaded) -> None:
    row = texts(of(3), of(2), of(K), of(1), of(K))  # 3 + 2 + 3 | 5 + 1 + 2 | 6
    for n, read in enumerate((0, 3, 5, 5)):
        system = loaded(max_positions=1 + n + 6 + NEW)
        (usage,) = system.usage([QUESTION], system.encode([row]), max_new_tokens=NEW)
        assert (usage.chunks, usage.passages_read) == (n, read)


def test_a_question_that_never_fits_is_named(loaded: Loaded) -> None:
    system = loaded(max_positions=11)
    system.check([QUESTION], max_new_tokens=NEW)
    with pytest.raises(InputError, match=r"'what is the rival of' needs 12 positions .* holds 11"):
        system.check(["what is the rival of"], max_new_tokens=NEW)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expand": -0.1}, "from 0 to 1, got -0.1"),
        ({"expand": math.nan}, "from 0 to 1, got nan"),
        ({"expand": "a lot"}, "setting expand: expected float, got 'a lot'"),
        ({"k": 4}, "has chunks of 8 tokens; k=4 is not its k"),
        ({"template": "taged"}, "unknown prompt template 'taged'"),
        ({"select": "policy"}, "unknown setting of refrag_v1 'select'.*valid choices: expand, k"),
    ],
)
def test_settings_that_cannot_be_say_what_could(v1_checkpoint: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_system("refrag_v1", str(v1_checkpoint), settings, dtype="float32", device="cpu")


def test_without_a_policy_nothing_can_be_expanded(tmp_path: Path) -> None:
    config = RefragV1SystemConfig(k=K, template="tagged", expand=0.1)
    with pytest.raises(InputError, match="no policy; run `train refrag_v1 train_policy`, or set expand=0"):
        config.build(load_decoder(str(write_tiny_v1(tmp_path / "final", policy=False))))


# The policy


@torch.no_grad()
def test_the_policy_sees_one_chunk_and_nothing_else() -> None:
    """Seed: "2-layer MLP, marginal difference". True: neither question nor neighbours, so it learns kinds of chunks."""
    policy = tiny_v1(policy=True).policy
    chunks = torch.randn((5, WIDTH), generator=torch.Generator().manual_seed(0))
    logits = policy(chunks)
    assert logits.shape == (5,) and logits.std() > 1e-2
    torch.testing.assert_close(policy(chunks.flip(0)), logits.flip(0))
    torch.testing.assert_close(policy(chunks[2:3]), logits[2:3])
    torch.testing.assert_close(policy(torch.stack([chunks, chunks.flip(0)]))[1], logits.flip(0))


# REINFORCE, by enumeration

Mask = tuple[bool, ...]
LOGITS = ((0.4, -0.9, 1.3), (-0.2, 0.7, 5.0))  # of rows of 3 and 2 chunks; the last is padding


class Given(nn.Module):
    """A policy that has its logits, whatever it is shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, chunks: Tensor) -> Tensor:
        return self.logits


def asked(*chunks: int) -> list[Row]:
    """Rows of so many chunks and a question each."""
    rows = telling(*[words(n * K, first=5 * n) for n in chunks])
    for row in rows:
        row.tail, row.is_answer = words(4, first=90), [False, False, True, True]
    return rows


def training_on(*chunks: int) -> tuple[PolicyTraining, Batch]:
    model = tiny_v1(policy=True)
    return PolicyTraining(model), lay_out_for(model, asked(*chunks), TOKENIZER)


def worth(row: int, mask: Mask) -> float:
    """Any reward: every set of expanded chunks of every row has its own."""
    return random.Random(f"{row}-{mask}").uniform(-3, 0)


def fixed(monkeypatch: pytest.MonkeyPatch, rewards: Callable[[Tensor], Tensor], uniform: Callable[[], Tensor]) -> None:
    """Coins and rewards as given."""
    monkeypatch.setattr("refrag_v1.policy.answer_log_likelihood", lambda model, batch, chunks, mask: rewards(mask))
    monkeypatch.setattr(torch, "rand", lambda *size: uniform())


@pytest.mark.parametrize("expand", [0.0, 0.34, 0.67, 1.0])
def test_the_expected_step_is_the_gradient_of_the_expected_reward(
    monkeypatch: pytest.MonkeyPatch, expand: float
) -> None:
    """Over all coins of a row of 3 chunks and one of 2, with the cap as a part of what follows the coins. A
    log-probability of the capped mask would not do it, nor one of coins that were never thrown."""
    training, batch = training_on(3, 2)
    lengths, baseline = (3, 2), -0.7
    given = Given(torch.tensor(LOGITS))
    training.model.policy = given
    coins: tuple[Mask, ...] = ()
    fixed(
        monkeypatch,
        lambda mask: torch.tensor([worth(i, tuple(row[: lengths[i]])) for i, row in enumerate(mask.tolist())]),
        lambda: torch.tensor([[0.0 if heads else 1 - 1e-6 for heads in (*row, True)[:3]] for row in coins]),
    )

    def capped(row: int, fell: Mask) -> Mask:
        heads = sorted((i for i, head in enumerate(fell) if head), key=lambda i: -LOGITS[row][i])
        kept = heads[: half_up(expand, len(fell))]
        return tuple(i in kept for i in range(len(fell)))

    exact = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    expected_reward = torch.zeros((), dtype=torch.float64)
    for row, n in enumerate(lengths):
        for fell in itertools.product((False, True), repeat=n):
            p = exact[row, :n].sigmoid()
            chance = torch.where(torch.tensor(fell), p, 1 - p).prod()
            expected_reward = expected_reward + chance * worth(row, capped(row, fell)) / len(lengths)
    expected_reward.backward()

    found = torch.zeros((2, 3), dtype=torch.float64)
    probability = torch.tensor(LOGITS, dtype=torch.float64).sigmoid()
    for coins in itertools.product(*(itertools.product((False, True), repeat=n) for n in lengths)):
        training.baseline.fill_(baseline), training.updates.fill_(1)
        given.logits.grad = None
        reinforce(training, batch, ReinforceConfig(expand=expand)).backward()
        chance = math.prod(
            float(probability[row, i] if head else 1 - probability[row, i])
            for row, fell in enumerate(coins)
            for i, head in enumerate(fell)
        )
        found += chance * given.logits.grad.double()
    torch.testing.assert_close(-found, exact.grad, atol=1e-5, rtol=0)
    assert (found[1, 2] == 0).all(), "padding"
    assert expand == 0 or exact.grad.abs().max() > 0.05
    assert expand > 0 or exact.grad.abs().max() < 1e-12


def test_the_baseline_is_the_moving_average_of_rewards_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    training, batch = training_on(1, 1)
    given = Given(torch.zeros(2, 1))
    training.model.policy = given
    rewards = [(-1.0, -2.0), (-3.0, -4.0), (0.0, -1.0), (-2.0, -2.0)]
    now = iter(rewards)
    fixed(monkeypatch, lambda mask: torch.tensor(next(now)), lambda: torch.zeros(2, 1))
    baseline = -1.5  # the first rewards' own mean: there is no average yet
    for step, reward in enumerate(rewards):
        given.logits.grad = None
        reinforce(training, batch, ReinforceConfig(momentum=0.8)).backward()
        # d/dlogit of -(reward - baseline) * log sigmoid(logit), the mean over two rows, at 0
        expected = torch.tensor([[-(r - baseline) * 0.5 / 2] for r in reward])
        torch.testing.assert_close(given.logits.grad, expected, atol=1e-6, rtol=0)
        baseline = 0.8 * baseline + 0.2 * sum(reward) / 2
        assert float(training.baseline) == pytest.approx(baseline, rel=1e-6)
        assert int(training.updates) == step + 1


def test_rewards_equal_to_the_baseline_move_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    training, batch = training_on(3, 2)
    policy = training.model.policy
    fixed(monkeypatch, lambda mask: torch.full((2,), -1.25), lambda: torch.full((2, 3), 0.3))
    before, optimizer = state(policy), torch.optim.AdamW(policy.parameters(), lr=0.1, weight_decay=0.0)
    for _ in range(3):
        reinforce(training, batch, ReinforceConfig()).backward()
        assert all((parameter.grad == 0).all() for parameter in policy.parameters())
        optimizer.step()
    assert not changed(policy, before)


def test_what_pays_becomes_likelier(monkeypatch: pytest.MonkeyPatch) -> None:
    """From end to end, where the first chunk of either row is worth 1 and every other costs a half."""
    training, batch = training_on(3, 2)
    model = training.model
    monkeypatch.setattr(
        "refrag_v1.policy.answer_log_likelihood",
        lambda model, batch, chunks, mask: mask[:, 0].float() - 0.5 * mask[:, 1:].float().sum(1),
    )
    optimizer = torch.optim.AdamW(model.policy.parameters(), lr=0.02, weight_decay=0.0)
    torch.manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        reinforce(training, batch, ReinforceConfig(expand=1.0)).backward()
        optimizer.step()
    with torch.no_grad():
        pays = model.policy(chunks_of(model, batch)).sigmoid().tolist()
    assert min(pays[0], pays[3]) > 0.5 > max(pays[1], pays[2], pays[4])


@torch.no_grad()
def test_the_reward_is_of_the_true_answer_under_the_capped_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of what the model itself would say, and not of what the coins said before the cap."""
    training, batch = training_on(3)
    model, (row,) = training.model, asked(3)
    training.model.policy = Given(torch.tensor([LOGITS[0]]))
    monkeypatch.setattr(torch, "rand", lambda *size: torch.zeros(1, 3))
    seen = []
    own = model.forward
    monkeypatch.setattr(model, "forward", lambda codes, chunks: seen.append(codes) or own(codes, chunks))
    reinforce(training, batch, ReinforceConfig(expand=0.34))
    likeliest = split(row.context[0].text, K)[2]
    expected = [*row.start, -1, -2, *likeliest, *row.tail]
    assert [codes.tolist() for codes in seen] == [[expected]]
    e = chunks_of(model, batch)
    said = model.decoder.model.embed_tokens
    inputs = torch.cat([said(torch.tensor(row.start)), e[:2], said(torch.tensor([*likeliest, *row.tail]))])
    logits = model.decoder(inputs_embeds=inputs[None]).logits[0].double().log_softmax(-1)
    answer = [float(logits[len(inputs) - 3 + i, token]) for i, token in enumerate(row.tail[2:])]
    assert float(training.baseline) == pytest.approx(sum(answer) / 2, abs=1e-4)


def test_the_policy_stage_moves_the_policy_alone() -> None:
    training, batch = training_on(12, 10)
    stage = small("train_policy").stage
    torch.manual_seed(0)
    reinforce(training, batch, ReinforceConfig()).backward()  # where nobody has frozen the rest
    assert all(p.grad is None for name, p in training.named_parameters() if not name.startswith("model.policy."))
    optimizers = build_optimizers(freeze(training, stage), stage)
    before = state(training)
    for _ in range(3):
        reinforce(training, batch, ReinforceConfig()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    parts = {name for name, _ in training.named_parameters() if name.startswith("model.policy.")}
    assert changed(training, before) == parts | {"baseline", "updates"}


def test_the_frozen_model_does_not_drop_out() -> None:
    """The reward is the likelihood under the model that will answer."""
    model = tiny_v1(policy=True, encoder="random:roberta-tiny", pooling="cls")
    batch = lay_out_for(model, asked(2), TOKENIZER)
    training = PolicyTraining(model)
    training.train()  # as the loop does
    assert model.policy.training
    with torch.no_grad():
        assert torch.equal(chunks_of(model, batch), chunks_of(model, batch))


# Of four chunks of 64 tokens a tenth is none: every mask is empty, and the policy learns from noise.
@pytest.mark.parametrize("scale", BUDGETS)
def test_the_policy_has_something_to_expand(scale: str, tiny_checkpoint: Path) -> None:
    found = recipe("train_policy", scale)
    training, tokenizer = found.open(tiny_checkpoint)
    counts = next(found.batches(training, tokenizer))["n_chunks"].tolist()
    assert min(half_up(found.objective.expand, n) for n in counts) >= 1
