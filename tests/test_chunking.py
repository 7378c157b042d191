"""Chunks: k decoder tokens each, every position in one of them, and no text lost on the way to another tokenizer."""

import itertools
from fractions import Fraction

import pytest
import torch
from byte_level import byte_level_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from harness.data.world.lexicon import lexicon
from harness.data.world.tokenizer import build_tokenizer
from harness.model.chunking import (
    WINDOWS,
    EncoderInputs,
    Window,
    chunk_texts,
    effective_rate,
    encoder_inputs,
    expanded_count,
    retokenised_inputs,
    split,
)
from harness.prompts import text_ids

PAD = 999
PATIENT = settings(deadline=None)  # a busy machine is no failure
DECODER, ENCODER = build_tokenizer(), byte_level_tokenizer()

# World words and arbitrary characters side by side. U+FFFD is what an unfinished character decodes to.
TEXT = st.lists(
    st.one_of(st.text(max_size=6), st.sampled_from(lexicon().words()), st.sampled_from([" ", "�"])), max_size=8
).map("".join)
PASSAGES = st.lists(st.lists(st.integers(0, 900), max_size=20), max_size=5)
K = st.integers(1, 9)


def decoder_ids(text: str) -> list[int]:
    return text_ids(DECODER, [text])[0]


def by_chunk(inputs: EncoderInputs) -> dict[int, list[int]]:
    """The encoder tokens of each chunk, in reading order."""
    found: dict[int, list[int]] = {}
    for token, chunk in zip(
        inputs.ids_NS[inputs.mask_NS].tolist(), inputs.chunk_NS[inputs.mask_NS].tolist(), strict=True
    ):
        found.setdefault(chunk, []).append(token)
    return found


def all_chunks(passages: list[list[int]], k: int) -> list[list[int]]:
    return [passage[start : start + k] for passage in passages for start in range(0, len(passage), k)]


@PATIENT
@given(ids=st.lists(st.integers(0, 9), max_size=40), k=K)
def test_chunks_are_the_tokens_in_pieces_of_k(ids: list[int], k: int) -> None:
    pieces = split(ids, k)
    assert list(itertools.chain(*pieces)) == ids
    assert all(len(piece) == k for piece in pieces[:-1])
    assert all(1 <= len(piece) <= k for piece in pieces)


@pytest.mark.parametrize("p", ["0", "0.05", "0.1", "0.25", "0.29", "0.3", "0.5", "0.7", "0.9", "1"])
def test_the_number_of_expanded_chunks_is_rounded_half_up(p: str) -> None:
    for n in range(2000):
        exact = Fraction(p) * n
        assert expanded_count(float(p), n) == int(exact + Fraction(1, 2))


@pytest.mark.parametrize("k", [1, 4, 16, 32])
def test_the_effective_rate_is_tokens_over_positions(k: int) -> None:
    """k L tokens take (L - e) + k e positions."""
    for n, expanded in [(1, 0), (1, 1), (10, 0), (10, 1), (10, 3), (10, 10), (7, 2)]:
        assert effective_rate(k, expanded, n) == pytest.approx(k * n / ((n - expanded) + k * expanded))
    assert effective_rate(k, 0, 0) == 1


@PATIENT
@given(passages=PASSAGES, k=K)
def test_every_position_belongs_to_its_chunk(passages: list[list[int]], k: int) -> None:
    expected = dict(enumerate(all_chunks(passages, k)))
    for window in WINDOWS:
        inputs = encoder_inputs(passages, k, window, PAD)
        assert by_chunk(inputs) == expected, window
        assert (inputs.ids_NS[~inputs.mask_NS] == PAD).all()
        assert (inputs.chunk_NS[~inputs.mask_NS] == -1).all()
        assert (inputs.mask_NS.long().diff(dim=1) <= 0).all(), "padding stands on the right"


@PATIENT
@given(passages=PASSAGES, k=K)
def test_a_row_is_a_chunk_or_a_passage(passages: list[list[int]], k: int) -> None:
    def rows(window: Window) -> list[list[int]]:
        inputs = encoder_inputs(passages, k, window, PAD)
        return [ids[mask].tolist() for ids, mask in zip(inputs.ids_NS, inputs.mask_NS, strict=True)]

    assert rows("chunk") == all_chunks(passages, k)
    assert rows("passage") == [passage for passage in passages if passage]


def test_chunks_never_cross_a_passage() -> None:
    inputs = encoder_inputs([[1, 2, 3], [4, 5, 6, 7]], 2, "passage", PAD)
    assert inputs.chunk_NS.tolist() == [[0, 0, 1, -1], [2, 2, 3, 3]]


def test_nothing_to_encode_is_an_empty_tensor() -> None:
    for inputs in (encoder_inputs([], 4, "chunk", PAD), retokenised_inputs([[]], 4, "passage", DECODER, ENCODER)):
        assert inputs.ids_NS.numel() == inputs.mask_NS.numel() == inputs.chunk_NS.numel() == 0
        assert inputs.ids_NS.dtype == inputs.chunk_NS.dtype == torch.long
        assert inputs.mask_NS.dtype == torch.bool


@settings(PATIENT, max_examples=200)
@given(text=TEXT, k=K)
def test_chunk_texts_joined_are_the_text(text: str, k: int) -> None:
    ids = decoder_ids(text)
    texts = chunk_texts(DECODER, ids, k)
    assert len(texts) == len(split(ids, k))
    assert "".join(texts) == DECODER.decode(ids)
    if not text.startswith(" ") and "▁" not in text:  # what the decoder's tokenizer itself folds
        assert "".join(texts) == text


@settings(PATIENT, max_examples=200)
@given(text=TEXT.filter(lambda text: "�" not in text and "▁" not in text), k=K)
def test_a_character_goes_to_the_chunk_that_completes_it(text: str, k: int) -> None:
    """Byte by byte: a chunk's text ends with the last character whose bytes are all there."""
    ids = decoder_ids("The " + text)
    spoken = b"".join(spelled(token) for token in ids)[1:]  # the word mark before the first word is no text
    assert spoken.decode() == "The " + text
    ends = [max(0, sum(len(spelled(token)) for token in ids[:end]) - 1) for end in [*range(k, len(ids), k), len(ids)]]
    complete = [len(spoken[:end].decode(errors="ignore")) for end in ends]
    whole = spoken.decode()
    expected = [whole[start:end] for start, end in itertools.pairwise([0, *complete])]
    assert chunk_texts(DECODER, ids, k) == expected


def spelled(token: int) -> bytes:
    piece: str = DECODER.convert_ids_to_tokens(token)
    return bytes([int(piece[3:-1], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()


def test_byte_tokens_do_not_pile_up_in_one_chunk() -> None:
    """A cut character makes the byte-fallback decoder give up the whole run of bytes before it."""
    ids = decoder_ids("é" * 30)  # the word mark, then two bytes each
    assert list(map(len, chunk_texts(DECODER, ids, 8))) == [3, 4, 4, 4, 4, 4, 4, 3]


def test_spaces_before_punctuation_are_text_too() -> None:
    """A tokenizer may be set to tidy up what it decodes, which would lose them."""
    tidy = PreTrainedTokenizerFast(tokenizer_object=DECODER.backend_tokenizer, clean_up_tokenization_spaces=True)
    text = "is it ? no , it does n't ."
    ids = text_ids(tidy, [text])[0]
    assert tidy.decode(ids) != text, "or this test shows nothing"
    assert "".join(chunk_texts(tidy, ids, 3)) == text


@settings(PATIENT, max_examples=100)
@given(texts=st.lists(TEXT, max_size=3), k=K, window=st.sampled_from(WINDOWS))
def test_retokenised_chunks_say_what_the_decoder_says(texts: list[str], k: int, window: Window) -> None:
    passages = [decoder_ids(text) for text in texts]
    inputs = retokenised_inputs(passages, k, window, DECODER, ENCODER)
    chunks = by_chunk(inputs)
    outside = chunks.pop(-1, [])
    assert sorted(chunks) == list(range(len(all_chunks(passages, k)))), "every chunk has a position to be read at"
    said = [ENCODER.decode(chunks[i], skip_special_tokens=True) for i in range(len(chunks))]
    assert said == [text for passage in passages for text in chunk_texts(DECODER, passage, k)]
    if window == "chunk":
        assert not outside
        for number, (row, mask) in enumerate(zip(inputs.chunk_NS, inputs.mask_NS, strict=True)):
            assert set(row[mask].tolist()) == {number}, "its special tokens too"
    else:
        assert outside == [0, 2] * sum(map(bool, passages)), "<s> and </s> of each row, and nothing else"
    for ids, mask in zip(inputs.ids_NS, inputs.mask_NS, strict=True):
        row = ids[mask].tolist()
        assert (row[0], row[-1]) == (0, 2)
        assert not {0, 1, 2} & set(row[1:-1])
    assert (inputs.ids_NS[~inputs.mask_NS] == ENCODER.pad_token_id).all()
    assert (inputs.chunk_NS[~inputs.mask_NS] == -1).all()


@settings(PATIENT, max_examples=50)
@given(texts=st.lists(TEXT, max_size=3), k=K)
def test_both_windows_number_chunks_alike(texts: list[str], k: int) -> None:
    passages = [decoder_ids(text) for text in texts]
    inner = [
        {
            number: [token for token in tokens if token not in (0, 2)]
            for number, tokens in by_chunk(retokenised_inputs(passages, k, window, DECODER, ENCODER)).items()
            if number >= 0
        }
        for window in WINDOWS
    ]
    assert inner[0] == inner[1]


def test_a_chunk_without_text_of_its_own_is_still_read() -> None:
    """The first three bytes of an emoji are no text yet, but they are a chunk."""
    ids = decoder_ids("😀")[1:]  # without the word mark: four bytes
    assert chunk_texts(DECODER, ids, 3) == ["", "😀"]
    inputs = retokenised_inputs([ids], 3, "passage", DECODER, ENCODER)
    assert by_chunk(inputs)[0] == [ENCODER.unk_token_id]


def test_text_cannot_forge_the_encoders_special_tokens() -> None:
    ids = decoder_ids("a</s><s><pad> b")
    inputs = retokenised_inputs([ids], 64, "chunk", DECODER, ENCODER)
    (row,) = inputs.ids_NS.tolist()
    assert not {0, 1, 2} & set(row[1:-1])
    assert ENCODER.decode(row[1:-1]) == "a</s><s><pad> b"
