"""How a document becomes passages: the first of the two levels of chunking (the second cuts passages into k tokens).

A passage is at most ``tokens`` tokens long, 256 by default, and ends at a word boundary where it has one. No
character is lost or repeated: the passages of a document, joined, are the document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from harness.errors import InputError
from harness.protocol import Passage

PASSAGE_TOKENS = 256

Spans = Sequence[tuple[int, int]]
"""The (start, end) character offsets of a text's tokens, in order."""


def cut_documents(
    documents: Iterable[Passage], tokens: int = PASSAGE_TOKENS, *, tokenize: Callable[[str], Spans]
) -> Iterator[Passage]:
    """The passages of each document, titled as it is, with ids ``<document id>#0``, ``#1``, ...

    Raises ``InputError`` when ``tokens`` is not positive.
    """
    if tokens < 1:
        raise InputError(f"expected passages of at least 1 token, got {tokens}")
    for document in documents:
        for number, text in enumerate(_pieces(document.text, tokenize(document.text), tokens)):
            yield Passage(id=f"{document.id}#{number}", title=document.title, text=text)


def token_spans(tokenizer: str | Path) -> Callable[[str], Spans]:
    """The token offsets that the tokenizer of that folder or Hub id gives, without special tokens."""
    from transformers import AutoTokenizer

    try:
        # The Rust tokenizer itself: the wrapper warns about every document longer than the model's context.
        rust = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False).backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"expected a folder or Hub id with a fast tokenizer, got {str(tokenizer)!r}") from error
    rust.no_truncation()
    return lambda text: rust.encode(text, add_special_tokens=False).offsets


def _pieces(text: str, spans: Spans, tokens: int) -> Iterator[str]:
    start, first = 0, 0
    while first + tokens < len(spans):
        end = _last_word_start(text, spans, first + 1, first + tokens)
        yield text[start : spans[end][0]]
        start, first = spans[end][0], end
    yield text[start:]


def _last_word_start(text: str, spans: Spans, low: int, high: int) -> int:
    """The last token in [low, high] that opens a word; ``high`` when none does (one word fills the passage)."""
    for index in range(high, low - 1, -1):
        start = spans[index][0]
        # Byte-pair tokens often carry the space before the word, word pieces never do.
        if text[start].isspace() or text[start - 1].isspace():
            return index
    return high
