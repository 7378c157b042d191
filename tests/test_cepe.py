"""CEPE as a system: what is served is the model's forward over the same tokens, however passages are kept and batched.

The reference is ``Cepe.forward`` on one question at a time; what it computes is proven in test_cepe_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from baselines import cepe
from baselines.cepe import CROSS_KV, CepeSystem, CepeSystemConfig
from baselines.cepe_checkpoint import load_cepe, save_cepe
from baselines.cepe_model import Cepe, CepeConfig, build_cepe
from baselines.standard_rag import StandardRAG, StandardRAGConfig
from harness import prompts
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model import decode
from harness.model.decode import Reader
from harness.model.load import Decoder, load_decoder
from harness.protocol import Passage
from slurm.jobs.system import open_system

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = build_tokenizer()
HEADS, HEAD_WIDTH = 4, 24
QUESTIONS = ["what is the rival of", "Name the", "what", "is was is", "of"]
# Head groups, blocks of cross-attention, the encoder, and how many of its states they read.
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": dict(kv_heads=2, cross_layers=2, encoder="decoder:2"),
    "no grouping": dict(kv_heads=4, cross_layers=1, encoder="decoder:1"),
    "own states": dict(kv_heads=1, cross_layers=3, encoder="decoder:2", encoder_states=3),
    "a narrower encoder": dict(kv_heads=2, cross_layers=3, encoder="random:cepe-tiny"),
    "its own states": dict(kv_heads=4, cross_layers=2, encoder="random:cepe-tiny", encoder_states=2),
}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES)
EACH_WAY = pytest.mark.parametrize("cross_kv", CROSS_KV)


def write(folder: Path, kv_heads: int, **shape: Any) -> Path:
    """A random checkpoint that answers nonsense, and another nonsense for every other input."""
    torch.manual_seed(kv_heads)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=HEADS * HEAD_WIDTH,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        initializer_range=0.12,  # attention that is far from uniform, so that a wrong key shows
    )
    model = build_cepe(CepeConfig(**shape), LlamaForCausalLM(config).eval())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("decoder."):  # nothing is a copy of the decoder's any more
                parameter.add_(0.02 * torch.randn_like(parameter))
    training = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}
    return save_cepe(CepeConfig(**shape), model, TOKENIZER, training, folder)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cepe")
    return {name: write(folder / name, **shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="session")
def checkpoint(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["grouped"]


@cache
def loaded(checkpoint: Path, dtype: str = "float32") -> Decoder:
    return load_decoder(str(checkpoint), dtype=dtype)


def opened(checkpoint: Path, dtype: str = "float32", **settings: Any) -> CepeSystem:
    return CepeSystemConfig(template="tagged", **settings).build(loaded(checkpoint, dtype))


def standard_rag(checkpoint: Path, **settings: Any) -> StandardRAG:
    return StandardRAGConfig(template="tagged", **settings).build(loaded(checkpoint))


@cache
def model_of(checkpoint: Path) -> Cepe:
    return load_cepe(checkpoint, load_decoder(str(checkpoint)).model)


def texts(*said: str) -> list[Passage]:
    return [Passage(id=str(i), title="t", text=text) for i, text in enumerate(said)]


def ragged() -> list[list[Passage]]:
    """Four, no, one, two and three passages, of no to ten tokens behind their tag."""
    return [
        texts("The rival of is", "was", "of of of The birthplace is was", ""),
        [],
        texts("is The was The was The was The was is"),
        texts("rival", "The birthplace of"),
        texts("", "was is", "The rival"),
    ]


def tokens(row: Sequence[Passage]) -> list[list[int]]:
    return prompts.TAGGED.passage_ids(TOKENIZER, row)


def prompt(question: str, row: Sequence[Passage] = ()) -> list[int]:
    """Start, passages and question as token ids."""
    ask = prompts.TAGGED.question_ids(TOKENIZER, [question])[0]
    return [TOKENIZER.bos_token_id, *(token for block in tokens(row) for token in block), *ask]


@torch.no_grad()
def reference(model: Cepe, ids: Sequence[int], row: Sequence[Passage]) -> Tensor:
    """The model's logits (V,) after ``ids``, which nothing pads, over passages padded on the right."""
    blocks = tokens(row)
    read = torch.zeros((1, len(blocks), max(map(len, blocks), default=0)), dtype=torch.long)
    mask = torch.zeros_like(read)
    for index, block in enumerate(blocks):
        read[0, index, : len(block)], mask[0, index, : len(block)] = torch.tensor(block), 1
    ids_1T = torch.tensor([list(ids)])
    positions = torch.arange(len(ids))[None]
    return model(ids_1T, torch.ones_like(ids_1T), positions, read, mask).logits[0, -1]


def reader(system: CepeSystem, questions: Sequence[str], rows: Sequence[Sequence[Passage]]) -> Reader:
    """What ``generate`` hands to the decode loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cepe, "greedy", lambda reader, **_: reader)
        made: Any = system.generate(questions, system.encode(rows), max_new_tokens=8)
    return made


@torch.inference_mode()
def logits(system: CepeSystem, questions: Sequence[str], rows: Sequence[Sequence[Passage]]) -> Tensor:
    return reader(system, questions, rows).first()


def answers(
    system: CepeSystem | StandardRAG, questions: Sequence[str], rows: Sequence[Sequence[Passage]], n: int = 8
) -> list[list[int]]:
    """Token ids of each answer."""
    context: Any = system.encode(rows)
    return torch.stack(list(system.generate(questions, context, max_new_tokens=n)), dim=1).tolist()


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


# What it computes


@EACH_WAY
@EACH_SHAPE
def test_logits_are_those_of_the_models_forward(checkpoints: dict[str, Path], shape: str, cross_kv: str) -> None:
    model = model_of(checkpoints[shape])
    got = logits(opened(checkpoints[shape], cross_kv=cross_kv), QUESTIONS, ragged())
    for question, row, ours in zip(QUESTIONS, ragged(), got, strict=True):
        expected = reference(model, prompt(question), row)
        close(ours, expected)
        without = reference(model, prompt(question), [])
        assert not row or (expected - without).abs().max() > 0.1, "passages that move nothing prove nothing"


@EACH_WAY
@EACH_SHAPE
def test_each_further_token_is_that_of_a_full_forward(checkpoints: dict[str, Path], shape: str, cross_kv: str) -> None:
    model = model_of(checkpoints[shape])
    with torch.inference_mode():
        read = reader(opened(checkpoints[shape], cross_kv=cross_kv), QUESTIONS, ragged())
        read.first()
        said: list[list[int]] = [[] for _ in QUESTIONS]
        for step in range(5):
            column = torch.tensor([3 + 7 * step + 40 * row for row in range(len(QUESTIONS))])
            got = read.then(column)
            for question, row, own, token, ours in zip(QUESTIONS, ragged(), said, column.tolist(), got, strict=True):
                own.append(token)
                close(ours, reference(model, [*prompt(question), *own], row))


@EACH_SHAPE
def test_recomputed_keys_and_values_answer_as_cached_ones(checkpoints: dict[str, Path], shape: str) -> None:
    cached, recomputed = (opened(checkpoints[shape], cross_kv=way) for way in ("cached", "recomputed"))
    close(logits(recomputed, QUESTIONS, ragged()), logits(cached, QUESTIONS, ragged()))
    said = answers(cached, QUESTIONS, ragged())
    assert answers(recomputed, QUESTIONS, ragged()) == said
    assert len(set(map(tuple, said))) == len(QUESTIONS)


def test_what_is_recomputed_is_not_kept(checkpoint: Path) -> None:
    """Neither way prepares what the other reads."""
    for way in CROSS_KV:
        passages = [p for row in opened(checkpoint, cross_kv=way).encode(ragged()).passages for p in row]
        assert [p.length for p in passages] == [len(block) for row in ragged() for block in tokens(row)]
        assert all(bool(p.keys_values) == (way == "cached") == (not p.states) for p in passages)


@EACH_WAY
@EACH_SHAPE
def test_without_passages_it_is_standard_rag(checkpoints: dict[str, Path], shape: str, cross_kv: str) -> None:
    nothing: list[list[Passage]] = [[] for _ in QUESTIONS]
    said = answers(opened(checkpoints[shape], cross_kv=cross_kv), QUESTIONS, nothing)
    assert said == answers(standard_rag(checkpoints[shape]), QUESTIONS, nothing)
    read = answers(opened(checkpoints[shape], cross_kv=cross_kv), QUESTIONS, ragged())
    assert read[1] == said[1], "nor does a question without any among others"
    assert all(a != b for i, (a, b) in enumerate(zip(read, said, strict=True)) if i != 1)


def test_the_order_in_the_encoder_is_not_seen(checkpoint: Path) -> None:
    """That in the decoder is."""
    questions, rows = [QUESTIONS[0]] * 2, [ragged()[0], [ragged()[0][i] for i in (2, 0, 3, 1)]]
    for way in CROSS_KV:
        system = opened(checkpoint, cross_kv=way)
        given, turned = logits(system, questions, rows)
        close(turned, given)
        assert len(set(map(tuple, answers(system, questions, rows)))) == 1
    given, turned = logits(opened(checkpoint, in_decoder=4), questions, rows)
    assert (given - turned).abs().max() > 0.1


# The first passages in the decoder


@EACH_WAY
@pytest.mark.parametrize("in_decoder", range(5))
def test_the_first_passages_stand_as_tokens_and_the_others_are_encoded(
    checkpoint: Path, in_decoder: int, cross_kv: str
) -> None:
    system = opened(checkpoint, in_decoder=in_decoder, cross_kv=cross_kv)
    got, _ = system.prompting.whole_prompts(QUESTIONS, system.encode(ragged()).tokens, 8)
    theirs = standard_rag(checkpoint)
    assert got == theirs.layout.prompts(QUESTIONS, theirs.encode([row[:in_decoder] for row in ragged()]), 8)[0]
    expected = [
        reference(model_of(checkpoint), prompt(question, row[:in_decoder]), row[in_decoder:])
        for question, row in zip(QUESTIONS, ragged(), strict=True)
    ]
    close(logits(system, QUESTIONS, ragged()), torch.stack(expected))


@EACH_WAY
@pytest.mark.parametrize("in_decoder", [4, 10])
def test_with_all_passages_in_the_decoder_it_is_standard_rag(checkpoint: Path, in_decoder: int, cross_kv: str) -> None:
    system = opened(checkpoint, in_decoder=in_decoder, cross_kv=cross_kv)
    said = answers(system, QUESTIONS, ragged())
    assert said == answers(standard_rag(checkpoint), QUESTIONS, ragged())
    assert said != answers(opened(checkpoint, in_decoder=3, cross_kv=cross_kv), QUESTIONS, ragged())


# The same every time


@EACH_WAY
@pytest.mark.parametrize("in_decoder", [0, 2])
def test_a_batch_answers_as_its_questions_do(checkpoint: Path, in_decoder: int, cross_kv: str) -> None:
    system = opened(checkpoint, in_decoder=in_decoder, cross_kv=cross_kv)
    together, said = logits(system, QUESTIONS, ragged()), answers(system, QUESTIONS, ragged())
    usage = system.usage(QUESTIONS, system.encode(ragged()), max_new_tokens=8)
    for i, (question, row) in enumerate(zip(QUESTIONS, ragged(), strict=True)):
        close(logits(system, [question], [row])[0], together[i])
        alone = answers(system, [question], [row])[0]
        assert said[i] == alone + [system.pad_id] * (len(said[i]) - len(alone))
        assert system.usage([question], system.encode([row]), max_new_tokens=8) == usage[i : i + 1]


@EACH_WAY
@pytest.mark.parametrize("at_once", [1, 3])
def test_passages_are_encoded_as_if_alone(
    checkpoint: Path, cross_kv: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many share a batch, and each in its place afterwards."""
    expected = logits(opened(checkpoint, cross_kv=cross_kv), QUESTIONS, ragged())
    monkeypatch.setattr(decode, "AT_ONCE", at_once)
    system = opened(checkpoint, cross_kv=cross_kv)
    close(logits(system, QUESTIONS, ragged()), expected)
    for row in ragged():
        for passage, block in zip(row, system.encode([row]).passages[0], strict=True):
            ((alone,),) = system.encode([[passage]]).passages
            for ours, theirs in zip(block.keys_values, alone.keys_values, strict=True):
                close(ours[0], theirs[0]), close(ours[1], theirs[1])
            for ours, theirs in zip(block.states, alone.states, strict=True):
                close(ours, theirs)


@EACH_WAY
@pytest.mark.parametrize("in_decoder", [0, 2])
def test_equal_calls_give_equal_answers(checkpoint: Path, in_decoder: int, cross_kv: str) -> None:
    system = opened(checkpoint, in_decoder=in_decoder, cross_kv=cross_kv)
    context = system.encode(ragged())
    once, again = (torch.stack(list(system.generate(QUESTIONS, context, max_new_tokens=8)), 1) for _ in range(2))
    assert torch.equal(once, again), "what is kept serves again"
    torch.manual_seed(1)  # no generator of the process has a say
    other = opened(checkpoint, in_decoder=in_decoder, cross_kv=cross_kv)
    assert answers(other, QUESTIONS, ragged()) == answers(system, QUESTIONS, ragged()) == once.tolist()


@EACH_WAY
def test_nothing_is_recorded_for_gradients(checkpoint: Path, cross_kv: str) -> None:
    system = opened(checkpoint, cross_kv=cross_kv)
    assert any(parameter.requires_grad for parameter in system.model.parameters())
    context = system.encode(ragged())
    kept = [t for row in context.passages for p in row for t in (*p.states, *(t for kv in p.keys_values for t in kv))]
    assert kept and not any(tensor.requires_grad for tensor in kept)
    for column in system.generate(QUESTIONS, context, max_new_tokens=3):
        assert not column.requires_grad and not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled(), "the caller is left as it was"
    assert not any(module.training for module in system.model.modules())


# What it costs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@EACH_SHAPE
def test_stored_bytes_are_those_of_the_passages_in_the_encoder(
    checkpoints: dict[str, Path], shape: str, dtype: str
) -> None:
    row, itemsize = texts("of of of of", "is is is", "was was was was was"), getattr(torch, dtype).itemsize
    model = model_of(checkpoints[shape])
    keys_values = SHAPES[shape]["cross_layers"] * 2 * SHAPES[shape]["kv_heads"] * HEAD_WIDTH * itemsize
    states = SHAPES[shape].get("encoder_states", 1) * model.encoder.width * itemsize
    for cross_kv, per_token in (("cached", keys_values), ("recomputed", states)):
        for in_decoder, in_encoder in ((0, 5 + 4 + 6), (1, 4 + 6), (3, 0)):  # tokens with their tags
            system = opened(checkpoints[shape], dtype, cross_kv=cross_kv, in_decoder=in_decoder)
            (usage,) = system.usage(["what is the rival"], system.encode([row]), max_new_tokens=4)
            assert usage.stored_bytes == per_token * in_encoder
            assert usage.decoder_positions == 1 + (5 + 4 + 6 - in_encoder) + 6
            assert usage.passages_read == 3
    (closed,) = system.usage(["what"], system.encode([[]]), max_new_tokens=4)
    assert (closed.decoder_positions, closed.passages_read, closed.stored_bytes) == (1 + 3, 0, 0)


@EACH_WAY
@pytest.mark.parametrize("in_decoder", [0, 2, 3])
def test_whole_passages_leave_the_decoder_and_none_the_encoder(
    checkpoint: Path, in_decoder: int, cross_kv: str
) -> None:
    """Of those in the decoder the last go first, as in standard RAG over them; the others take none of its room."""
    row = texts("of of of of", "is is is", "was was was was was", "The rival of was")  # 5, 4, 6 and 5 with their tags
    question, new, seen = "what is the rival", 4, set()  # 6 tokens, and the start token before
    model = model_of(checkpoint)
    for room in range(11, 30, 2):
        settings = dict(max_positions=room, in_decoder=in_decoder, cross_kv=cross_kv)
        system, theirs = opened(checkpoint, **settings), standard_rag(checkpoint, max_positions=room)
        (usage,) = system.usage([question], system.encode([row]), max_new_tokens=new)
        (expected,) = theirs.usage([question], theirs.encode([row[:in_decoder]]), max_new_tokens=new)
        n = sum(room - new - 7 >= needed for needed in (5, 9, 15)[:in_decoder])
        assert (usage.decoder_positions, usage.passages_read) == (expected.decoder_positions, n + 4 - in_decoder)
        assert usage.decoder_positions <= room - new
        with torch.inference_mode():
            ours = next(iter(system.generate([question], system.encode([row]), max_new_tokens=new)))
        likeliest = reference(model, prompt(question, row[:n]), row[in_decoder:]).argmax()
        assert ours.tolist() == [int(likeliest)], "and what is counted is what is read"
        seen.add(n)
    assert seen == set(range(in_decoder + 1))


def test_the_decoders_own_window_is_the_default(checkpoint: Path) -> None:
    system = opened(checkpoint, in_decoder=2)
    row = texts(" ".join(["of"] * 300), " ".join(["is"] * 300))  # 512 positions hold one of them
    (usage,) = system.usage(["what"], system.encode([row]), max_new_tokens=4)
    assert (usage.decoder_positions, usage.passages_read) == (1 + 301 + 3, 1)
    (usage,) = opened(checkpoint).usage(["what"], opened(checkpoint).encode([row]), max_new_tokens=4)
    assert (usage.decoder_positions, usage.passages_read) == (1 + 3, 2)


def test_the_question_is_never_cut(checkpoint: Path) -> None:
    system = opened(checkpoint, max_positions=11)
    system.check(["what is the rival"], max_new_tokens=4)
    with pytest.raises(InputError, match=r"'what is the rival of' needs 12 positions .* holds 11"):
        system.check(["what is the rival of"], max_new_tokens=4)


# Other precisions


@EACH_WAY
@pytest.mark.parametrize("shape", ["grouped", "a narrower encoder"])
def test_sixteen_bits_leave_the_encoders_rotary_frequencies_whole(
    checkpoints: dict[str, Path], shape: str, cross_kv: str
) -> None:
    """Three digits of them would put position 512 off by one."""
    system, exact = opened(checkpoints[shape], "bfloat16", cross_kv=cross_kv), model_of(checkpoints[shape])
    assert {parameter.dtype for parameter in system.model.parameters()} == {torch.bfloat16}
    for ours, theirs in (
        (system.model.encoder.rotary, exact.encoder.rotary),
        (system.model.decoder.model.rotary_emb, exact.decoder.model.rotary_emb),
    ):
        assert ours.inv_freq.dtype == torch.float32
        assert torch.equal(ours.inv_freq, theirs.inv_freq)
        assert not torch.equal(ours.inv_freq, ours.inv_freq.bfloat16().float())
    got = logits(system, QUESTIONS, ragged())
    assert got.dtype == torch.bfloat16 and got.isfinite().all()
    expected = logits(opened(checkpoints[shape], cross_kv=cross_kv), QUESTIONS, ragged())
    nothing = logits(opened(checkpoints[shape]), QUESTIONS, [[] for _ in QUESTIONS])
    read = [i for i, row in enumerate(ragged()) if row]
    error, effect = ((x[read] - expected[read]).square().mean().sqrt() for x in (got.float(), nothing))
    assert error < 0.1 * effect


# What a user can get wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_decoder": -1}, "at least 0 passages in the decoder, got -1"),
        ({"in_decoder": "many"}, "setting in_decoder: expected int, got 'many'"),
        ({"cross_kv": "cache"}, "'cache'.*'cached'.*valid choices: cached, recomputed"),
        ({"template": "taged"}, "unknown prompt template 'taged'.*valid choices: bare, tagged, text"),
        ({"colour": "red"}, "unknown setting of cepe 'colour'.*valid choices: cross_kv, in_decoder, max_pos"),
    ],
)
def test_settings_that_cannot_be_say_what_could(checkpoint: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_system("cepe", str(checkpoint), settings, dtype="float32", device="cpu")


def test_a_checkpoint_says_its_own_settings(checkpoint: Path) -> None:
    settings = {"in_decoder": "10", "cross_kv": "recomputed", "max_positions": "none"}
    found = open_system("cepe", str(checkpoint), settings, dtype="float32", device="cpu")
    assert found.config == CepeSystemConfig(template="tagged", in_decoder=10, cross_kv="recomputed")
    assert open_system("cepe", str(checkpoint), {}, dtype="float32", device="cpu").config.in_decoder == 0


def test_a_plain_decoder_is_no_cepe(tiny_checkpoint: Path) -> None:
    message = rf"{tiny_checkpoint} has no encoder of CEPE \(cepe.json\); expected what `train cepe` made"
    with pytest.raises(InputError, match=message):
        open_system("cepe", str(tiny_checkpoint), {}, dtype="float32", device="cpu")
    with pytest.raises(InputError, match=message):
        opened(tiny_checkpoint)
    with pytest.raises(InputError, match=message):
        CepeSystemConfig.defaults(str(tiny_checkpoint))  # before the decoder is loaded
