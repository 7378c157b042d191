"""The chunk cache gives back the bytes that were computed, and never another encoder's."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from harness.model.chunk_cache import ChunkCache
from harness.model.chunking import split

K, WIDTH = 4, 6
PASSAGES = [[1, 2, 3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13, 14, 15]]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Encoder:
    """Embeddings that depend on the tokens of a chunk alone, and a list of what was asked for."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self.seed, self.dtype = seed, dtype
        self.calls: list[list[list[int]]] = []

    def __call__(self, passages: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        self.calls.append([list(passage) for passage in passages])
        return [torch.stack([*map(self._chunk, split(p, K))]) if p else self._none() for p in passages]

    def _chunk(self, tokens: list[int]) -> torch.Tensor:
        seed = hash((self.seed, *tokens)) % 2**31
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

    def _none(self) -> torch.Tensor:
        return torch.zeros(0, WIDTH, dtype=self.dtype)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))
    )


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_comes_back_is_what_was_computed(tmp_path: Path, dtype: torch.dtype) -> None:
    encoder = Encoder(dtype=dtype)
    expected = torch.cat(encoder(PASSAGES))
    for _ in range(2):  # computed, then read by another process
        assert same_bits(ChunkCache(tmp_path, "e").embed(PASSAGES, encoder), expected)
    assert len(encoder.calls) == 2, "the reference's own call and the first one"


def test_numbers_that_compare_badly_come_back_too(tmp_path: Path) -> None:
    odd = torch.tensor([[float("nan"), -0.0, float("inf"), 1e-42, -float("inf"), 0.1]])
    ChunkCache(tmp_path, "e").embed([[1]], lambda _: [odd])
    assert same_bits(ChunkCache(tmp_path, "e").embed([[1]], Encoder()), odd)


def test_a_slice_of_a_larger_tensor_is_stored_as_itself(tmp_path: Path) -> None:
    """``Tensor.split`` and transposes give views; a view's storage is not its content."""
    whole = torch.randn(WIDTH, 9).T
    first = ChunkCache(tmp_path, "e").embed(PASSAGES, lambda _: list(whole[:6].split([2, 1, 3])))
    assert same_bits(first, whole[:6])
    assert same_bits(ChunkCache(tmp_path, "e").embed(PASSAGES, Encoder()), whole[:6])


def test_only_what_is_missing_is_encoded_and_only_once(tmp_path: Path) -> None:
    cache, encoder = ChunkCache(tmp_path, "e"), Encoder()
    a, b, c = PASSAGES
    cache.embed([b], encoder)
    mixed = [a, b, a, c, b, a]
    got = cache.embed(mixed, encoder)
    assert encoder.calls == [[b], [a, c]]
    assert same_bits(got, torch.cat(Encoder()(mixed)))
    assert (cache.hits, cache.misses) == (2, 5)


def test_passages_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    cache, encoder = ChunkCache(tmp_path, "e"), Encoder()
    alike = [[1, 23], [12, 3], [1, 2, 3], [3, 2, 1], [123]]
    cache.embed(alike, encoder)
    assert same_bits(cache.embed(alike[::-1], encoder), torch.cat(Encoder()(alike[::-1])))
    assert len(files(tmp_path)) == len(alike)


def test_another_encoder_never_meets_these_embeddings(tmp_path: Path) -> None:
    one, other = Encoder(seed=1), Encoder(seed=2)
    ChunkCache(tmp_path, "one").embed(PASSAGES, one)
    got = ChunkCache(tmp_path, "other").embed(PASSAGES, other)
    assert same_bits(got, torch.cat(Encoder(seed=2)(PASSAGES)))
    assert same_bits(ChunkCache(tmp_path, "one").embed(PASSAGES, other), torch.cat(Encoder(seed=1)(PASSAGES)))
    assert len(one.calls) == len(other.calls) == 1


def test_a_passage_without_chunks_takes_no_row(tmp_path: Path) -> None:
    cache, encoder = ChunkCache(tmp_path, "e"), Encoder()
    for _ in range(2):
        assert same_bits(cache.embed([[], [6], []], encoder), torch.cat(Encoder()([[6]])))
    assert cache.hits == 3


def test_no_passages_are_no_embeddings_of_the_right_width(tmp_path: Path) -> None:
    """Closed-book questions have none."""
    cache = ChunkCache(tmp_path, "e")
    assert cache.embed([], Encoder(dtype=torch.bfloat16)).shape == (0, WIDTH)
    assert cache.embed([], Encoder(dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert cache.hits == cache.misses == 0


def damages(content: bytes) -> list[bytes]:
    """Cut short anywhere, any one byte changed, another shape or dtype, and things that are no such file at all."""
    cuts = [content[:end] for end in range(0, len(content), 7)]
    flips = [content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in range(len(content))]
    relabelled = [content.replace(b"[2,6]", b"[6,2]"), content.replace(b'"F32"', b'"I32"')]
    assert content not in relabelled
    return [*cuts, *flips, *relabelled, b"{}", b"\0" * 8, content + b"x"]


def test_a_damaged_file_is_encoded_anew(tmp_path: Path) -> None:
    passage = [1, 2, 3, 4, 5]
    expected = torch.cat(Encoder()([passage]))
    ChunkCache(tmp_path, "e").embed([passage], Encoder())
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for content in damages(whole):
        path.write_bytes(content)
        encoder = Encoder()
        cache = ChunkCache(tmp_path, "e")
        assert same_bits(cache.embed([passage], encoder), expected)
        assert encoder.calls == [[passage]], "damage must not go unnoticed"
        assert (cache.hits, cache.misses) == (0, 1)
        assert path.read_bytes() == whole, "and it is mended"


def test_a_failed_encoding_leaves_nothing(tmp_path: Path) -> None:
    def broken(passages: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        ChunkCache(tmp_path, "e").embed(PASSAGES, broken)
    assert files(tmp_path) == []
