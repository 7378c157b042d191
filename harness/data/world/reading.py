"""Reading practice: the training batches of the world, every fact drawn afresh.

A sequence is a prompt as the evaluation renders it, passages and then questions, only with many questions about the
same passages, so that one forward pass gives many supervised answers:

    <s> <passage>.. <passage>.. question? <answer> value </s> question? <answer> value </s> ...

In ``same_relations`` of the sequences every passage states the same four relations, so that only the entity tells
the answer; ``namesakes`` of the people share a first or last name with another.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from harness import prompts
from harness.data.world.facts import Biography, ask, draw_biography, draw_namesake, draw_person, draw_relations, state
from harness.data.world.mirror import OPENINGS
from harness.protocol import Passage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """What a batch holds: ``rows[n]`` sequences of n passages; n is drawn per batch."""

    rows: tuple[tuple[int, int], ...] = ((1, 24), (2, 20), (4, 14), (8, 8))
    questions: int = 8
    same_relations: float = 0.75
    namesakes: float = 0.5
    seed: int = 0

    def build(self, tokenizer: PreTrainedTokenizerFast) -> ReadingBatches:
        return ReadingBatches(self, tokenizer)


class ReadingBatches:
    """Endless batches ``input_ids``, ``attention_mask``, ``labels``, ``is_answer`` (B, T), padded on the right.

    Batch i depends on (seed, i) alone, so the state is one number.
    """

    def __init__(self, config: ReadingConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]

    def __next__(self) -> dict[str, torch.Tensor]:
        rng = random.Random(f"reading-{self.config.seed}-{self.position}")
        self.position += 1
        n_passages, n_rows = rng.choice(self.config.rows)
        return self._collate([self._sequence(rng, n_passages) for _ in range(n_rows)])

    def _biographies(self, rng: random.Random, n: int) -> list[Biography]:
        shared = draw_relations(rng) if rng.random() < self.config.same_relations else None
        people = [draw_person(rng, "train")]
        while len(people) < n:
            like = rng.choice(people)
            near = rng.random() < self.config.namesakes
            person = draw_namesake(rng, like, "train") if near else draw_person(rng, "train")
            if person not in people:
                people.append(person)
        return [draw_biography(rng, person, shared or draw_relations(rng)) for person in people]

    def _sequence(self, rng: random.Random, n: int) -> list[tuple[int, bool]]:
        """Token ids, each with whether it is part of an answer."""
        biographies = self._biographies(rng, n)
        passages = [Passage(id="", title=b.name, text=state(rng, b)) for b in biographies]
        template, tokenizer = prompts.TAGGED, self.tokenizer
        tokens = [(token, False) for token in template.start_ids(tokenizer)]
        for block in template.passage_ids(tokenizer, passages):
            tokens += [(token, False) for token in block]
        asked = [(b, rng.choice(b.facts)[0]) for b in rng.choices(biographies, k=self.config.questions)]
        questions = [ask(rng, biography, relation, rng.choice(OPENINGS)) for biography, relation in asked]
        answers = [biography.value(relation) for biography, relation in asked]
        for question, answer in zip(
            template.question_ids(tokenizer, questions), prompts.text_ids(tokenizer, answers), strict=True
        ):
            tokens += [(token, False) for token in question]
            tokens += [(token, True) for token in [*answer, tokenizer.eos_token_id]]
        return tokens

    def _collate(self, rows: list[list[tuple[int, bool]]]) -> dict[str, torch.Tensor]:
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        input_ids = torch.full((len(rows), width), pad)
        is_answer = torch.zeros((len(rows), width), dtype=torch.bool)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, tokens in enumerate(rows):
            input_ids[row, : len(tokens)] = torch.tensor([token for token, _ in tokens])
            is_answer[row, : len(tokens)] = torch.tensor([answer for _, answer in tokens])
            mask[row, : len(tokens)] = 1
        labels = input_ids.masked_fill(mask == 0, IGNORED)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "is_answer": is_answer}
