"""How passages and a question become tokens: one policy for every system.

A prompt is [BOS] + demonstrations, if any + one block per passage + one question block. Each block is tokenised on its
own, so that what is prepared before the question is known (``System.encode``) equals what would be prepared with it.
Text that comes from data is tokenised with special tokens split: no passage can forge a tag or end a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import InputError, unknown
from harness.protocol import Demonstration, Passage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Template:
    """The markup around passages and questions, and where an answer ends.

    ``answered`` is how a demonstration gives its answer; without ``stop``, EOS follows it.
    ``passage_tag`` and ``answer_tag`` are single special tokens of the decoder's tokenizer, or empty. An answer
    ends at EOS and, where ``stop`` is not empty, at the first occurrence of ``stop``.
    """

    name: str
    passage: str
    question: str
    answered: str
    passage_tag: str = ""
    answer_tag: str = ""
    stop: str = ""

    def passage_blocks(
        self, tokenizer: PreTrainedTokenizerBase, passages: Sequence[Passage]
    ) -> list[tuple[list[int], list[int]]]:
        """One block per passage: its tag (no token or one) and its text, the part that may be compressed."""
        tag = _tag(tokenizer, self.passage_tag)
        texts = [self.passage.format(title=passage.title, text=passage.text) for passage in passages]
        return [(tag, ids) for ids in text_ids(tokenizer, texts)]

    def passage_ids(self, tokenizer: PreTrainedTokenizerBase, passages: Sequence[Passage]) -> list[list[int]]:
        """One block per passage, tag and text together."""
        return [tag + ids for tag, ids in self.passage_blocks(tokenizer, passages)]

    def question_ids(self, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]) -> list[list[int]]:
        """One block per question."""
        tag = _tag(tokenizer, self.answer_tag)
        return [ids + tag for ids in text_ids(tokenizer, [self.question_text(question) for question in questions])]

    def question_text(self, question: str) -> str:
        """A question as the template writes it. Data sets disagree on the question mark, so it is put there once."""
        return self.question.format(question=question.strip().rstrip("?").rstrip())

    def demonstration_ids(
        self, tokenizer: PreTrainedTokenizerBase, demonstrations: Sequence[Demonstration]
    ) -> list[int]:
        """Passage, question and answer of each demonstration, one after the other."""
        ids: list[int] = []
        for shown in demonstrations:
            passages = [] if shown.passage is None else self.passage_ids(tokenizer, [shown.passage])
            (question,) = self.question_ids(tokenizer, [shown.question])
            (answer,) = text_ids(tokenizer, [self.answered.format(answer=shown.answer)])
            end = [] if self.stop else self.stop_ids(tokenizer)
            ids += [*(token for block in passages for token in block), *question, *answer, *end]
        return ids

    def start_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """BOS, where the tokenizer has one."""
        return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Tokens after which a row is finished: EOS, and every token whose text contains ``stop``."""
        ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        if self.stop:
            special = set(tokenizer.all_special_ids)
            spelled = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
            ids += [token for token, text in enumerate(spelled) if self.stop in text and token not in special]
        return ids

    def answer(self, text: str) -> str:
        """The answer in generated ``text``: what stands before ``stop``, stripped."""
        return (text.split(self.stop)[0] if self.stop else text).strip()


def _tag(tokenizer: PreTrainedTokenizerBase, tag: str) -> list[int]:
    if not tag:
        return []
    token = tokenizer.convert_tokens_to_ids(tag)
    if token is None or token == tokenizer.unk_token_id:
        raise unknown(
            "tag of this decoder's tokenizer (choose another prompt template)", tag, tokenizer.all_special_tokens
        )
    return [token]


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text on its own, special tokens neither added nor recognised."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands where a row is shorter than its batch: the padding token, else EOS (LLaMA-2's has no other).

    It is masked wherever it stands, so which of them it is moves no answer and no loss; generated tokens are counted
    without it (``harness.timing``), so EOS at the end of an answer counts only where it is not this one. Raises
    ``InputError`` where there is neither.
    """
    found: int | None = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if found is None:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        raise InputError(
            f"tokenizer {name}: expected a padding token (pad_token) or one that ends a text (eos_token), got neither"
        )
    return found


# Decoders trained on natural text read plain text and stop at the end of the line.
TEXT = Template(
    name="text",
    passage="Title: {title}\nText: {text}\n\n",
    question="Question: {question}?\nAnswer:",
    answered=" {answer}\n\n",
    stop="\n",
)

# The tiny decoders of the synthetic world have tags in their vocabulary and learn to stop by EOS. The title is left
# out: every statement names its subject, and eight-token statements stay aligned with chunks.
TAGGED = Template(
    name="tagged",
    passage="{text}",
    question="{question}?",
    answered="{answer}",
    passage_tag="<passage>",
    answer_tag="<answer>",
)

# No markup at all: decoders of the text scales go on with running text, and a context is nothing but its tokens.
BARE = Template(name="bare", passage="{text}", question="{question}", answered="{answer}")

TEMPLATES: Mapping[str, Template] = {template.name: template for template in (TEXT, TAGGED, BARE)}


def template(name: str) -> Template:
    """The template of that name. Raises ``InputError`` with the valid names."""
    if name not in TEMPLATES:
        raise unknown("prompt template", name, TEMPLATES)
    return TEMPLATES[name]
