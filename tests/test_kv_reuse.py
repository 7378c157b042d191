"""Key/value reuse: what is stitched together from stored passages is the decoder under the block mask, to the digit.

The reference is transformers' own forward on one row without padding, its mask written out here position by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from baselines import stages
from baselines.kv_reuse import CachedBlock, KvReuse, KvReuseConfig, assemble, move, read_apart
from baselines.kv_reuse_stages import FINETUNE, TAIL, BlockRecipe, block_mask, collate_blocks, read_blocks
from baselines.standard_rag import StandardRAG, StandardRAGConfig
from harness import prompts
from harness.data.world.practice import Reading
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model import decode
from harness.model.llama import KVCache, Llama
from harness.model.load import Decoder, load_decoder
from harness.protocol import Passage
from harness.train.loop import train
from harness.train.rows import Block, Row

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TOKENIZER = build_tokenizer()
PAD = TOKENIZER.pad_token_id
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
QUESTIONS = ["what is the rival of", "Name the", "what", "is was is"]


def random_model(kv_heads: int = 2, seed: int = 0, **changes: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = dict(
        vocab_size=len(TOKENIZER),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=12,
        max_position_embeddings=512,
        initializer_range=0.15,  # attention that is far from uniform, so that a wrong key shows
    )
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def decoder(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> Decoder:
    return Decoder(model=model, tokenizer=tokenizer, checkpoint="none", source="none")


def build(model: LlamaForCausalLM | None = None, window: int | None = None) -> KvReuse:
    return KvReuseConfig(template="tagged", max_positions=window).build(decoder(model or random_model()))


def standard(model: LlamaForCausalLM, window: int | None = None) -> StandardRAG:
    return StandardRAGConfig(template="tagged", max_positions=window).build(decoder(model))


def passages(*texts: str) -> list[Passage]:
    return [Passage(id=str(i), title="t", text=text) for i, text in enumerate(texts)]


def ragged() -> list[list[Passage]]:
    """Four rows of four, none, one and two passages of one to ten tokens."""
    return [
        passages("The rival of is", "was", "of of of The birthplace is was", ""),
        [],
        passages("is The was The was The was The was"),
        passages("rival", "The birthplace of"),
    ]


def blocks_of(row: Sequence[Passage]) -> list[list[int]]:
    """The start token and every passage."""
    return [[TOKENIZER.bos_token_id], *prompts.TAGGED.passage_ids(TOKENIZER, row)]


def tail_of(question: str) -> list[int]:
    return prompts.TAGGED.question_ids(TOKENIZER, [question])[0]


@torch.no_grad()
def reference(model: LlamaForCausalLM, blocks: list[list[int]], tail: list[int]) -> Tensor:
    """Logits (T, V) at every position of one row, each pair of positions decided by hand."""
    ids = [token for block in blocks for token in block] + tail
    owner = [index for index, block in enumerate(blocks) for _ in block] + [None] * len(tail)
    mask = torch.full((len(ids), len(ids)), float("-inf"))
    for query in range(len(ids)):
        for key in range(query + 1):
            if owner[query] is None or owner[query] == owner[key]:
                mask[query, key] = 0.0
    return model(torch.tensor([ids]), attention_mask=mask[None, None]).logits[0]


@torch.inference_mode()
def first_logits(system: KvReuse, questions: list[str], rows: list[list[Passage]]) -> Tensor:
    return system._reader(questions, system.encode(rows), 4).first()


def answers(system: KvReuse | StandardRAG, questions: list[str], rows: list[list[Passage]], n: int = 8) -> Tensor:
    columns = list(system.generate(questions, system.encode(rows), max_new_tokens=n))
    return torch.stack(columns, dim=1)


# What it computes


@pytest.mark.parametrize("rope", [None, LLAMA3, LINEAR], ids=["default", "llama3", "linear"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_are_those_of_a_full_forward_under_the_block_mask(kv_heads: int, rope: dict[str, object] | None) -> None:
    model = random_model(kv_heads, **({"rope_parameters": rope} if rope else {}))
    got = first_logits(build(model), QUESTIONS, ragged())
    expected = [reference(model, blocks_of(row), tail_of(q))[-1] for q, row in zip(QUESTIONS, ragged(), strict=True)]
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=1e-5)
    ids = [token for block in blocks_of(ragged()[0]) for token in block] + tail_of(QUESTIONS[0])
    unmasked = model(torch.tensor([ids])).logits[0, -1]
    assert (got[0] - unmasked).abs().max() > 1e-2, "a mask that makes no difference proves nothing"


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("questions", [QUESTIONS, ["what is"] * 4], ids=["ragged", "of-one-length"])
def test_decoding_token_by_token_is_the_full_forward(kv_heads: int, questions: list[str]) -> None:
    model = random_model(kv_heads, seed=1)
    system = build(model)
    with torch.inference_mode():
        reader = system._reader(questions, system.encode(ragged()), 6)
        logits = reader.first()
        said: list[list[int]] = [[] for _ in questions]
        for _ in range(5):
            token_B = logits.argmax(-1)
            for row, token in zip(said, token_B.tolist(), strict=True):
                row.append(token)
            logits = reader.then(token_B)
            expected = [
                reference(model, blocks_of(row), tail_of(q) + tokens)[-1]
                for q, row, tokens in zip(questions, ragged(), said, strict=True)
            ]
            torch.testing.assert_close(logits, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert len({token for row in said for token in row}) > 5, "a model that repeats one token proves nothing"


def test_generate_yields_the_most_likely_tokens() -> None:
    model = random_model(seed=1)
    got = answers(build(model), QUESTIONS, ragged(), 6)
    for q, row, tokens in zip(QUESTIONS, ragged(), got.tolist(), strict=True):
        logits = reference(model, blocks_of(row), tail_of(q) + tokens[:-1])
        assert logits[-len(tokens) :].argmax(-1).tolist() == tokens


def test_a_row_does_not_feel_its_neighbours() -> None:
    system = build(random_model(seed=2))
    together = first_logits(system, QUESTIONS, ragged())
    alone = [first_logits(system, [q], [row])[0] for q, row in zip(QUESTIONS, ragged(), strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)
    said = answers(system, QUESTIONS, ragged())
    for q, row, tokens in zip(QUESTIONS, ragged(), said, strict=True):
        assert torch.equal(answers(system, [q], [row])[0], tokens)


@pytest.mark.parametrize("with_start", [True, False])
def test_closed_book_is_standard_rag(with_start: bool) -> None:
    model, tokenizer = random_model(seed=3), build_tokenizer()
    if not with_start:
        tokenizer.bos_token = None
    ours = KvReuseConfig(template="tagged").build(decoder(model, tokenizer))
    theirs = StandardRAGConfig(template="tagged").build(decoder(model, tokenizer))
    rows: list[list[Passage]] = [[] for _ in QUESTIONS]
    assert len(ours.encode(rows).start) == with_start
    assert torch.equal(answers(ours, QUESTIONS, rows, 12), answers(theirs, QUESTIONS, rows, 12))


def test_a_decoder_without_start_token_reads_passages_too() -> None:
    model, tokenizer = random_model(seed=3), build_tokenizer()
    tokenizer.bos_token = None
    system = KvReuseConfig(template="tagged").build(decoder(model, tokenizer))
    got = first_logits(system, QUESTIONS, ragged())
    expected = [
        reference(model, blocks_of(row)[1:], tail_of(q))[-1] for q, row in zip(QUESTIONS, ragged(), strict=True)
    ]
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_a_passage_sees_neither_the_start_token_nor_what_stands_before_it() -> None:
    system = build()
    one, two = passages("The rival of", "is was is")
    ((_, after),) = system.encode([[one, two]]).passages
    (alone,) = read_apart(system.llama, [blocks_of([two])[1]], PAD)
    torch.testing.assert_close(after.keys_LGSD, alone.keys_LGSD, atol=1e-6, rtol=0)
    torch.testing.assert_close(after.values_LGSD, alone.values_LGSD, atol=1e-6, rtol=0)


def test_the_order_of_passages_moves_them_and_no_more() -> None:
    system = build(random_model(seed=4))
    one, two, twin = passages("The rival of", "is was is was", "The rival of")
    forward, backward = (system.encode([row]).passages[0] for row in ([one, two], [two, one]))
    assert all(torch.equal(a.keys_LGSD, b.keys_LGSD) for a, b in zip(forward, reversed(backward), strict=True))
    there, back = (first_logits(system, ["what is"], [row]) for row in ([one, two], [two, one]))
    assert (there - back).abs().max() > 1e-3, "positions do tell"
    assert torch.equal(
        first_logits(system, ["what is"], [[one, two, twin]]), first_logits(system, ["what is"], [[twin, two, one]])
    )


# What it stores


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_a_passage_is_encoded_the_same_in_any_batch(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    system = build(random_model(seed=5))
    monkeypatch.setattr(decode, "AT_ONCE", at_once)
    together = system.encode(ragged())
    assert [len(row) for row in together.passages] == [len(row) for row in ragged()]
    for row, cached in zip(ragged(), together.passages, strict=True):
        for passage, block in zip(row, cached, strict=True):
            ((alone,),) = system.encode([[passage]]).passages
            assert block.length == alone.length == len(blocks_of([passage])[1])
            torch.testing.assert_close(block.keys_LGSD, alone.keys_LGSD, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(block.values_LGSD, alone.values_LGSD, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rope", [None, LLAMA3, LINEAR], ids=["default", "llama3", "linear"])
@pytest.mark.parametrize("offset", [0, 1, 37, 400])
def test_moved_keys_are_those_of_the_block_read_there(offset: int, rope: dict[str, object] | None) -> None:
    model = random_model(**({"rope_parameters": rope} if rope else {}))
    llama, ids = Llama(model), tail_of("what is the rival of The birthplace")
    (block,) = read_apart(llama, [ids], PAD)
    keys = block.keys_LGSD[:, None].clone()
    move(llama, keys, torch.full((1, len(ids)), offset))
    with torch.no_grad():
        there = model(
            torch.tensor([ids]), position_ids=torch.arange(offset, offset + len(ids))[None], use_cache=True
        ).past_key_values
    for layer, moved in zip(there.layers, keys, strict=True):
        torch.testing.assert_close(moved, layer.keys, atol=3e-5, rtol=1e-5)
    for layer, values in zip(there.layers, block.values_LGSD, strict=True):
        torch.testing.assert_close(values[None], layer.values, atol=3e-5, rtol=1e-5)


def test_moving_sixteen_bit_keys_rounds_them_once() -> None:
    """Against fp64: the rounding of the result, and the fp32 angle's; not those of a 16-bit cosine on the way."""
    llama = Llama(random_model())
    torch.manual_seed(0)
    keys = torch.randn(1, 1, 2, 300, 12).bfloat16()
    exact, offset = keys.double(), torch.full((1, 300), 301)
    frequencies = 1 / 10000 ** (torch.arange(0, 12, 2, dtype=torch.float64) / 12)
    cos, sin = (f(301 * frequencies).repeat(2) for f in (torch.cos, torch.sin))
    left, right = exact.chunk(2, dim=-1)
    expected = exact * cos + torch.cat((-right, left), dim=-1) * sin
    move(llama, keys, offset)
    norm = (left**2 + right**2).sqrt().repeat(1, 1, 1, 1, 2)
    assert ((keys.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-4 * norm).all()


def test_what_was_in_the_memory_before_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(seed=6)
    clean = first_logits(build(model), QUESTIONS, ragged())
    fresh = Llama.new_cache

    def dirty(self: Llama, batch: int, capacity: int) -> KVCache:
        cache = fresh(self, batch, capacity)
        cache.keys.fill_(float("nan"))
        cache.values.fill_(float("nan"))
        return cache

    monkeypatch.setattr(Llama, "new_cache", dirty)
    assert torch.equal(first_logits(build(model), QUESTIONS, ragged()), clean)


def test_stored_passages_serve_again() -> None:
    system = build(random_model(seed=7))
    context = system.encode(ragged())
    kept = [block.keys_LGSD.clone() for row in context.passages for block in row]
    once, again = (torch.stack(list(system.generate(QUESTIONS, context, max_new_tokens=6)), 1) for _ in range(2))
    assert torch.equal(once, again)
    now = [block.keys_LGSD for row in context.passages for block in row]
    assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))


def test_a_cache_holds_its_blocks_and_room_for_more() -> None:
    system = build()
    lengths = [1, 4, 2]
    shape = 3, 2, 12

    def block(length: int) -> CachedBlock:
        return CachedBlock(*torch.randn(2, shape[0], shape[1], length, shape[2]))

    row = [block(length) for length in lengths]
    cache = assemble(system.llama, [row, row[:1]], room=5)
    assert (cache.length, cache.capacity, cache.padded) == (7, 12, True)
    assert cache.visible_BS[:, :7].tolist() == [[True] * 7, [False] * 6 + [True]]
    assert torch.equal(cache.values[:, 0, :, :7], torch.cat([b.values_LGSD for b in row], dim=2))
    assert torch.equal(cache.keys[:, 1, :, 6:7], row[0].keys_LGSD)
    assert not assemble(system.llama, [row, row], room=5).padded


def test_the_caller_is_not_left_in_inference_mode() -> None:
    system = build()
    context = system.encode([passages("is")])
    for _ in system.generate(["what"], context, max_new_tokens=3):
        assert not torch.is_inference_mode_enabled()


# What it costs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_bytes_are_those_of_the_passages_read(dtype: torch.dtype) -> None:
    system = build(random_model(kv_heads=2).to(dtype), window=1 + 5 + 4 + 6 + 4)  # room for the first two of three
    row = passages("of of of of", "is is is", "was was was was was")  # 5, 4 and 6 tokens with their tags
    (usage,) = system.usage(["what is the rival"], system.encode([row]), max_new_tokens=4)
    assert usage.passages_read == 2
    assert usage.stored_bytes == 3 * 2 * 2 * 12 * dtype.itemsize * (5 + 4)  # layers, keys and values, heads, width
    assert usage.decoder_positions == 1 + 5 + 4 + 6
    (closed,) = system.usage(["what"], system.encode([[]]), max_new_tokens=4)
    assert (closed.passages_read, closed.stored_bytes) == (0, 0)


@pytest.mark.parametrize("room", range(14, 40))
def test_the_prompt_is_as_long_as_standard_rags(room: int) -> None:
    model = random_model()
    question, rows = ["what is the rival"], [passages("of of of of", "is is is", "was was was was was")]
    ours, theirs = build(model, room), standard(model, room)
    (got,) = ours.usage(question, ours.encode(rows), max_new_tokens=4)
    (expected,) = theirs.usage(question, theirs.encode(rows), max_new_tokens=4)
    assert (got.decoder_positions, got.passages_read) == (expected.decoder_positions, expected.passages_read)
    read = rows[0][: got.passages_read]
    got_logits, expected_logits = (first_logits(ours, question, given) for given in (rows, [read]))
    torch.testing.assert_close(got_logits, expected_logits, atol=1e-5, rtol=1e-5)


def test_the_question_is_never_cut() -> None:
    system = build(window=11)
    system.check(["what is the rival"], max_new_tokens=4)
    with pytest.raises(InputError, match=r"needs 12 positions .* holds 11"):
        system.check(["what is the rival of"], max_new_tokens=4)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotary_embeddings_that_do_not_add_are_refused(rope: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{rope['rope_type']}.*expected one of: default, linear, llama3"):
        build(random_model(rope_parameters=rope))


# What it trains


def row_of(question: str, row: Sequence[Passage]) -> Row:
    made = Row(start=[TOKENIZER.bos_token_id], context=[Block(block[:1], block[1:]) for block in blocks_of(row)[1:]])
    made.say(tail_of(question))
    return made


def training_batch() -> dict[str, Tensor]:
    return collate_blocks([row_of(q, row) for q, row in zip(QUESTIONS, ragged(), strict=True)], PAD)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_what_is_trained_is_what_is_served(kv_heads: int) -> None:
    model = random_model(kv_heads, seed=8)
    batch = training_batch()
    with torch.no_grad():
        logits_BTV = read_blocks(model, batch)
    last_B = batch["attention_mask"].sum(-1) - 1
    trained = logits_BTV[torch.arange(len(last_B)), last_B]
    torch.testing.assert_close(first_logits(build(model), QUESTIONS, ragged()), trained, atol=1e-5, rtol=1e-5)


def test_training_reads_every_position_under_the_block_mask() -> None:
    model = random_model(seed=9)
    with torch.no_grad():
        logits_BTV = read_blocks(model, training_batch())
    assert logits_BTV.isfinite().all(), "padding sees something"
    for q, row, got in zip(QUESTIONS, ragged(), logits_BTV, strict=True):
        expected = reference(model, blocks_of(row), tail_of(q))
        torch.testing.assert_close(got[: len(expected)], expected, atol=1e-5, rtol=1e-5)


def test_a_passage_in_training_is_the_passage_alone_at_its_place() -> None:
    """No mask on this side at all, so that it shows if transformers gave ours another meaning."""
    model = random_model(seed=10)
    with torch.no_grad():
        got = read_blocks(model, training_batch())[0]
        at = 0
        for block in blocks_of(ragged()[0]):
            positions = torch.arange(at, at + len(block))[None]
            alone = model(torch.tensor([block]), position_ids=positions).logits[0]
            torch.testing.assert_close(got[at : at + len(block)], alone, atol=1e-5, rtol=1e-5)
            at += len(block)


def test_the_tail_sees_all_and_a_passage_nothing_of_another() -> None:
    model = random_model(seed=11)
    batch = training_batch()
    other = batch | {"input_ids": batch["input_ids"].clone()}
    owner = batch["block"][0]
    (position, *_) = (owner == 2).nonzero().flatten().tolist()
    other["input_ids"][0, position] = tail_of("rival")[0]
    assert other["input_ids"][0, position] != batch["input_ids"][0, position]
    with torch.no_grad():
        moved = (read_blocks(model, other) - read_blocks(model, batch)).abs().amax(-1)
    real = batch["attention_mask"][0].bool()
    assert (moved[0][(owner == TAIL) & real] > 1e-4).all()
    assert (moved[0][owner == 2] > 1e-4).all()
    assert not moved[0][(owner != TAIL) & (owner != 2)].any()
    assert not moved[1:].any()


def test_blocks_are_numbered_and_the_rest_is_tail() -> None:
    row = Row(start=[1], context=[Block([4], [9, 9]), Block([], []), Block([], [9])])
    row.say([7, 7])
    batch = collate_blocks([row, Row(start=[1], context=[], tail=[7], is_answer=[True])], PAD)
    assert batch["block"].tolist() == [[0, 1, 1, 1, 3, TAIL, TAIL], [0, *[TAIL] * 6]]
    assert batch["input_ids"].shape == batch["block"].shape
    sees = block_mask(batch["block"])[0].int().tolist()
    assert sees == [
        [1, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
    ]


def test_attention_that_takes_no_such_mask_is_no_way_to_train() -> None:
    model = random_model()
    model.set_attn_implementation("eager")
    with pytest.raises(AssertionError):
        read_blocks(model, training_batch())


def test_the_recipes_are_standard_rags_under_another_mask() -> None:
    on_text = {name for name in stages.FINETUNE if name.startswith("text-")}  # without passages to keep apart
    assert FINETUNE.keys() == stages.FINETUNE.keys() - on_text >= {"tiny", "tiny-short"}
    for scale, recipe in FINETUNE.items():
        ours, theirs = vars(recipe), vars(stages.FINETUNE[scale])
        assert {name for name in ours if ours[name] != theirs[name]} == {"init"}
        assert recipe.after == ("decoder", "pretrain", scale)


def test_batches_are_standard_rags_with_their_blocks() -> None:
    ours = next(FINETUNE["tiny"].batches(None, TOKENIZER))
    theirs = next(stages.FINETUNE["tiny"].batches(None, TOKENIZER))
    assert ours.keys() - theirs.keys() == {"block"}
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert not (ours["is_answer"] & (ours["block"] != TAIL)).any()


def small(steps: int = 3) -> BlockRecipe:
    recipe = FINETUNE["tiny-short"]
    return replace(
        recipe,
        data=Reading(sizes=((3, 2),), questions=2),
        stage=replace(recipe.stage, steps=steps, checkpoint_every=1),
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_resumed_stage_moves_the_weights_as_an_unbroken_one(tmp_path: Path, tiny_checkpoint: Path) -> None:
    recipe = small()

    def run(folder: str, stop_after: int | None = None) -> nn.Module:
        model, tokenizer = recipe.open(tiny_checkpoint)
        batches, loss = recipe.batches(model, tokenizer), recipe.loss()
        train(recipe.stage, model, batches, loss, tmp_path / folder, device=CPU, stop_after=stop_after)
        return model

    before = state(recipe.open(tiny_checkpoint)[0])
    whole = state(run("whole"))
    assert all(not torch.equal(whole[name], tensor) for name, tensor in before.items())
    run("broken", stop_after=1)
    assert all(torch.equal(whole[name], tensor) for name, tensor in state(run("broken")).items())


def test_the_mask_is_what_training_sees(tiny_checkpoint: Path) -> None:
    """Standard RAG's loss on the same batch is another, and so is its gradient."""
    recipe = small()
    model, tokenizer = recipe.open(tiny_checkpoint)
    batch = next(recipe.batches(model, tokenizer))
    ours, theirs = recipe.loss()(model, batch), stages.FINETUNE["tiny-short"].loss()(model, batch)
    assert not torch.equal(ours, theirs)


def test_an_export_is_an_ordinary_decoder_that_serves(tmp_path: Path, tiny_checkpoint: Path) -> None:
    recipe = small()
    model, tokenizer = recipe.open(tiny_checkpoint)
    folder = recipe.export(model, tokenizer, {"recipe": recipe}, tmp_path / "final")
    config = KvReuseConfig(**KvReuseConfig.defaults(str(folder)))
    assert config.template == "tagged"
    system = config.build(load_decoder(str(folder)), None)
    assert len(system.text(list(system.generate(QUESTIONS, system.encode(ragged()), max_new_tokens=4)))) == 4


def test_training_from_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="starts from a decoder"):
        small().open(None)
