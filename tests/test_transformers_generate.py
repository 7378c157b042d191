"""transformers' own loop gives the answers of ours, column by column, and its errors reach whoever reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baselines.standard_rag import StandardRAGConfig
from baselines.transformers_generate import TransformersGenerate
from harness.model.load import Decoder, random_decoder
from suites.latency import Ids, Workload

TOKENS = 6


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    model = random_decoder("tiny", seed=1)
    tokenizer: Any = Ids(model.config.vocab_size)
    return Decoder(model=model, tokenizer=tokenizer, checkpoint="", source="")


def columns(system: Any, decoder: Decoder, batch: int) -> torch.Tensor:
    load = Workload(length=64, batch=batch, passage_tokens=32, question_tokens=8)
    tokenizer: Any = decoder.tokenizer
    request = load.request(tokenizer, 0)
    context = system.encode(request.passages)
    return torch.stack(list(system.generate(request.questions, context, max_new_tokens=TOKENS)), dim=1)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_answers_are_those_of_the_loop_that_all_share(decoder: Decoder, batch: int) -> None:
    ours = columns(StandardRAGConfig().build(decoder), decoder, batch)
    theirs = columns(TransformersGenerate("text", None, decoder), decoder, batch)
    assert ours.shape == (batch, TOKENS)
    assert torch.equal(theirs, ours)


def test_columns_come_one_at_a_time(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is there before the last is made: or its TTFT would be the whole answer's."""
    made = []
    forward = decoder.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        if len(made) == 2:
            assert arrived.wait(10), "the first column did not come out while the second was being made"
        return forward(*args, **kwargs)

    import threading

    arrived = threading.Event()
    monkeypatch.setattr(decoder.model, "forward", counted)
    system = TransformersGenerate("text", None, decoder)
    tokenizer: Any = decoder.tokenizer
    request = Workload(length=32, batch=1, passage_tokens=32, question_tokens=4).request(tokenizer, 0)
    stream = system.generate(request.questions, system.encode(request.passages), max_new_tokens=3)
    next(stream)
    arrived.set()
    assert len(list(stream)) == 2


def test_an_error_inside_reaches_the_reader(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(decoder.model, "generate", fails)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        columns(TransformersGenerate("text", None, decoder), decoder, 1)
