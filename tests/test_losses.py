"""What every stage minimises: the mean over the answers, and beside it the weighted mean over all other tokens."""

from __future__ import annotations

import math

import pytest
import torch
from together import together
from torch import Tensor, nn

from harness.train.distributed import average, idle, mean, rank, world
from harness.train.losses import answer_loss, mean_losses
from harness.train.rows import IGNORED, Batch
from harness.train.shares import share

WEIGHT = 0.3


def batch_of(*kinds: str) -> Batch:
    """A row for each of ``kinds``, a letter a label: an answer, an other token, or ignored (.). The first has none."""
    width = max(map(len, kinds))
    ids = torch.arange(len(kinds) * width).view(len(kinds), width) % 11
    kind = [list(row.ljust(width, ".")) for row in kinds]
    is_answer, ignored = (torch.tensor([[letter == sought for letter in row] for row in kind]) for sought in "a.")
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(ignored, IGNORED),
        "is_answer": is_answer,
        "attention_mask": torch.ones_like(ids),
    }


class Bigrams(nn.Module):
    """Logits of the next token by the last one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(11, 11, generator=torch.Generator().manual_seed(0)))


def read(model: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(model, Bigrams)
    return model.table[batch["input_ids"]]


def told(batch: Batch, weight: float) -> tuple[float, Tensor]:
    """The loss and its gradient."""
    model = Bigrams()
    loss = answer_loss(read, weight)(model, batch)
    loss.backward()
    assert model.table.grad is not None
    return loss.item(), model.table.grad


def by_hand(batch: Batch, kind: bool) -> float:
    """The mean of -log p over the labels that are answers, or over those that are not."""
    log_p, found = read(Bigrams(), batch).detach().double().log_softmax(-1), []
    for row, labels in enumerate(batch["labels"].tolist()):
        for at, label in enumerate(labels[1:]):
            if label != IGNORED and bool(batch["is_answer"][row, at + 1]) == kind:
                found.append(-float(log_p[row, at, label]))
    return sum(found) / len(found)


def test_answers_and_other_tokens_are_averaged_over_their_own_number() -> None:
    batch = batch_of("ooaao", "oa...", "ooooo")
    expected = by_hand(batch, True) + WEIGHT * by_hand(batch, False)
    assert told(batch, WEIGHT)[0] == pytest.approx(expected, rel=1e-6)
    assert told(batch, 0.0)[0] == pytest.approx(by_hand(batch, True), rel=1e-6)


def test_a_batch_of_nothing_but_answers_has_their_loss() -> None:
    """The mean over no other token was NaN, and ended the training at its first step."""
    batch = batch_of("oaaa", "oa..")
    with_others, without = told(batch, WEIGHT), told(batch, 0.0)
    assert with_others[0] == without[0] == pytest.approx(by_hand(batch, True), rel=1e-6)
    assert torch.equal(with_others[1], without[1]) and without[1].abs().sum() > 0


def test_what_is_broken_stays_so() -> None:
    """A loss that is NaN is no mean over nothing; and where nothing is asked for, nothing can be trained."""
    batch = batch_of("ooaa")
    assert math.isnan(mean_losses(torch.tensor([[math.nan, 1.0, 1.0]]), batch, WEIGHT).item())
    assert math.isnan(told(batch_of("oooo"), WEIGHT)[0])


def _shared(device: torch.device, *kinds: str) -> tuple[float, list[list[float]]]:
    """The loss that several processes report, and the gradient that they step with; each has a share of the rows."""
    own, counts = share(batch_of(*kinds), rank(), world())
    with idle(not counts):
        loss, gradient = told(own, WEIGHT)
    return average(torch.tensor(loss)).item(), average(gradient).tolist()


@pytest.mark.parametrize(
    ("processes", "kinds"),
    [
        (2, ("oaaa", "oooa")),  # one process has no other token,
        (2, ("ooaa", "oaa.")),  # or the other one,
        (2, ("oaaa", "oa..")),  # or neither;
        (3, ("oaaa", "ooa.")),  # and one has no row
        (3, ("oaaa", "oa..")),
    ],
)
def test_several_processes_have_the_loss_and_the_gradient_of_one(processes: int, kinds: tuple[str, ...]) -> None:
    loss, gradient = told(batch_of(*kinds), WEIGHT)
    for found in together(processes, _shared, *kinds):
        assert found[0] == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(torch.tensor(found[1]), gradient, atol=1e-6, rtol=1e-5)


def _nothing(device: torch.device, least: int) -> float:
    return mean(torch.zeros(()), 0, least=least).item()


def test_a_mean_over_nothing_is_nan_unless_something_is_said_to_divide_by() -> None:
    for found in (_nothing(torch.device("cpu"), 0), *together(2, _nothing, 0)):
        assert math.isnan(found)
    assert [_nothing(torch.device("cpu"), 1), *together(2, _nothing, 1)] == [0.0, 0.0, 0.0]
