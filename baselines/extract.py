"""Extraction: the decoder reads, as tokens, only the chunks that a cheap scorer ranks first, in REFRAG's positions.

What a user would do in place of compressing. Chunks are REFRAG's (``harness.model.chunking.split``) and so is the
number of positions: what REFRAG's context occupies at the same ``k`` and share ``expand`` = p,

    budget = tags + L + sum over round(p L) expanded chunks of (tokens - 1),    L chunks,

counted with the longest chunks expanded, as REFRAG counts before it chooses; passages whose budget does not fit the
context are left out whole, from the end of the ranking. At p = 1 the prompt is standard RAG's.

Chunks are taken best first while they fit: one that does not is passed over, and a smaller one after it may still be
taken. A passage's tag is paid for with its first chunk, so one without any text is never read. The chunks that were
taken stand in their original order. **The best chunk is taken even where it alone exceeds the budget** (few chunks,
large k; only the decoder's context may still forbid it): the excess shows in ``decoder_positions``.

The scorer is BM25 (Robertson and Zaragoza 2009) with k1 = 1.2, b = 0.75 and Lucene's idf, over the question's own
chunks, and the question's words are the query. Words that most questions have ("the", "of", "is") are frequent in its
chunks too, and idf makes little of them; where no word matches, chunks keep their order. Two decisions:

1. Terms are words, not token ids: a BPE gives " Paris", "Paris" and "paris" ids of their own and spells rare names in
   pieces, which then match pieces of other names. A word that a chunk's border cuts is two words.
2. The formula stands here, for it is inside the clock of TTFT: 0.04 ms for 32 chunks, where indexing them with bm25s
   (the test's reference) takes 0.5 ms; and the latency path imports nothing but torch and transformers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.model.chunking import context_positions, split
from harness.model.load import Decoder
from harness.model.prompted import Prompted
from harness.model.prompting import Prompting
from harness.protocol import Passage, TokenBlock
from harness.train.export import own_template, read_training

K1, B = 1.2, 0.75
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """``k`` is the chunk length and ``expand`` the share p of the REFRAG setting whose positions are the budget.

    ``template`` is the prompt template that the decoder knows. ``max_positions`` bounds prompt and answer together;
    None means the decoder's own window.
    """

    k: int = 8
    expand: float = 0.0
    template: str = "text"
    max_positions: int | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"expected chunks of k tokens, 1 or more, got {self.k}")
        if not 0 <= self.expand <= 1:
            raise InputError(f"expected a share of expanded chunks from 0 to 1, got {self.expand}")

    @classmethod
    def defaults(cls, checkpoint: str) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {"template": own_template(read_training(Path(checkpoint)))}

    def build(self, decoder: Decoder, cache: Path | None = None) -> Prompted[list[list[CutPassage]]]:  # noqa: ARG002
        """The system. Tokens are not worth keeping: ``cache`` is left alone."""
        prompting = Prompting(self.template, self.max_positions, decoder)
        return Prompted(Extract(self, prompting), prompting, decoder)


@dataclass(frozen=True)
class CutPassage:
    """A passage as its tag, its chunks as decoder tokens, and the words of each chunk with their counts."""

    tag: list[int]
    chunks: list[list[int]]
    words: list[Counter[str]]


class Extract:
    """``encode`` tokenises, cuts and counts words; ``generate`` scores, because that needs the question."""

    def __init__(self, config: ExtractConfig, prompting: Prompting) -> None:
        self.config, self.prompting = config, prompting

    def encode(self, passages: Sequence[Sequence[Passage]]) -> list[list[CutPassage]]:
        return self.encode_tokens(self.prompting.passages(passages))

    def encode_tokens(self, blocks: Sequence[Sequence[TokenBlock]]) -> list[list[CutPassage]]:
        cut = [[(tag, split(text, self.config.k)) for tag, text in row] for row in blocks]
        chunks = [chunk for row in cut for _, of_one in row for chunk in of_one]
        texts = iter(self.prompting.tokenizer.batch_decode(chunks, clean_up_tokenization_spaces=False))
        return [[CutPassage(tag, cs, [Counter(words(next(texts))) for _ in cs]) for tag, cs in row] for row in cut]

    def prompts(
        self, questions: Sequence[str], context: list[list[CutPassage]], max_new_tokens: int
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids of each prompt, and of how many passages there are chunks in it."""
        rows, read = [], []
        for said, question, given in zip(questions, self.prompting.questions(questions), context, strict=True):
            room = self.prompting.window - max_new_tokens - len(self.prompting.start) - len(question)
            passages = fitting(given, self.config.expand, room)
            scores = bm25(words(said), [counts for passage in passages for counts in passage.words])
            taken = take(passages, scores, refrag_positions(passages, self.config.expand), room)
            blocks = [ids(passage, numbers) for passage, numbers in zip(passages, taken, strict=True)]
            rows.append([*self.prompting.start, *(token for block in blocks for token in block), *question])
            read.append(sum(map(bool, taken)))
        return rows, read


def refrag_positions(passages: Sequence[CutPassage], expand: float) -> int:
    """The positions that REFRAG's context of these passages occupies if it expands the longest of their chunks."""
    tags = sum(len(passage.tag) for passage in passages)
    return context_positions(tags, [len(chunk) for passage in passages for chunk in passage.chunks], expand)


def fitting(passages: Sequence[CutPassage], expand: float, room: int) -> Sequence[CutPassage]:
    """As many passages, from the front, as have a budget of at most ``room``."""
    n = len(passages)
    while n and refrag_positions(passages[:n], expand) > room:
        n -= 1
    return passages[:n]


def take(passages: Sequence[CutPassage], scores: Sequence[float], budget: int, room: int) -> list[set[int]]:
    """The numbers of the chunks that are read, passage by passage.

    ``scores`` has one score per chunk, in order. Best first, among equals the earlier one, while they fit ``budget``;
    the first to be taken need only fit ``room``.
    """
    places = [(passage, number) for passage, cut in enumerate(passages) for number in range(len(cut.chunks))]
    taken: list[set[int]] = [set() for _ in passages]
    spent = 0
    for place in sorted(range(len(places)), key=lambda place: (-scores[place], place)):
        passage, number = places[place]
        tag = 0 if taken[passage] else len(passages[passage].tag)
        cost = tag + len(passages[passage].chunks[number])
        if spent + cost <= (budget if spent else room):
            taken[passage].add(number)
            spent += cost
    return taken


def ids(passage: CutPassage, numbers: set[int]) -> list[int]:
    """The tokens of the chunks ``numbers`` of a passage under its tag; nothing where there are none."""
    return [*passage.tag, *(token for n in sorted(numbers) for token in passage.chunks[n])] if numbers else []


def words(text: str) -> list[str]:
    """The runs of letters and digits in ``text``, in lower case."""
    return _WORD.findall(text.lower())


def bm25(query: Sequence[str], chunks: Sequence[Counter[str]]) -> list[float]:
    """The score of each of the N chunks, given as counts of its words, for the words of ``query``:

    score(c) = sum over words w of the query of idf(w) f / (f + k1 (1 - b + b |c| / mean |c|)),
    idf(w) = ln(1 + (N - n + 0.5) / (n + 0.5)),

    where w stands f times in c and at all in n chunks. A word that the query repeats counts as often.
    """
    lengths = [counts.total() for counts in chunks]
    mean = sum(lengths) / len(lengths) if any(lengths) else 1.0
    containing = {word: sum(word in counts for counts in chunks) for word in query}
    idf = {word: math.log(1 + (len(chunks) - n + 0.5) / (n + 0.5)) for word, n in containing.items()}
    scores = []
    for counts, length in zip(chunks, lengths, strict=True):
        saturation = K1 * (1 - B + B * length / mean)
        scores.append(sum(idf[word] * counts[word] / (counts[word] + saturation) for word in query if word in counts))
    return scores
