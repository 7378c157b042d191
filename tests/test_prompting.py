"""A prompt template bound to a decoder: what fits, what is too long, and what an answer says."""

from collections.abc import Iterator
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from byte_level import byte_level_tokenizer
from transformers import PreTrainedTokenizerFast

from harness import prompts
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.model.load import Decoder
from harness.model.prompting import Prompting
from harness.protocol import Passage

WINDOW = 100


def decoder(tokenizer: PreTrainedTokenizerFast) -> Decoder:
    """No weights are needed here, only how many positions they have."""
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=WINDOW))
    return Decoder(model=model, tokenizer=tokenizer, checkpoint="none", source="none")


@pytest.fixture
def prompting() -> Prompting:
    return Prompting("tagged", None, decoder(build_tokenizer()))


def passages(*texts: str) -> list[Passage]:
    return [Passage(id=str(i), title="t", text=text) for i, text in enumerate(texts)]


def test_the_window_is_the_decoders_unless_it_is_bounded() -> None:
    assert Prompting("tagged", None, decoder(build_tokenizer())).window == WINDOW
    assert Prompting("tagged", 7, decoder(build_tokenizer())).window == 7


def test_passages_stay_in_their_rows(prompting: Prompting) -> None:
    rows = [passages("The rival of", ""), [], passages("is"), passages("was of", "is", "The")]
    got = prompting.passages(rows)
    tag = prompting.tokenizer.convert_tokens_to_ids("<passage>")
    expected = [[([tag], prompts.text_ids(prompting.tokenizer, [p.text])[0]) for p in row] for row in rows]
    assert got == expected
    assert prompting.passages([[]]) == [[]]


def test_markup_and_text_together_are_the_templates_block(prompting: Prompting) -> None:
    row = passages("The rival of", "x y")
    joined = [tag + text for tag, text in prompting.passages([row])[0]]
    assert joined == prompts.TAGGED.passage_ids(prompting.tokenizer, row)


@pytest.mark.parametrize("lengths", [[], [5], [5, 4, 6], [0, 0, 3], [90, 1, 1], [3, 95, 1]])
@pytest.mark.parametrize("window", range(8, 30, 3))
def test_passages_fit_from_the_front_and_whole(lengths: list[int], window: int) -> None:
    """A later, shorter one does not slip in after one that found no room."""
    prompting = Prompting("tagged", window, decoder(build_tokenizer()))
    question, new = [1, 2, 3], 4
    fixed = len(prompting.start) + len(question) + new
    assert len(prompting.start) == 1
    ends = list(accumulate(lengths))
    expected = sum(fixed + end <= window for end in ends)
    assert prompting.fitting(lengths, question, new) == expected


def test_the_longest_question_that_passes_fills_the_window() -> None:
    tokenizer = build_tokenizer()
    question = "what is the rival"  # 4 tokens, then "?" and <answer>; the start token stands before
    Prompting("tagged", 11, decoder(tokenizer)).check([question], 4)
    with pytest.raises(InputError, match=r"'what is the rival' needs 11 positions .* holds 10"):
        Prompting("tagged", 10, decoder(tokenizer)).check(["what is", question, question + " of of"], 4)


def test_a_question_that_passes_the_check_leaves_no_room_below_zero(prompting: Prompting) -> None:
    (block,) = prompting.questions(["what is the rival"])
    room = WINDOW - len(prompting.start) - len(block)
    prompting.check(["what is the rival"], room)
    assert prompting.fitting([1], block, room) == 0
    assert prompting.fitting([0], block, room) == 1


def columns(ids: list[list[int]]) -> Iterator[torch.Tensor]:
    return iter(torch.tensor(ids).T)


def test_columns_become_the_answers_of_their_rows(prompting: Prompting) -> None:
    tokenizer = prompting.tokenizer
    one, two = (prompts.text_ids(tokenizer, [text])[0] for text in ("The rival", "is"))
    end = tokenizer.eos_token_id
    rows = [[*one, end], [*two, end, prompting.pad_id]]
    assert prompting.text(list(columns(rows))) == ["The rival", "is"]


def test_a_text_template_cuts_at_its_stop() -> None:
    prompting = Prompting("text", None, decoder(byte_level_tokenizer()))
    ids = prompts.text_ids(prompting.tokenizer, [" Mirel Tovan\nQuestion: x"])
    assert prompting.text(list(columns(ids))) == ["Mirel Tovan"]


def test_a_tokenizer_without_padding_pads_with_its_first_stop() -> None:
    """LLaMA's tokenizers have no padding token; what fills a finished row must not show in its answer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    assert tokenizer.pad_token_id is None
    prompting = Prompting("text", None, decoder(tokenizer))
    assert prompting.pad_id == prompting.stop_ids[0] == tokenizer.eos_token_id
    assert Prompting("tagged", None, decoder(build_tokenizer())).pad_id == build_tokenizer().pad_token_id
    rows = [[*prompts.text_ids(tokenizer, ["is"])[0], *[prompting.pad_id] * 3]]
    assert prompting.text(list(columns(rows))) == ["is"]


def test_an_unknown_template_names_the_valid_ones() -> None:
    with pytest.raises(InputError, match="tagged, text"):
        Prompting("tagd", None, decoder(build_tokenizer()))


def test_a_tokenizer_that_can_neither_pad_nor_end_is_refused() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(InputError, match="got neither"):
        Prompting("bare", None, decoder(tokenizer))
