"""What retrieval adds to the time to the first token: the question's vector, then an exact search.

Shapes of all-MiniLM-L6-v2 with random weights, and random vectors: like the rest of the lab it needs no download. The
search is what a flat inner-product index does, one matrix product and the best K of it, so that a machine without FAISS
can run it too. The best K reach the host; passages are not fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness import roofline
from harness.model.encoders import random_roberta
from harness.roofline import EncoderShape
from harness.roofline_limits import Work

if TYPE_CHECKING:
    from torch import Tensor

    from harness.model.encoders import Roberta

ENCODER = "minilm"
VECTOR_ITEMSIZE = 4  # float32, as a flat index holds them


@dataclass(frozen=True)
class Search:
    """An index of N vectors (N, D), and the encoder that makes a question's."""

    encoder: Roberta
    vectors_ND: Tensor

    @torch.inference_mode()
    def __call__(self, ids_BT: Tensor, k: int) -> Tensor:
        """The rows (B, k) of the best vectors for each question, best first, on the host."""
        states_BTD = self.encoder(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool))
        query_BD = torch.nn.functional.normalize(states_BTD.mean(1).float(), dim=-1)
        return (query_BD @ self.vectors_ND.T).topk(k, dim=-1).indices.cpu()


def build_search(passages: int, vocabulary: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Search:
    """An index of ``passages`` random unit vectors on ``device``, its encoder in ``dtype``."""
    with device, torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = random_roberta(ENCODER, vocabulary).to(dtype).eval()
        vectors = torch.nn.functional.normalize(torch.randn(passages, encoder.width), dim=-1)
    return Search(encoder, vectors)


def search_work(search: Search, *, batch: int, question_tokens: int) -> Work:
    """The least work of one search: the encoder, and every vector read once against every question."""
    passages, width = search.vectors_ND.shape
    shape = EncoderShape.of_roberta(search.encoder.model.config)
    itemsize = next(search.encoder.parameters()).element_size()
    product = Work(flops=2 * batch * passages * width, bytes=VECTOR_ITEMSIZE * passages * width)
    return roofline.encode(shape, rows=batch, positions=question_tokens, itemsize=itemsize) + product
