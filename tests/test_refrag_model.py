"""REFRAG's model: with every chunk expanded it is the plain decoder, and one embedding must tell a whole chunk."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from byte_level import byte_level_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.data.world.practice import Copying, Growing, Reading
from harness.data.world.tokenizer import TAGS, build_tokenizer
from harness.errors import InputError
from harness.model.chunking import EncoderInputs, split
from harness.model.encoders import encoder_tokenizer, random_roberta
from harness.model.load import load_decoder, random_decoder
from harness.model.splice import splice
from harness.protocol import Passage
from harness.train.chunk_model import lay_out_for, read_chunks
from harness.train.chunk_rows import condense
from harness.train.losses import answer_loss
from harness.train.rows import Batch, Row
from refrag_v2.checkpoint import FILES, load_refrag, save_refrag
from refrag_v2.model import POSITION_SCALE, Projector, Refrag, RefragConfig
from refrag_v2.policy import Policy, PolicyConfig
from refrag_v2.system import RefragV2, RefragV2Config

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = build_tokenizer()
K, WIDTH = 8, 128
TRAINING = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}


def refrag(seed: int = 0, **config: Any) -> Refrag:
    """A tiny random model; the same for the same seed."""
    decoder = random_decoder("tiny", seed=seed)
    settings = RefragConfig(**{"k": K} | config)
    return Refrag(settings, decoder, encoder_tokenizer(settings.encoder)).eval()


def encoded(model: Refrag, passages: Sequence[Sequence[int]]) -> Tensor:
    return model.encode(model.inputs(passages, TOKENIZER))


def chunks_of(model: Refrag, batch: Batch) -> Tensor:
    return model.encode(EncoderInputs(batch["encoder_ids"], batch["encoder_mask"], batch["encoder_chunk"]))


def all_or_none(batch: Batch, expanded: bool) -> Tensor:
    return torch.full((len(batch["n_chunks"]), int(batch["n_chunks"].max())), expanded)


def copying(chunks: int, rows: int = 1, seed: int = 0) -> list[Row]:
    growing = Growing(k=K, steps=1, max_chunks=chunks, tokens=rows * chunks * K, curriculum="none")
    return Copying(growing=growing).draw(random.Random(seed), 0, TOKENIZER)


# Everything expanded


def ragged_rows() -> list[Row]:
    rng = random.Random(0)
    return [row for n in (1, 3, 2) for row in Reading(sizes=((n, 1),), questions=2).draw(rng, 0, TOKENIZER)]


@torch.no_grad()
def test_every_chunk_expanded_is_the_plain_decoder() -> None:
    model, rows = refrag(), ragged_rows()
    batch = lay_out_for(model, rows, TOKENIZER)
    chunks = chunks_of(model, batch)
    logits = model(condense(batch, all_or_none(batch, True))["input_ids"], chunks)
    for row, ours in zip(rows, logits, strict=True):
        ids = [*row.start, *(token for block in row.context for token in [*block.tag, *block.text]), *row.tail]
        plain = model.decoder(input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(ours[: len(ids)], plain, atol=1e-5, rtol=0)
    one_less = all_or_none(batch, True)
    one_less[:, 0] = False
    other = model(condense(batch, one_less)["input_ids"], chunks)
    for row, (ours, compressed) in enumerate(zip(logits, other, strict=True)):
        end = int(batch["attention_mask"][row].sum()) - 1
        assert (ours[end] - compressed[end - K + 1]).abs().max() > 1e-3, "a chunk as one embedding is something else"


QUESTIONS = ["what is the birthplace of Mirel Tovan", "Name the rival", "what"]
TEXTS = (["The rival of is was", "Known"], [], ["was was was was was was was was was was", "The faith", "of"])


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> RefragV2:
    folder = save_refrag(refrag(seed=3), TOKENIZER, TRAINING, tmp_path_factory.mktemp("refrag") / "final")
    return RefragV2Config(k=K, template="tagged", expand=1.0, select="all").build(load_decoder(str(folder)))


def given(system: RefragV2) -> tuple[Any, list[list[int]]]:
    """What ``encode`` prepares for the questions above, and the prompts as plain tokens."""
    rows = [[Passage(id=str(i), title="", text=text) for i, text in enumerate(texts)] for texts in TEXTS]
    template, tokenizer = system.prompting.template, system.prompting.tokenizer
    blocks = [[token for ids in template.passage_ids(tokenizer, row) for token in ids] for row in rows]
    asked = template.question_ids(tokenizer, QUESTIONS)
    return system.encode(rows), [[tokenizer.bos_token_id, *b, *q] for b, q in zip(blocks, asked, strict=True)]


@torch.inference_mode()
def test_the_system_with_everything_expanded_prefills_the_plain_decoders_logits(system: RefragV2) -> None:
    context, prompts = given(system)
    codes = [choice.codes for choice in system.choose(QUESTIONS, context, 4)]
    inputs, mask = splice(codes, context.embeddings_ME, system.llama.embed, system.pad_id)
    logits = system.llama.prefill(inputs, mask, system.llama.new_cache(*mask.shape))
    for ours, ids in zip(logits, prompts, strict=True):
        plain = system.model.decoder(input_ids=torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


def test_the_system_with_everything_expanded_generates_as_transformers_does(system: RefragV2) -> None:
    context, prompts = given(system)
    columns = torch.stack(list(system.generate(QUESTIONS, context, max_new_tokens=8)), dim=1)
    for ours, ids in zip(columns.tolist(), prompts, strict=True):
        theirs = system.model.decoder.generate(
            torch.tensor([ids]),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=system.prompting.stop_ids,
            pad_token_id=system.pad_id,
        )[0, len(ids) :].tolist()
        assert ours == theirs + [system.pad_id] * (columns.shape[1] - len(theirs))
    assert columns.unique().numel() > 2


# Reconstruction: the whole text from L embeddings


def log_probability(model: Refrag, inputs_TE: Tensor) -> Tensor:
    """log p (T, V) of the token after each position, from transformers' decoder."""
    return model.decoder(inputs_embeds=inputs_TE[None]).logits[0].double().log_softmax(-1)


def said(model: Refrag, ids: Sequence[int]) -> Tensor:
    return model.decoder.model.embed_tokens(torch.tensor(list(ids), dtype=torch.long))


@pytest.mark.parametrize("length", [K, 3, 1])
@torch.no_grad()
def test_one_chunk_is_told_from_one_embedding_to_its_last_token(length: int) -> None:
    """[bos, e, x_1 .. x_{k-1}] -> x_1 .. x_k (section 4 with L = 1). A text shorter than a chunk has a loss as well."""
    model, (row,) = refrag(), copying(1)
    x = row.context[0].text
    assert len(x) == K and row.tail == x
    del x[length:], row.tail[length:], row.is_answer[length:]
    e = encoded(model, [x])
    assert e.shape == (1, WIDTH)
    inputs = torch.cat([said(model, [TOKENIZER.bos_token_id]), e, said(model, x[:-1])])
    by_hand = -log_probability(model, inputs)[1:].gather(1, torch.tensor(x)[:, None])
    assert len(by_hand) == length

    batch = condense(lay_out_for(model, [row], TOKENIZER), torch.tensor([[False]]))
    loss = answer_loss(read_chunks, 0.0)
    assert float(loss(model, batch)) == pytest.approx(float(by_hand.mean()), rel=1e-6)
    # Labels that are cut to the inputs' length lose exactly this one.
    other = x[-1] - 1
    batch["labels"][0, -1] = other
    moved = (-log_probability(model, inputs)[-1, other] - by_hand[-1]) / length
    assert abs(float(moved)) > 1e-4
    assert float(loss(model, batch)) == pytest.approx(float(by_hand.mean() + moved), rel=1e-6)


@pytest.mark.parametrize("chunks", [2, 4])
@torch.no_grad()
def test_many_chunks_are_told_together(chunks: int) -> None:
    """x_t from all L embeddings and all tokens before it, chunk borders or not; the mean over all tokens of the batch.

    Told apart, every chunk from its own embedding, a curriculum over L would change what is averaged, and not how
    hard it is.
    """
    model, rows = refrag(), copying(chunks, rows=2)
    by_hand, apart = [], []
    for row in rows:
        x = row.context[0].text
        pieces = split(x, K)
        assert len(pieces) == chunks and all(len(piece) == K for piece in pieces)
        e = torch.cat([encoded(model, [piece]) for piece in pieces])
        bos = said(model, row.start)
        for t, token in enumerate(x):
            by_hand.append(-log_probability(model, torch.cat([bos, e, said(model, x[:t])]))[-1, token])
            own = said(model, x[t - t % K : t])
            apart.append(-log_probability(model, torch.cat([bos, e[t // K, None], own]))[-1, token])
    assert len(by_hand) == 2 * chunks * K
    batch = lay_out_for(model, rows, TOKENIZER)
    loss = float(answer_loss(read_chunks, 0.0)(model, condense(batch, all_or_none(batch, False))))
    assert loss == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-6)
    assert abs(loss - float(torch.stack(apart).mean())) > 1e-4


@torch.no_grad()
def test_one_embedding_repeated_tells_no_position_from_another() -> None:
    """Why v1's reconstruction cannot be learned. Attention over equal values is that value at every position, so all
    of a chunk's tokens get one distribution, and any order of them has the same loss."""
    model, (row,) = refrag(), copying(1)
    x = row.context[0].text
    e = encoded(model, [x])
    backwards = x[::-1]

    def losses(inputs: Callable[[list[int]], Tensor]) -> list[float]:
        return [
            float(-log_probability(model, inputs(ids))[-K:].gather(1, torch.tensor(ids)[:, None]).sum())
            for ids in (x, backwards)
        ]

    def repeated(ids: list[int]) -> Tensor:
        return e.repeat(K, 1)

    def joint(ids: list[int]) -> Tensor:
        return torch.cat([said(model, row.start), e, said(model, ids[:-1])])

    def spread(inputs: Tensor) -> float:
        logits = model.decoder(inputs_embeds=inputs[None]).logits[0, -K:]
        return float((logits.amax(0) - logits.amin(0)).max())

    assert spread(repeated(x)) < 1e-5
    assert spread(joint(x)) > 0.1
    one_way, other_way = losses(repeated)
    assert one_way == pytest.approx(other_way, abs=1e-4)
    one_way, other_way = losses(joint)
    assert abs(one_way - other_way) > 0.01


# Chunk embeddings

OF_DECODER = [("decoder:1", "concat"), ("decoder:2", "mean")]
OF_ROBERTA = [("random:roberta-tiny", pooling) for pooling in ("cls", "mean", "concat")]
SHAPES = [
    (encoder, pooling, window)
    for (encoder, pooling), window in itertools.product([*OF_DECODER, *OF_ROBERTA], ["chunk", "passage"])
    if (pooling, window) != ("cls", "passage")
]
FIRST_WORD = len(TAGS) + 256  # after the tags and the bytes
RAGGED = [
    list(range(FIRST_WORD + start, FIRST_WORD + stop))
    for start, stop in ((0, 11), (0, 0), (50, 51), (60, 68), (70, 95))
]


def assert_a_batch_is_its_passages(model: Refrag) -> None:
    for matrix in (parameter for parameter in model.encoder.parameters() if parameter.ndim == 2):
        matrix.mul_(5)  # at its random start RoBERTa says much the same of every text
    together = encoded(model, RAGGED)
    alone = [encoded(model, [passage]) for passage in RAGGED]
    assert [len(chunks) for chunks in alone] == [-(-len(passage) // K) for passage in RAGGED]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    distances = torch.cdist(together, together) + 9 * torch.eye(len(together))
    assert distances.min() > 0.1, "chunks that look alike prove nothing"


@pytest.mark.parametrize(("encoder", "pooling", "window"), SHAPES)
@torch.no_grad()
def test_a_ragged_batch_is_encoded_as_its_passages_are(encoder: str, pooling: str, window: str) -> None:
    assert_a_batch_is_its_passages(refrag(encoder=encoder, pooling=pooling, window=window))


@pytest.fixture(scope="module")
def own_words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a RoBERTa with another tokenizer than the decoder's."""
    folder = tmp_path_factory.mktemp("roberta")
    torch.manual_seed(0)
    random_roberta("roberta-tiny", len(byte_level_tokenizer())).model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("pooling", "window"), [("cls", "chunk"), ("mean", "chunk"), ("mean", "passage")])
@torch.no_grad()
def test_an_encoder_with_its_own_tokenizer_encodes_a_batch_as_its_passages(
    own_words: str, pooling: str, window: str
) -> None:
    assert_a_batch_is_its_passages(refrag(encoder=own_words, pooling=pooling, window=window))


@pytest.mark.parametrize("window", ["chunk", "passage"])
@torch.no_grad()
def test_a_chunk_sees_its_window_and_nothing_else(window: str) -> None:
    model = refrag(window=window)
    passage = RAGGED[-1][: 2 * K]
    before = encoded(model, [passage, passage])
    after = encoded(model, [[FIRST_WORD, *passage[1:]], passage])
    moved = (after - before).norm(dim=-1) > 1e-3
    assert moved.tolist() == [True, window == "passage", False, False]


@torch.no_grad()
def test_the_projector_is_its_formula() -> None:
    """Pooling, skip and MLP written out chunk by chunk; the missing tokens of a short chunk count for nothing."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, K, WIDTH, generator=generator)
    lengths = [K, 3]
    chunk = torch.tensor([[row if place < n else -1 for place in range(K)] for row, n in enumerate(lengths)])
    inputs = EncoderInputs(torch.zeros_like(chunk), chunk >= 0, chunk)

    def mlp(pooled: Tensor) -> Tensor:
        hidden = F.gelu(projector.hidden.weight @ pooled + projector.hidden.bias)
        return projector.out.weight @ hidden + projector.out.bias

    for pooling in ("cls", "mean", "concat"):
        projector = Projector(RefragConfig(k=K, encoder="random:roberta-tiny", pooling=pooling), WIDTH, WIDTH)
        expected = []
        for row, n in enumerate(lengths):
            own = states[row, :n]
            if pooling == "cls":
                expected.append(mlp(own[0]))
            elif pooling == "mean":
                expected.append(mlp(own.sum(0) / n))
            else:
                projector.position.copy_(torch.linspace(-0.02, 0.05, K))
                weights = (1 + POSITION_SCALE * projector.position) / K
                skip = projector.skip.weight @ sum(weights[place] * own[place] for place in range(n))
                expected.append(mlp(torch.cat([own.flatten(), torch.zeros((K - n) * WIDTH)])) + skip)
        torch.testing.assert_close(projector(states, inputs), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", [1.0, 8.0])
@torch.no_grad()
def test_embeddings_are_as_long_as_asked(norm: float) -> None:
    model = refrag(norm=norm)
    model.projector.gain.fill_(0.7)
    table = model.decoder.model.embed_tokens.weight
    mean_length = sum(float(row.square().sum().sqrt()) for row in table) / len(table)
    lengths = encoded(model, RAGGED).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, norm * mean_length * 0.7), rtol=1e-5, atol=0)


@torch.no_grad()
def test_without_a_norm_embeddings_are_the_projectors() -> None:
    """And with one they point the same way."""
    free, normed = refrag(norm=None), refrag(norm=2.0)
    normed.load_state_dict(free.state_dict())
    inputs = free.inputs(RAGGED, TOKENIZER)
    plain = free.projector(free.encoder(inputs.ids_NS, inputs.mask_NS), inputs)
    torch.testing.assert_close(free.encode(inputs), plain, atol=1e-6, rtol=0)
    cosine = F.cosine_similarity(normed.encode(inputs), plain, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-5, rtol=0)
    assert plain.norm(dim=-1).std() > 1e-3


@torch.no_grad()
def test_no_passages_are_no_embeddings_of_the_decoders_width() -> None:
    for passages in ([], [[]]):
        assert encoded(refrag(), passages).shape == (0, WIDTH)


def test_the_projector_has_the_papers_size() -> None:
    """RoBERTa-Large to LLaMA-2-7B, 1024 -> 4096 -> 4096 with biases, and one gain that the paper does not have."""
    with torch.device("meta"):
        projector = Projector(RefragConfig(k=16, encoder="random:roberta-large", pooling="cls"), 1024, 4096)
    sizes = {name: parameter.numel() for name, parameter in projector.named_parameters()}
    assert sizes.pop("gain") == 1
    assert sum(sizes.values()) == 20_979_712


def test_gradients_reach_all_of_encoder_and_projector() -> None:
    model, rows = refrag().train(), copying(2)
    batch = lay_out_for(model, rows, TOKENIZER)
    answer_loss(read_chunks, 0.0)(model, condense(batch, all_or_none(batch, False))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


# What a user can get wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "at least 1 token, got k=0"),
        ({"pooling": "max"}, "unknown pooling 'max'.*valid choices: cls, concat, mean"),
        ({"window": "page"}, "unknown encoder window 'page'.*valid choices: chunk, passage"),
        ({"encoder": "random:roberta-tiny", "pooling": "cls", "window": "passage"}, "needs the window 'chunk'"),
        ({"encoder": "decoder:1", "pooling": "cls"}, "'cls' needs an encoder with a classification token"),
        ({"encoder": "roberta-base", "pooling": "concat"}, r"'concat' needs an encoder that shares .* \(decoder:N\)"),
        (
            {"encoder": "random:roberta-huge"},
            "'roberta-huge'.*valid choices: minilm, roberta-base, roberta-large, roberta-mini, roberta-tiny",
        ),
        ({"encoder": "decoder:9"}, "expected 1 to 4 encoder layers, got 9"),
        ({"encoder": "no/such/folder", "pooling": "cls"}, "no tokenizer 'no/such/folder' for the encoder"),
        ({"encoder": "decoder:two"}, "expected an encoder decoder:N with a number of layers, got .decoder:two."),
    ],
)
def test_a_model_that_cannot_be_says_what_could(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        refrag(**settings)


# Checkpoints


def trained(seed: int = 0, **config: Any) -> Refrag:
    """A model with a policy and no parameter where its initialisation left it."""
    model = refrag(seed, **config)
    model.policy = Policy(PolicyConfig(), WIDTH)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("decoder."):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def reloaded(folder: Path, dtype: str = "float32") -> Refrag:
    torch.manual_seed(999)  # what is not read from the checkpoint must not come back by chance
    return load_refrag(folder, load_decoder(str(folder), dtype=dtype).model)


def scores(model: Refrag) -> Tensor:
    assert model.policy is not None
    question, chunks = said(model, RAGGED[0][:3])[None], encoded(model, RAGGED)[None]
    return model.policy(question, torch.ones(1, 3, dtype=torch.bool), chunks, torch.ones(chunks.shape[:2]).bool())


@pytest.mark.parametrize("encoder", ["decoder:2", "random:roberta-tiny"])
@torch.no_grad()
def test_a_saved_model_comes_back_whole(tmp_path: Path, encoder: str) -> None:
    model = trained(encoder=encoder, norm=3.0)
    folder = save_refrag(model, TOKENIZER, TRAINING, tmp_path / "final")
    back = reloaded(folder)
    assert back.config == model.config and back.policy is not None and back.policy.config == model.policy.config
    assert not any(module.training for module in back.modules())
    expected, state = model.state_dict(), back.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(encoded(back, RAGGED), encoded(model, RAGGED))
    assert torch.equal(scores(back), scores(model))
    batch = condense(lay_out_for(model, copying(2), TOKENIZER), torch.tensor([[False, True]]))
    assert torch.equal(read_chunks(back, batch), read_chunks(model, batch))


@torch.no_grad()
def test_a_published_encoder_comes_back_as_it_was_trained(tmp_path: Path, own_words: str) -> None:
    model = trained(encoder=own_words, pooling="mean")
    back = reloaded(save_refrag(model, TOKENIZER, TRAINING, tmp_path / "final"))
    assert torch.equal(encoded(back, RAGGED), encoded(model, RAGGED))


@torch.no_grad()
def test_a_checkpoint_needs_no_second_folder(tmp_path: Path, own_words: str) -> None:
    elsewhere = shutil.copytree(own_words, tmp_path / "roberta")
    model = trained(encoder=str(elsewhere), pooling="mean")
    expected = encoded(model, RAGGED)
    folder = save_refrag(model, TOKENIZER, TRAINING, tmp_path / "final")
    shutil.rmtree(elsewhere)
    assert torch.equal(encoded(reloaded(folder), RAGGED), expected)


def test_a_checkpoint_misses_nothing_and_its_decoder_stands_alone(tmp_path: Path) -> None:
    model = trained()
    folder = save_refrag(model, TOKENIZER, TRAINING, tmp_path / "final")
    stored = load_file(folder / FILES.weights_file).keys()
    assert {f"projector.{name}" for name in model.projector.state_dict()} <= stored
    assert {f"encoder.{name}" for name in model.encoder.state_dict()} <= stored
    assert {f"policy.{name}" for name in model.policy.state_dict()} <= stored
    assert "target_length" in stored
    assert not any(name.startswith("decoder.") for name in stored)
    plain = load_decoder(str(folder)).model.state_dict()
    assert all(torch.equal(plain[name], tensor) for name, tensor in model.decoder.state_dict().items())


def test_a_model_without_a_policy_has_none_after_loading(tmp_path: Path) -> None:
    assert reloaded(save_refrag(refrag(), TOKENIZER, TRAINING, tmp_path / "final")).policy is None


@torch.no_grad()
def test_a_model_is_loaded_in_the_decoders_dtype(tmp_path: Path) -> None:
    back = reloaded(save_refrag(trained(), TOKENIZER, TRAINING, tmp_path / "final"), dtype="bfloat16")
    assert {parameter.dtype for parameter in back.parameters()} == {torch.bfloat16}
    assert encoded(back, RAGGED).dtype == torch.bfloat16
    assert back.encoder.rotary.inv_freq.dtype == torch.float32, "three digits of an angle would move positions"


def _rewrite(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        document = json.loads((folder / FILES.config_file).read_text())
        change(document)
        (folder / FILES.config_file).write_text(json.dumps(document))

    return apply


def _reweigh(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / FILES.weights_file)
        change(weights)
        save_file(weights, folder / FILES.weights_file)

    return apply


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / FILES.config_file).unlink(), "has no chunk encoder .*train refrag_v2"),
    "half a config": (lambda f: (f / FILES.config_file).write_text('{"model"'), "refrag.json is damaged"),
    "a list": (lambda f: (f / FILES.config_file).write_text("[1]"), "refrag.json is damaged"),
    "no policy entry": (_rewrite(lambda d: d.pop("policy")), "refrag.json is damaged"),
    "unknown setting": (_rewrite(lambda d: d["model"].update(colour="red")), "refrag.json is damaged"),
    "no such pooling": (_rewrite(lambda d: d["model"].update(pooling="max")), "refrag.json is damaged"),
    "another k": (_rewrite(lambda d: d["model"].update(k=4)), "refrag.safetensors cannot be loaded"),
    "no policy": (_rewrite(lambda d: d.update(policy=None)), "does not fit refrag.json: policy"),
    "no weights": (lambda f: (f / FILES.weights_file).unlink(), "refrag.safetensors cannot be loaded"),
    "half the weights": (
        lambda f: (f / FILES.weights_file).write_bytes((f / FILES.weights_file).read_bytes()[:5000]),
        "refrag.safetensors cannot be loaded",
    ),
    "only a policy's shape": (
        _reweigh(lambda w: [w.pop(name) for name in [*w] if name.startswith("policy.")]),
        "does not fit refrag.json: policy",
    ),
    "no projector": (_reweigh(lambda w: w.pop("projector.out.weight")), "does not fit .*: projector.out.weight"),
    "no length": (_reweigh(lambda w: w.pop("target_length")), "does not fit .*: target_length"),
    "one too many": (_reweigh(lambda w: w.update(extra=torch.ones(1))), "does not fit .*: extra"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    apply, message = DAMAGES[damage]
    folder = save_refrag(trained(), TOKENIZER, TRAINING, tmp_path / "final")
    apply(folder)
    with pytest.raises(InputError, match=message):
        reloaded(folder)


def test_a_checkpoint_around_another_decoder_is_refused(tmp_path: Path) -> None:
    """Its projector would write into a space of another width."""
    folder = save_refrag(refrag(), TOKENIZER, TRAINING, tmp_path / "final")
    other = random_decoder("tiny", seed=0)
    narrower = type(other)(type(other.config)(**other.config.to_dict() | {"hidden_size": 64, "head_dim": 16}))
    with pytest.raises(InputError, match="refrag.safetensors cannot be loaded"):
        load_refrag(folder, narrower)
