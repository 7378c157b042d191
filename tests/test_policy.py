"""The policy and GRPO: closed forms of what is drawn, how likely it was, what it earns and what it moves."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from harness.data.world.practice import Reading
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model.chunking import EncoderInputs, split
from harness.model.load import random_decoder
from harness.train.chunk_model import lay_out_for
from harness.train.optim import build_optimizers, freeze
from harness.train.rows import Batch, Row
from refrag_v2.grpo import (
    GrpoConfig,
    PolicyTraining,
    WarmUpConfig,
    grpo,
    likelihood_of_picks,
    policy_inputs,
    warm_up,
)
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.policy import (
    Policy,
    PolicyConfig,
    advantages,
    grpo_loss,
    picks_log_probability,
    sample_picks,
)
from refrag_v2.selectors import Candidates, by_policy
from refrag_v2.stages import POLICY, POLICY_START

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = build_tokenizer()
K, WIDTH = 8, 128
LOGITS = (0.3, -1.2, 0.8, 0.0)


# What a sequence of picks is worth


def closed_form(logits: Sequence[float], picks: Sequence[int]) -> float:
    """pi(l_1) pi(l_2 | l_1) ...: each pick's share of what the picks before it have left."""
    left, probability = dict(enumerate(logits)), 1.0
    for pick in picks:
        probability *= math.exp(left[pick]) / sum(map(math.exp, left.values()))
        del left[pick]
    return probability


def likelihood(logits: Sequence[float], picks: Sequence[Sequence[int]]) -> list[float]:
    found: list[float] = picks_log_probability(torch.tensor([logits]), torch.tensor([picks])).sum(-1).exp()[0].tolist()
    return found


def test_the_probability_of_two_picks_of_four_chunks() -> None:
    a, b, c, d = map(math.exp, LOGITS)
    first, second = picks_log_probability(torch.tensor([LOGITS]), torch.tensor([[[2, 0]]])).exp()[0, 0].tolist()
    assert first == pytest.approx(c / (a + b + c + d), rel=1e-6)
    assert second == pytest.approx(a / (a + b + d), rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_ordered_picks_together_are_certain(count: int) -> None:
    picks = list(itertools.permutations(range(4), count))
    found = likelihood(LOGITS, picks)
    assert found == pytest.approx([closed_form(LOGITS, pick) for pick in picks], rel=1e-5)
    assert sum(found) == pytest.approx(1.0, abs=1e-6)


def test_every_context_and_every_group_has_its_own_probability() -> None:
    logits = (LOGITS, LOGITS[::-1])
    picks = [[[0, 1], [1, 0], [3, 2]], [[0, 1], [2, 1], [3, 0]]]
    found = picks_log_probability(torch.tensor(logits), torch.tensor(picks)).sum(-1).exp()
    expected = [[closed_form(row, pick) for pick in group] for row, group in zip(logits, picks, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=0)


def test_padding_has_no_share() -> None:
    padded = (*LOGITS, -math.inf, -math.inf)
    assert likelihood(padded, [[2, 0], [1, 3]]) == likelihood(LOGITS, [[2, 0], [1, 3]])


# What is drawn


def drawn(logits: Sequence[Sequence[float]], count: int, groups: int, seed: int = 0) -> Tensor:
    return sample_picks(torch.tensor(logits), count, groups, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("masked", [0, 2])
def test_sequences_are_drawn_as_often_as_they_are_likely(count: int, masked: int) -> None:
    """Both contexts of a batch, in the order of their picks; a chunk twice, or one that is not there, never."""
    draws = 20_000
    contexts = (LOGITS, (2.0, 0.0, -0.5, 0.5))
    picks = drawn([(*logits, *[-math.inf] * masked) for logits in contexts], count, draws)
    assert picks.shape == (2, draws, count)
    for logits, rows in zip(contexts, picks.tolist(), strict=True):
        seen = Counter(map(tuple, rows))
        possible = list(itertools.permutations(range(4), count))
        assert seen.keys() <= set(possible)
        expected = [draws * closed_form(logits, pick) for pick in possible]
        assert chisquare([seen[pick] for pick in possible], expected).pvalue > 1e-3


def test_a_generator_decides_what_is_drawn() -> None:
    assert torch.equal(drawn([LOGITS], 2, 50), drawn([LOGITS], 2, 50))
    assert not torch.equal(drawn([LOGITS], 2, 50), drawn([LOGITS], 2, 50, seed=1))


# What moves


def test_advantages_are_rewards_normalised_in_their_group() -> None:
    rewards = [[-1.0, -2.5, -0.25, -4.0], [3.0, 1.0, 1.0, 2.0]]
    expected = [[(r - statistics.mean(row)) / statistics.stdev(row) for r in row] for row in rewards]
    torch.testing.assert_close(advantages(torch.tensor(rewards)), torch.tensor(expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("groups", [3, 5, 8])
def test_equal_rewards_have_no_advantage_whatever_they_are(groups: int) -> None:
    """A policy that has made up its mind draws one set of chunks, G times: nothing is to be learned from it."""
    rewards = -5 * torch.rand(500, generator=torch.Generator().manual_seed(0))
    assert (advantages(rewards[:, None].repeat(1, groups)) == 0).all()


def test_the_loss_is_equation_1_by_hand() -> None:
    """The mean over G sequences and T picks of min(r A, clip(r) A), with a minus."""
    new = [[math.log(0.5), math.log(0.2)], [math.log(0.3), math.log(0.4)]]
    old = [[math.log(0.4), math.log(0.4)], [math.log(0.1), math.log(0.41)]]
    advantage, clip = [0.7, -1.3], 0.2
    terms = []
    for g, t in itertools.product(range(2), range(2)):
        ratio = math.exp(new[g][t] - old[g][t])
        terms.append(min(ratio * advantage[g], min(max(ratio, 1 - clip), 1 + clip) * advantage[g]))
    loss = grpo_loss(torch.tensor([new]), torch.tensor([old]), torch.tensor([advantage]), clip)
    assert float(loss) == pytest.approx(-sum(terms) / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("advantage", "ratio", "pushes"),
    [
        (1.5, 1.0, True),
        (1.5, 1.19, True),
        (1.5, 1.21, False),  # likelier than allowed already
        (1.5, 0.5, True),  # a good sequence that became too rare must come back
        (-1.5, 1.0, True),
        (-1.5, 0.81, True),
        (-1.5, 0.79, False),  # rarer than allowed already
        (-1.5, 2.0, True),
    ],
)
def test_the_clip_stops_where_the_policy_went_far_enough(advantage: float, ratio: float, pushes: bool) -> None:
    new = torch.tensor([[[-1.0]]], requires_grad=True)
    old = torch.tensor([[[-1.0 - math.log(ratio)]]])
    grpo_loss(new, old, torch.tensor([[advantage]]), 0.2).backward()
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(-advantage * ratio if pushes else 0.0, rel=1e-5, abs=1e-12)


def a_policy(seed: int = 0, width: int = 16) -> Policy:
    """No parameter where its initialisation left it: what holds, holds for any policy."""
    torch.manual_seed(seed)
    policy = Policy(PolicyConfig(), width)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def seen(*lengths: tuple[int, int], seed: int = 0, width: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random questions and chunks of these lengths, padded with large numbers that nobody may look at."""
    generator = torch.Generator().manual_seed(seed)
    Q, L = (max(column) for column in zip(*lengths, strict=True))
    question, chunks = (torch.full((len(lengths), n, width), 1e3) for n in (Q, L))
    for row, (q, n) in enumerate(lengths):
        question[row, :q] = torch.randn(q, width, generator=generator)
        chunks[row, :n] = torch.randn(n, width, generator=generator)
    asked, there = (
        torch.arange(n)[None] < torch.tensor(column)[:, None]
        for n, column in zip((Q, L), zip(*lengths, strict=True), strict=True)
    )
    return question, asked, chunks, there


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_equal_rewards_move_nothing() -> None:
    policy, inputs = a_policy(), seen((3, 6), (3, 6))
    logits = policy(*inputs)
    picks = sample_picks(logits.detach(), 2, 4)
    probability = picks_log_probability(logits, picks)
    rewards = torch.tensor([[-2.5] * 4, [0.75] * 4])  # numbers whose mean is exact
    grpo_loss(probability, probability.detach(), advantages(rewards), 0.2).backward()
    assert all(parameter.grad is not None and (parameter.grad == 0).all() for parameter in policy.parameters())
    before = state(policy)
    torch.optim.AdamW(policy.parameters(), lr=1e-1, weight_decay=0.0).step()
    assert not changed(policy, before)


@pytest.mark.parametrize("better", [0, 1])
@pytest.mark.parametrize("count", [1, 2])
def test_the_better_of_two_sequences_becomes_likelier(better: int, count: int) -> None:
    policy, inputs = a_policy(), seen((4, 7))
    picks = torch.tensor([[[1, 5], [3, 2]]])[..., :count]
    old = picks_log_probability(policy(*inputs), picks).detach()
    rewards = torch.tensor([[-3.0, -3.0]])
    rewards[0, better] += 1e-2  # by how much does not matter: advantages are normalised
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, weight_decay=0.0)
    grpo_loss(picks_log_probability(policy(*inputs), picks), old, advantages(rewards), 0.2).backward()
    optimizer.step()
    with torch.no_grad():
        gain = (picks_log_probability(policy(*inputs), picks) - old).sum(-1)[0]
    assert gain[better] - gain[1 - better] > 1e-6


# The network, whatever it is inside


@torch.no_grad()
def test_there_is_no_choosing_what_is_not_there() -> None:
    logits = a_policy()(*seen((3, 5), (4, 2)))
    assert logits.shape == (2, 5)
    assert (logits == -math.inf).tolist() == [[False] * 5, [False, False, True, True, True]]
    assert logits[0].isfinite().all()


@torch.no_grad()
def test_a_ragged_batch_has_the_logits_of_its_rows() -> None:
    policy = a_policy()
    question, asked, chunks, there = seen((3, 5), (7, 2), (1, 9))
    together = policy(question, asked, chunks, there)
    for row in range(3):
        q, n = int(asked[row].sum()), int(there[row].sum())
        alone = policy(
            question[row : row + 1, :q], asked[row : row + 1, :q], chunks[row : row + 1, :n], there[row : row + 1, :n]
        )
        torch.testing.assert_close(together[row, :n], alone[0], atol=1e-5, rtol=1e-5)
    assert together[there].std() > 1e-2


@torch.no_grad()
def test_the_policy_sees_the_question() -> None:
    """Over the passages of a question nothing else tells a useful chunk from another."""
    policy = a_policy()
    question, asked, chunks, there = seen((3, 5))
    other, *_ = seen((3, 5), seed=1)
    moved = policy(other, asked, chunks, there) - policy(question, asked, chunks, there)
    assert (moved - moved.mean()).abs().max() > 1e-3, "and not all chunks alike"


# One step on a whole model


def sharpened(seed: int = 0, **config: object) -> Refrag:
    """A random model whose predictions depend on every input: at its own initialisation all answers look alike."""
    model = Refrag(RefragConfig(**{"k": K} | config), random_decoder("tiny", seed=seed)).eval()
    with torch.no_grad():
        for matrix in (p for p in model.decoder.parameters() if p.ndim == 2):
            matrix.mul_(5)
    model.policy = a_policy(seed, WIDTH)
    return model


def rows_of(*passages: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [row for n in passages for row in Reading(sizes=((n, 1),), questions=1).draw(rng, 0, TOKENIZER)]


def chunks_of(model: Refrag, batch: Batch) -> Tensor:
    return model.encode(EncoderInputs(batch["encoder_ids"], batch["encoder_mask"], batch["encoder_chunk"]))


@torch.no_grad()
def test_the_reward_is_the_mean_log_likelihood_of_the_true_answer() -> None:
    """Under the input that the picks make: picked chunks as tokens, the others as their embeddings."""
    model, rows = sharpened(), rows_of(3, 2)
    batch = lay_out_for(model, rows, TOKENIZER)
    chunks = chunks_of(model, batch)
    picks = torch.tensor([[[0, 5], [11, 3], [3, 11]], [[2, 4], [7, 0], [1, 2]]])
    rewards = likelihood_of_picks(model, batch, chunks, picks)

    def said(ids: Sequence[int]) -> Tensor:
        return model.decoder.model.embed_tokens(torch.tensor(ids))

    first = 0
    for row, given, rewarded in zip(rows, picks.tolist(), rewards, strict=True):
        count = sum(len(split(block.text, K)) for block in row.context)
        for pick, reward in zip(given, rewarded.tolist(), strict=True):
            inputs, number = [said(row.start)], 0
            for block in row.context:
                inputs.append(said(block.tag))
                for chunk in split(block.text, K):
                    inputs.append(said(chunk) if number in pick else chunks[first + number, None])
                    number += 1
            assert number == count
            before = torch.cat([*inputs, said(row.tail)])
            logits = model.decoder(inputs_embeds=before[None]).logits[0].double().log_softmax(-1)
            start = len(before) - len(row.tail)
            answer = [i for i, asked in enumerate(row.is_answer) if asked]
            assert len(answer) == 2, "a value and the end of the sequence"
            by_hand = sum(float(logits[start + i - 1, row.tail[i]]) for i in answer) / 2
            assert reward == pytest.approx(by_hand, abs=1e-4)
        first += count
    assert rewards[0, 1] == rewards[0, 2], "the order of the picks makes no other input"
    assert rewards[0].std() > 1e-2


@torch.no_grad()
def test_training_shows_the_policy_what_answering_shows_it() -> None:
    model, rows = sharpened(), rows_of(2, 4, 1)
    batch = lay_out_for(model, rows, TOKENIZER)
    chunks = chunks_of(model, batch)
    counts = batch["n_chunks"].tolist()
    given = Candidates(
        questions=["?"] * 3,
        question_ids=[[t for t, answer in zip(row.tail, row.is_answer, strict=True) if not answer] for row in rows],
        passages=[[split(block.text, K) for block in row.context] for row in rows],
        embeddings=chunks.split(counts),
        tokenizer=TOKENIZER,
    )
    assert model.policy is not None
    in_training = model.policy(*policy_inputs(model, batch, chunks))
    for logits, scores in zip(in_training, by_policy(model, given), strict=True):
        torch.testing.assert_close(logits[: len(scores)], torch.tensor(scores), atol=1e-5, rtol=1e-5)
        assert (logits[len(scores) :] == -math.inf).all()


def training_on(model: Refrag, *passages: int) -> tuple[PolicyTraining, Batch]:
    return PolicyTraining(model), lay_out_for(model, rows_of(*passages), TOKENIZER)


def test_only_the_policy_has_a_gradient() -> None:
    """Even where nobody has frozen the rest."""
    training, batch = training_on(sharpened(), 3, 3)
    torch.manual_seed(0)
    grpo(training, batch, GrpoConfig()).backward()
    moved = {name for name, p in training.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved
    assert all(name.startswith("refrag.policy.") for name in moved)
    assert all(p.grad is None for name, p in training.named_parameters() if not name.startswith("refrag.policy."))


def test_steps_of_the_recipe_move_the_policy_and_no_byte_of_the_rest() -> None:
    training, batch = training_on(sharpened(), 3, 3)
    stage = replace(POLICY["tiny-k8"].stage, steps=5)
    optimizers = build_optimizers(freeze(training, stage), stage)
    before = state(training)
    torch.manual_seed(0)
    for _ in range(3):
        grpo(training, batch, GrpoConfig(refresh=100)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    moved = changed(training, before)
    assert all(name == "updates" or name.startswith("refrag.policy.") for name in moved)
    assert len(moved) > 1


def test_the_sampler_is_refreshed_every_few_steps() -> None:
    training, batch = training_on(sharpened(), 2)
    policy = training.refrag.policy
    assert policy is not None
    for step in range(7):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.01)
        before = state(training.sampler)
        grpo(training, batch, GrpoConfig(refresh=3))
        if step % 3 == 0:
            assert not changed(training.sampler, state(policy)), f"step {step}"
        else:
            assert not changed(training.sampler, before), f"step {step}"
            assert changed(training.sampler, state(policy))


def test_the_ratio_is_to_the_sampler_that_drew() -> None:
    """Right after a refresh every ratio is 1, so the loss is minus the mean advantage, which is 0; later it is not."""
    training, batch = training_on(sharpened(), 3, 3)
    torch.manual_seed(0)
    assert grpo(training, batch, GrpoConfig(refresh=100)).item() == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        for parameter in training.refrag.policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert abs(grpo(training, batch, GrpoConfig(refresh=100)).item()) > 1e-3


def test_what_is_rewarded_becomes_likelier(monkeypatch: pytest.MonkeyPatch) -> None:
    """From end to end, where every sequence that has chunk 4 in it is worth 1 and every other 0."""
    training, batch = training_on(sharpened(), 2)
    monkeypatch.setattr(
        "refrag_v2.grpo.likelihood_of_picks", lambda model, batch, chunks, picks: (picks == 4).any(-1).float()
    )

    @torch.no_grad()
    def probability() -> float:
        model = training.refrag
        assert model.policy is not None
        return model.policy(*policy_inputs(model, batch, chunks_of(model, batch)))[0].softmax(-1)[4].item()

    stage = replace(POLICY["tiny-k8"].stage, steps=10)
    (optimizer,) = build_optimizers(freeze(training, stage), stage)
    before = probability()
    torch.manual_seed(0)
    for _ in range(10):
        grpo(training, batch, GrpoConfig()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert probability() > before


def test_the_frozen_model_does_not_drop_out() -> None:
    """The reward is the likelihood under the model that will answer."""
    training, batch = training_on(sharpened(encoder="random:roberta-tiny", pooling="mean"), 2)
    training.train()  # as the loop does
    with torch.no_grad():
        assert torch.equal(chunks_of(training.refrag, batch), chunks_of(training.refrag, batch))


@pytest.mark.parametrize(
    ("passages", "expand", "said"),
    [
        ((8, 4), 0.1, "a share of 0.1 of 16, 32 chunks is 2, 3"),
        ((1, 1), 0.1, "a share of 0.1 of 4 chunks is 0"),
        ((3, 3), 0.0, "a share of 0.0 of 12 chunks is 0"),
    ],
)
def test_rows_that_do_not_have_one_number_of_picks_are_an_input_error(
    passages: tuple[int, ...], expand: float, said: str
) -> None:
    training, batch = training_on(sharpened(), *passages)
    with pytest.raises(InputError, match="equally many chunks to pick, at least 1") as caught:
        grpo(training, batch, GrpoConfig(expand=expand))
    assert said in str(caught.value)


def test_rows_of_another_length_with_as_many_picks_go() -> None:
    """A tenth of 8 chunks and of 12 is one chunk."""
    training, batch = training_on(sharpened(), 3, 2)
    loss = grpo(training, batch, GrpoConfig(expand=0.1))
    loss.backward()
    grads = [p.grad for p in training.parameters() if p.grad is not None]
    assert loss.isfinite()
    assert grads and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("groups", [1, 0, -3])
def test_a_sample_is_better_only_than_another(groups: int) -> None:
    with pytest.raises(InputError, match=f"at least 2 samples to a group.* got {groups}"):
        GrpoConfig(groups=groups)


# The warm-up


class Given(nn.Module):
    """A policy that has its logits, whatever it is shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, *seen: Tensor) -> Tensor:
        return self.logits


def labels_of(training: PolicyTraining, batch: Batch, config: WarmUpConfig) -> Tensor:
    """What the policy is to say, read off the gradient of a cross-entropy: (softmax(logits) - labels) / rows."""
    rows, chunks = batch["n_chunks"].shape[0], int(batch["n_chunks"].max())
    given = Given(torch.randn(rows, chunks, generator=torch.Generator().manual_seed(0)))
    training.refrag.policy = given
    warm_up(training, batch, config).backward()
    assert given.logits.grad is not None
    return given.logits.detach().softmax(-1) - rows * given.logits.grad


def worth_of_each(model: Refrag, batch: Batch) -> list[list[float]]:
    """Of every row and chunk, the reward of expanding that chunk and no other, asked for one at a time."""
    rows, chunks = batch["n_chunks"].shape[0], int(batch["n_chunks"].max())
    with torch.no_grad():
        embeddings = chunks_of(model, batch)
        columns = [
            likelihood_of_picks(model, batch, embeddings, torch.full((rows, 1, 1), chunk))[:, 0].tolist()
            for chunk in range(chunks)
        ]
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_warm_up_wants_the_softmax_of_what_each_chunk_alone_is_worth(temperature: float) -> None:
    """Worth in standard deviations of its row: (r - mean) / std, as GRPO normalises rewards in their group."""
    training, batch = training_on(sharpened(), 3, 3)
    expected = []
    for row in worth_of_each(training.refrag, batch):
        mean, std = statistics.mean(row), statistics.stdev(row)
        assert std > 1e-2
        exponentials = [math.exp((reward - mean) / std / temperature) for reward in row]
        expected.append([e / sum(exponentials) for e in exponentials])
    labels = labels_of(training, batch, WarmUpConfig(temperature=temperature))
    torch.testing.assert_close(labels, torch.tensor(expected), atol=1e-4, rtol=1e-3)
    assert labels.max() > 1.5 / labels.shape[1], "no uniform labels"


def test_the_warm_up_is_over_where_the_policy_says_the_labels() -> None:
    training, batch = training_on(sharpened(), 2, 2)
    config = WarmUpConfig()
    labels = labels_of(training, batch, config)
    given = Given(labels.log())
    training.refrag.policy = given
    loss = warm_up(training, batch, config)
    loss.backward()
    assert given.logits.grad is not None
    assert given.logits.grad.abs().max() < 1e-5
    assert loss.item() == pytest.approx(float(-(labels * labels.log()).sum(-1).mean()), rel=1e-4), "their entropy"


def test_only_the_policy_has_a_gradient_of_the_warm_up() -> None:
    """Even where nobody has frozen the rest."""
    training, batch = training_on(sharpened(), 2, 2)
    warm_up(training, batch, WarmUpConfig()).backward()
    with_one = {name for name, p in training.named_parameters() if p.grad is not None}
    assert all(name.startswith("refrag.policy.") for name in with_one)
    assert with_one == {name for name, _ in training.named_parameters() if name.startswith("refrag.policy.")}


def test_warming_up_draws_nothing() -> None:
    """No samples: the same batch gives the same loss, and no random number is taken from what comes after."""
    training, batch = training_on(sharpened(), 2, 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert warm_up(training, batch, WarmUpConfig()).item() == warm_up(training, batch, WarmUpConfig()).item()
    assert torch.equal(torch.get_rng_state(), before)


def test_warming_up_learns_a_batch_and_moves_no_byte_of_the_rest() -> None:
    training, batch = training_on(sharpened(), 2, 2)
    policy = training.refrag.policy
    assert policy is not None
    stage = replace(POLICY_START["tiny-k8"].stage, steps=8)
    optimizers = build_optimizers(freeze(training, stage), stage)
    before, losses = state(training), []
    for _ in range(8):
        loss = warm_up(training, batch, WarmUpConfig())
        loss.backward()
        losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.95 * losses[0]
    moved = changed(training, before)
    assert moved
    assert all(name.startswith("refrag.policy.") for name in moved)


def test_a_ragged_batch_of_the_warm_up_is_refused_or_has_a_loss() -> None:
    """``grpo`` refuses rows of unequally many picks with an ``InputError``."""
    training, batch = training_on(sharpened(), 3, 2)
    try:
        loss = warm_up(training, batch, WarmUpConfig())
    except InputError:
        return
    assert loss.isfinite()
