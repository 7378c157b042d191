"""Encoders: every position sees every other and no padding, and the layers are those of transformers."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.errors import InputError
from harness.model.encoders import ROBERTA_SHAPES, BidirectionalLlama, Roberta, load_roberta, random_roberta

WIDTH, VOCABULARY, LAYERS = 32, 60, 3
LENGTHS = (7, 1, 4)


def llama(**changes: object) -> LlamaForCausalLM:
    """A decoder with grouped keys and weights large enough to make positions matter."""
    settings = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # all ones otherwise, and one as good as another
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def bidirectional(n_layers: int = 2, decoder: LlamaForCausalLM | None = None) -> BidirectionalLlama:
    decoder = decoder or llama()
    encoder = BidirectionalLlama(decoder.config, n_layers)
    encoder.copy_from(decoder)
    return encoder.eval()


def roberta() -> Roberta:
    torch.manual_seed(0)
    return random_roberta("roberta-tiny", VOCABULARY).eval()


ENCODERS = pytest.mark.parametrize("build", [bidirectional, roberta])


def ragged(pad_id: int = 0, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows as long as ``LENGTHS``, padded on the right, ``extra`` columns wider than needed."""
    width = max(LENGTHS) + extra
    ids = torch.full((len(LENGTHS), width), pad_id)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(5, VOCABULARY, (length,), generator=generator)
        mask[row, :length] = True
    return ids, mask


@ENCODERS
@torch.no_grad()
def test_a_ragged_batch_equals_its_rows(build) -> None:
    encoder = build()
    ids, mask = ragged()
    together = encoder(ids, mask)
    for row, length in enumerate(LENGTHS):
        alone = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert torch.allclose(together[row, :length], alone[0], atol=1e-5)


@ENCODERS
@pytest.mark.parametrize(("pad_id", "extra"), [(3, 0), (1, 2), (0, 5), (59, 9)])
@torch.no_grad()
def test_states_do_not_depend_on_padding(build, pad_id: int, extra: int) -> None:
    encoder = build()
    ids, mask = ragged()
    expected = encoder(ids, mask)[mask]
    ids, mask = ragged(pad_id, extra)
    assert torch.allclose(encoder(ids, mask)[mask], expected, atol=1e-5)


@ENCODERS
@pytest.mark.parametrize("padding", [0, 2])
@torch.no_grad()
def test_every_position_sees_every_other(build, padding: int) -> None:
    """With and without padding: they take different kernels."""
    encoder = build()
    length = 6
    ids = torch.randint(5, VOCABULARY, (1, length + padding), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(length + padding) < length)[None]
    before = encoder(ids, mask)[0, :length]
    for changed in range(length):
        other = ids.clone()
        other[0, changed] = (ids[0, changed] - 4) % 55 + 5
        moved = (encoder(other, mask)[0, :length] - before).abs().amax(-1)
        assert moved.min() > 1e-4, f"position {changed} is not seen everywhere"


@ENCODERS
@torch.no_grad()
def test_order_matters(build) -> None:
    encoder = build()
    ids = torch.tensor([[7, 8, 9, 10]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    backwards = encoder(ids.flip(1), mask).flip(1)
    assert (encoder(ids, mask) - backwards).abs().max() > 1e-3


@pytest.mark.parametrize("n_layers", [1, 2, LAYERS])
@torch.no_grad()
def test_it_is_transformers_llama_with_an_all_visible_mask(n_layers: int) -> None:
    decoder = llama()
    encoder = bidirectional(n_layers, decoder)
    ids, mask = ragged(extra=2)
    reference = decoder.model
    reference.layers = reference.layers[:n_layers]
    visible = torch.zeros(len(LENGTHS), 1, ids.shape[1], ids.shape[1])
    visible.masked_fill_(~mask[:, None, None, :], float("-inf"))
    for implementation in ("eager", "sdpa"):
        decoder.set_attn_implementation(implementation)
        states = reference(input_ids=ids, attention_mask=visible, use_cache=False).last_hidden_state
        assert torch.allclose(encoder(ids, mask)[mask], states[mask], atol=1e-5), implementation
    unmasked = ids[:1, : LENGTHS[0]]
    everything = torch.zeros(1, 1, LENGTHS[0], LENGTHS[0])
    states = reference(input_ids=unmasked, attention_mask=everything, use_cache=False).last_hidden_state
    assert torch.allclose(encoder(unmasked, torch.ones_like(unmasked, dtype=torch.bool)), states, atol=1e-5)


@torch.no_grad()
def test_the_decoders_attention_setting_is_not_the_encoders() -> None:
    """``eager`` adds the mask to the scores: a boolean one would hide nothing."""
    ids, mask = ragged()
    expected = bidirectional()(ids, mask)[mask]
    eager = llama(attn_implementation="eager")
    assert torch.allclose(bidirectional(decoder=eager)(ids, mask)[mask], expected, atol=1e-5)
    later = llama()
    encoder = bidirectional(decoder=later)
    later.set_attn_implementation("eager")
    assert torch.allclose(encoder(ids, mask)[mask], expected, atol=1e-5)
    assert eager.config._attn_implementation == later.config._attn_implementation == "eager", "nor the other way"


@torch.no_grad()
def test_copies_share_nothing_with_the_decoder() -> None:
    decoder = llama()
    encoder = bidirectional(decoder=decoder)
    own = {tensor.data_ptr() for tensor in encoder.parameters()}
    assert own.isdisjoint({tensor.data_ptr() for tensor in decoder.parameters()})
    for parameter in encoder.parameters():
        parameter.zero_()
    assert decoder.model.embed_tokens.weight.abs().sum() > 0


@pytest.mark.parametrize("n_layers", [0, LAYERS + 1])
def test_there_are_only_so_many_layers(n_layers: int) -> None:
    with pytest.raises(InputError, match=f"expected 1 to {LAYERS} encoder layers, got {n_layers}"):
        BidirectionalLlama(llama().config, n_layers)


def test_all_of_an_encoder_learns() -> None:
    encoder = bidirectional()
    ids, mask = ragged()
    encoder(ids, mask)[mask].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize(("shape", "parameters"), [("roberta-base", 124_055_040), ("roberta-large", 354_310_144)])
def test_random_roberta_has_the_published_size(shape: str, parameters: int) -> None:
    """Without pooler and language-model head."""
    with torch.device("meta"):
        encoder = random_roberta(shape)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert encoder.width == ROBERTA_SHAPES[shape]["hidden_size"]


@torch.no_grad()
def test_roberta_takes_windows_up_to_its_positions() -> None:
    encoder = roberta()
    assert encoder.longest == 512
    ids = torch.full((1, 513), 7)
    assert encoder(ids[:, :512], torch.ones(1, 512, dtype=torch.bool)).shape == (1, 512, 64)
    with pytest.raises(InputError, match=r"513 positions; this RoBERTa has 512"):
        encoder(ids, torch.ones(1, 513, dtype=torch.bool))


def test_unknown_shapes_and_folders_are_input_errors(tmp_path) -> None:
    with pytest.raises(InputError, match="roberta-tiny"):
        random_roberta("roberta-huge")
    with pytest.raises(InputError, match="no RoBERTa encoder"):
        load_roberta(str(tmp_path / "nowhere"))


@torch.no_grad()
def test_a_saved_roberta_comes_back(tmp_path) -> None:
    encoder = roberta()
    encoder.model.save_pretrained(tmp_path)
    ids, mask = ragged()
    assert torch.equal(load_roberta(str(tmp_path)).eval()(ids, mask)[mask], encoder(ids, mask)[mask])
