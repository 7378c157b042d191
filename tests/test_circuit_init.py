"""The hand-built start does what its docstring says, in transformers' own forward."""

import random

import pytest
import torch

from harness import prompts
from harness.data.world import facts
from harness.data.world.tokenizer import ANSWER, build_tokenizer
from harness.model import circuit_init as circuit
from harness.model.load import random_decoder
from harness.protocol import Passage


@pytest.fixture(scope="module")
def attentions() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Attention of layers 0 and 1 (heads, T, T) on one prompt, and where the answer stands in it."""
    tokenizer = build_tokenizer()
    model = random_decoder("tiny", seed=0)
    circuit.circuit_init(model, tokenizer.convert_tokens_to_ids(ANSWER), seed=0)
    model.set_attn_implementation("eager")
    rng = random.Random(4)
    people = [facts.draw_biography(rng, facts.draw_person(rng, "train"), facts.draw_relations(rng)) for _ in range(3)]
    relation, value = people[1].facts[2]
    nouns = facts.lexicon().relations[relation].nouns
    texts = [facts.state(rng, person) for person in people]
    noun = next(
        noun for noun in nouns if f" {noun} of " in texts[1]
    )  # the statement's own noun: no synonym learned yet
    template = prompts.TAGGED
    blocks = template.passage_ids(tokenizer, [Passage(id="", title="", text=text) for text in texts])
    question = template.question_ids(tokenizer, [f"what is the {noun} of {people[1].name}"])[0]
    ids = [*template.start_ids(tokenizer), *(token for block in blocks for token in block), *question]
    before = 1 + len(blocks[0])
    answer_id = tokenizer.convert_tokens_to_ids("▁" + facts.lexicon().relations[relation].values[value])
    place = before + blocks[1].index(answer_id)
    with torch.no_grad():
        first, second, *_ = model(torch.tensor([ids]), output_attentions=True).attentions
    return first[0], second[0], place


def test_layer_0_looks_exactly_its_offsets_back(attentions: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    first, _, _ = attentions
    for head, offset in enumerate(circuit.OFFSETS):
        looked_at = first[head].diagonal(-offset)[10:]
        assert looked_at.min() > 0.98


def test_layer_1_looks_from_the_question_at_the_answer(attentions: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    _, second, place = attentions
    assert second[:, -1].mean(0).argmax() == place
    assert second[:, -1, -1].max() < 0.01, "<answer> must not match itself"


def test_all_other_layers_start_as_the_identity() -> None:
    model = random_decoder("tiny", seed=0)
    circuit.circuit_init(model, 5, seed=0)
    layers = model.model.layers
    assert all(not layer.mlp.down_proj.weight.any() for layer in layers)
    assert all(not layer.self_attn.o_proj.weight.any() for layer in layers[2:])
