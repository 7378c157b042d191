"""Splicing: nothing but the named chunk changes, and gradients go where they should."""

import torch

from harness.model.splice import chunk_code, splice

WIDTH = 6
table = torch.nn.Embedding(30, WIDTH)


def chunks(n: int) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(n))


def test_tokens_alone_are_their_embeddings() -> None:
    inputs, mask = splice([[1, 2, 3], [4]], chunks(0), table, pad_id=0)
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    assert torch.equal(inputs[0], table(torch.tensor([1, 2, 3])))
    assert torch.equal(inputs[1, -1], table(torch.tensor(4)))


def test_a_chunk_stands_where_its_code_is() -> None:
    embeddings = chunks(3)
    inputs, mask = splice([[chunk_code(2), 5, chunk_code(0)], [7, chunk_code(1)]], embeddings, table, pad_id=0)
    assert torch.equal(inputs[0, 0], embeddings[2])
    assert torch.equal(inputs[0, 1], table(torch.tensor(5)))
    assert torch.equal(inputs[0, 2], embeddings[0])
    assert torch.equal(inputs[1, 2], embeddings[1])
    assert mask.sum(-1).tolist() == [3, 2]


def test_a_ragged_batch_equals_its_rows() -> None:
    embeddings = chunks(4)
    rows = [[1, chunk_code(0), chunk_code(1), 2, 3], [chunk_code(3)], [4, chunk_code(2)]]
    inputs, mask = splice(rows, embeddings, table, pad_id=0)
    for row, got, real in zip(rows, inputs, mask, strict=True):
        alone, _ = splice([row], embeddings, table, pad_id=0)
        assert torch.equal(got[real], alone[0])


def test_gradients_reach_used_chunks_and_tokens_only() -> None:
    embeddings = chunks(3).requires_grad_()
    embedding = torch.nn.Embedding(30, WIDTH)
    inputs, mask = splice([[1, chunk_code(1)], [2]], embeddings, embedding, pad_id=0)
    inputs[mask].sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum(-1).gt(0).tolist() == [False, True, False]
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.abs().sum(-1).nonzero().flatten().tolist() == [1, 2]
