"""REFRAG v2 as a system: the same answers every time, exactly as many chunks expanded as asked, whole passages only."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import ListSuite, spec
from torch import Tensor

from baselines.standard_rag import StandardRAG, StandardRAGConfig
from harness.data.world.facts import FACTS_PER_PASSAGE, ask, draw_biography, draw_person, draw_relations, state
from harness.data.world.tokenizer import TAGS, build_tokenizer
from harness.errors import InputError
from harness.model.chunking import split
from harness.model.load import load_decoder, random_decoder
from harness.protocol import Example, Passage
from harness.run import evaluate
from refrag_v2.checkpoint import save_refrag
from refrag_v2.model import Refrag, RefragConfig
from refrag_v2.policy import Policy, PolicyConfig
from refrag_v2.selectors import SELECTORS
from refrag_v2.system import Choice, RefragV2, RefragV2Config
from slurm.jobs.system import open_system

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = build_tokenizer()
K = 4  # half a fact
BETWEEN = [name for name in SELECTORS if name not in ("none", "all")]
EACH = pytest.mark.parametrize(
    ("select", "expand"),
    [("none", 0.0), *((name, 0.25) for name in BETWEEN), ("all", 1.0)],
    ids=lambda value: str(value),
)


def write(folder: Path, seed: int = 0, policy: bool = True, **config: Any) -> Path:
    """A random checkpoint that answers nonsense, and another nonsense for every other input."""
    model = Refrag(RefragConfig(**{"k": K} | config), random_decoder("tiny", seed=seed))
    if policy:
        model.policy = Policy(PolicyConfig(), model.decoder.config.hidden_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("decoder.", "encoder.")) and parameter.ndim == 2:
                parameter.mul_(5)  # at their random start all inputs look alike
            elif name.startswith("policy."):
                parameter.add_(0.1 * torch.randn_like(parameter))
    training = {"data": "world", "init": "random", "recipe": {"template": "tagged"}}
    return save_refrag(model, TOKENIZER, training, folder)


@pytest.fixture(scope="session")
def refrag_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("refrag") / "final")


def opened(checkpoint: Path, cache: Path | None = None, **settings: Any) -> RefragV2:
    config = RefragV2Config(**{"k": K, "template": "tagged"} | settings)
    return config.build(load_decoder(str(checkpoint)), cache)


def standard_rag(checkpoint: Path, **settings: Any) -> StandardRAG:
    return StandardRAGConfig(template="tagged", **settings).build(load_decoder(str(checkpoint)))


def texts(*said: str) -> list[Passage]:
    return [Passage(id=str(i), title="", text=text) for i, text in enumerate(said)]


def asked(seed: int, n: int, cut: bool = False) -> tuple[str, list[Passage], tuple[int, int]]:
    """A question of the world over ``n`` passages, and which of them and which of its facts answers it.

    ``cut`` ends every passage but the answering one in the middle of a chunk.
    """
    rng = random.Random(seed)
    people = [draw_biography(rng, draw_person(rng, "test"), draw_relations(rng)) for _ in range(n)]
    passage, fact = rng.randrange(n), rng.randrange(FACTS_PER_PASSAGE)
    question = ask(rng, people[passage], people[passage].facts[fact][0], "what is")
    said = [state(rng, person) for person in people]
    if cut:
        said = [text if i == passage else " ".join(text.split()[: rng.randrange(1, 28)]) for i, text in enumerate(said)]
    return question, texts(*said), (passage, fact)


def of(tokens: int) -> str:
    """A text of so many tokens."""
    return " ".join(["of"] * tokens)


def ragged() -> tuple[list[str], list[list[Passage]]]:
    """Questions over different numbers of passages of different lengths; one over none, one over an empty one."""
    drawn = [asked(seed, n, cut=True)[:2] for seed, n in enumerate((3, 1, 6, 2))]
    questions, rows = map(list, zip(*drawn, strict=True))
    return [*questions, questions[0], questions[1]], [*rows, [], texts("", "The rival of is was", "")]


def answers(
    system: RefragV2 | StandardRAG, questions: Sequence[str], rows: Sequence[Sequence[Passage]], n: int = 6
) -> list[str]:
    context: Any = system.encode(rows)
    return system.text(list(system.generate(questions, context, max_new_tokens=n)))


def choices(system: RefragV2, questions: Sequence[str], rows: Sequence[Sequence[Passage]]) -> list[Choice]:
    return system.choose(questions, system.encode(rows), 6)


def picked(choice: Choice) -> list[int]:
    """The expanded chunks, counted from the question's first."""
    return sorted(row - choice.rows.start for row in choice.expanded)


# The same every time


@EACH
def test_equal_calls_give_equal_answers(refrag_checkpoint: Path, select: str, expand: float) -> None:
    system = opened(refrag_checkpoint, select=select, expand=expand)
    questions, rows = ragged()
    first = answers(system, questions, rows)
    random.seed(1), torch.manual_seed(1)  # no generator of the process has a say
    assert answers(system, questions, rows) == first
    assert answers(opened(refrag_checkpoint, select=select, expand=expand), questions, rows) == first
    assert len(set(first)) > 3


@EACH
def test_a_batch_answers_as_its_questions_do(refrag_checkpoint: Path, select: str, expand: float) -> None:
    system = opened(refrag_checkpoint, select=select, expand=expand)
    questions, rows = ragged()
    together = answers(system, questions, rows)
    usage = system.usage(questions, system.encode(rows), max_new_tokens=6)
    for i, (question, row) in enumerate(zip(questions, rows, strict=True)):
        assert answers(system, [question], [row]) == together[i : i + 1]
        assert system.usage([question], system.encode([row]), max_new_tokens=6) == usage[i : i + 1]
    assert len(set(together)) > 3


@EACH
def test_cached_embeddings_are_the_bits_that_were_computed(
    refrag_checkpoint: Path, tmp_path: Path, select: str, expand: float
) -> None:
    """Cold, warm, and warm in another process; so the answers are the same too."""
    settings = {"select": select, "expand": expand}
    questions, rows = ragged()
    plain = opened(refrag_checkpoint, **settings)
    expected, said = plain.encode(rows), answers(plain, questions, rows)
    n = sum(map(len, rows))
    for start in ("cold", "warm"):
        system = opened(refrag_checkpoint, cache=tmp_path, **settings)
        for _ in range(2):
            context = system.encode(rows)
            assert context.passages == expected.passages
            assert context.embeddings_ME.dtype == expected.embeddings_ME.dtype
            assert torch.equal(context.embeddings_ME, expected.embeddings_ME)
        assert answers(system, questions, rows) == said
        assert system.cache is not None
        assert (system.cache.hits, system.cache.misses) == ((2 * n, n) if start == "cold" else (3 * n, 0))


def test_passages_cached_one_by_one_serve_any_question(refrag_checkpoint: Path, tmp_path: Path) -> None:
    plain, system = opened(refrag_checkpoint), opened(refrag_checkpoint, cache=tmp_path)
    _, rows = ragged()
    for passage in {passage.text: passage for row in rows for passage in row}.values():
        system.encode([[passage]])
    expected = plain.encode(rows).embeddings_ME
    torch.testing.assert_close(system.encode(rows).embeddings_ME, expected, atol=1e-5, rtol=0)
    assert system.cache is not None and system.cache.hits == sum(map(len, rows))


def test_checkpoints_share_a_cache_folder_and_no_embedding(refrag_checkpoint: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", seed=1)
    _, rows = ragged()
    for _ in range(2):
        for checkpoint in (refrag_checkpoint, other):
            cached = opened(checkpoint, cache=tmp_path / "cache").encode(rows).embeddings_ME
            assert torch.equal(cached, opened(checkpoint).encode(rows).embeddings_ME)


def test_random_choices_belong_to_the_question(refrag_checkpoint: Path) -> None:
    system = opened(refrag_checkpoint, select="random", expand=0.25)
    _, row, _ = asked(0, 4)
    questions = [asked(seed, 1)[0] for seed in range(8)]
    together = [picked(choice) for choice in choices(system, questions, [row] * 8)]
    again = [picked(choice) for choice in choices(system, questions[::-1], [row] * 8)][::-1]
    assert together == again
    assert len(set(map(tuple, together))) > 4, "drawn afresh for every question"
    assert len({i for picks in together for i in picks}) > 16, "from all of the chunks"


# How many are expanded


def half_up(share: float, n: int) -> int:
    return math.floor(Fraction(str(share)) * n + Fraction(1, 2))


@pytest.mark.parametrize(
    ("select", "expand"),
    [("none", 0.0), ("all", 1.0), *((select, expand) for select in BETWEEN for expand in (0.1, 0.25, 0.5))],
)
def test_exactly_the_share_is_expanded(refrag_checkpoint: Path, select: str, expand: float) -> None:
    """Of 0 to 12 chunks; and the rate that is recorded is that of what was really expanded."""
    system = opened(refrag_checkpoint, select=select, expand=expand)
    question = asked(0, 1)[0]
    rows = [texts(*[of(K - i % 2) for i in range(n)]) for n in range(13)]
    questions = [question] * len(rows)
    usages = system.usage(questions, system.encode(rows), max_new_tokens=6)
    for n, (row, choice, usage) in enumerate(zip(rows, choices(system, questions, rows), usages, strict=True)):
        count = half_up(expand, n)
        assert (usage.chunks, usage.chunks_expanded) == (n, count)
        p = count / n if n else 1.0
        assert usage.effective_rate == pytest.approx(K / (1 - p + K * p))
        assert len(picked(choice)) == count and set(picked(choice)) <= set(range(n))
        assert sum(code < 0 for code in choice.codes) == n - count
        assert usage.decoder_positions == len(choice.codes)
        expected = list(system.prompting.start)
        for i, (tag, chunk) in enumerate(system.prompting.passages([row])[0]):
            expected += [*tag, *(chunk if i in picked(choice) else [-1 - choice.rows[i]])]
        assert choice.codes == expected + system.prompting.questions([question])[0]
    assert half_up(0.1, 5) == half_up(0.25, 2) == 1 and half_up(0.25, 10) == 3, "halves go up"


def test_a_share_of_nothing_expands_nothing_and_of_everything_everything(refrag_checkpoint: Path) -> None:
    """Zero is no missing value, and close to one is not one."""
    questions, rows = ragged()
    tokens = [[ids for _, ids in row] for row in opened(refrag_checkpoint).prompting.passages(rows)]
    n = [sum(len(split(ids, K)) for ids in row) for row in tokens]
    for select, expand, compressed in (("none", 0.0, n), ("all", 1.0, [0] * len(n))):
        found = choices(opened(refrag_checkpoint, select=select, expand=expand), questions, rows)
        assert [sum(code < 0 for code in choice.codes) for choice in found] == compressed
    _, row, _ = asked(0, 13)  # 104 chunks, of which 0.99 leaves one
    (almost,) = choices(opened(refrag_checkpoint, select="first", expand=0.99), questions[:1], [row])
    assert sum(code < 0 for code in almost.codes) == 1


def test_everything_expanded_is_standard_rag(refrag_checkpoint: Path) -> None:
    system, reference = opened(refrag_checkpoint, select="all", expand=1.0), standard_rag(refrag_checkpoint)
    questions, rows = ragged()
    prompts, read = reference.layout.prompts(questions, reference.encode(rows), 6)
    found = choices(system, questions, rows)
    assert [choice.codes for choice in found] == prompts
    assert [len(choice.passages) for choice in found] == read
    assert answers(system, questions, rows) == answers(reference, questions, rows)
    assert answers(opened(refrag_checkpoint), questions, rows) != answers(reference, questions, rows)


# Which are expanded


def perplexities(system: RefragV2, row: Sequence[Passage]) -> list[float]:
    """Mean cross-entropy of every chunk after the start token, one forward of transformers' decoder each."""
    found = []
    for _, ids in system.prompting.passages([row])[0]:
        for chunk in split(ids, K):
            with torch.no_grad():
                logits = system.model.decoder(input_ids=torch.tensor([[TOKENIZER.bos_token_id, *chunk]])).logits[0]
            by_token = logits.double().log_softmax(-1)[:-1].gather(1, torch.tensor(chunk)[:, None])
            found.append(-float(by_token.mean()))
    return found


def test_perplexity_takes_the_hardest_or_the_easiest_chunks(refrag_checkpoint: Path) -> None:
    hardest, easiest = (opened(refrag_checkpoint, select=f"perplexity-{way}", expand=0.25) for way in ("desc", "asc"))
    questions, rows = ragged()
    down, up = choices(hardest, questions, rows), choices(easiest, questions, rows)
    for row, first, last in zip(rows, down, up, strict=True):
        by_hand = perplexities(hardest, row)
        assert first.scores == pytest.approx(by_hand, rel=1e-5)
        assert last.scores == [-score for score in first.scores]
        order = sorted(range(len(by_hand)), key=lambda i: by_hand[i])
        count = half_up(0.25, len(by_hand))
        assert picked(first) == sorted(order[len(order) - count :])
        assert picked(last) == sorted(order[:count])


def test_the_oracle_expands_the_chunks_of_the_asked_fact(refrag_checkpoint: Path) -> None:
    system = opened(refrag_checkpoint, select="oracle", expand=0.25)
    drawn = [asked(seed, n) for seed, n in enumerate((1, 2, 4, 3, 4, 4))]
    questions, rows, answering = zip(*drawn, strict=True)
    of_fact = 8 // K
    for choice, row, (passage, fact) in zip(choices(system, questions, rows), rows, answering, strict=True):
        first = of_fact * (FACTS_PER_PASSAGE * passage + fact)
        expected = [float(first <= i < first + of_fact) for i in range(of_fact * FACTS_PER_PASSAGE * len(row))]
        assert choice.scores == expected
        assert {first, first + 1} <= set(picked(choice))


def test_the_oracle_knows_no_fact_that_is_not_there(refrag_checkpoint: Path) -> None:
    system = opened(refrag_checkpoint, select="oracle", expand=0.25)
    (choice,) = choices(system, [asked(0, 1)[0]], [asked(1, 2)[1]])
    assert set(choice.scores) == {0.0}
    assert picked(choice) == [0, 1, 2, 3], "among equals the earlier ones"


def test_the_oracle_on_a_real_question_is_an_input_error(refrag_checkpoint: Path) -> None:
    system = opened(refrag_checkpoint, select="oracle", expand=0.25)
    with pytest.raises(InputError, match="synthetic world"):
        system.usage(["who wrote hamlet"], system.encode([texts("The rival of is was")]), max_new_tokens=6)


def test_the_oracle_refuses_an_evaluation_before_anything_is_written(refrag_checkpoint: Path, tmp_path: Path) -> None:
    """Or a run would be listed as not started for good. That only the last question is a real one changes nothing."""
    system = opened(refrag_checkpoint, select="oracle", expand=0.25)
    listed = [
        Example(id=str(i), question=question, answers=("a",), passages=())
        for i, question in enumerate([asked(0, 1)[0], "who wrote hamlet"])
    ]
    with pytest.raises(InputError, match="'oracle' expects questions of the synthetic world, got 'who wrote hamlet'"):
        evaluate(spec(), ListSuite(listed), system, tmp_path, experiment="test", device=torch.device("cpu"))
    assert not list(tmp_path.iterdir())


def test_all_questions_of_a_real_suite_report_the_same_usage(refrag_checkpoint: Path) -> None:
    system = opened(refrag_checkpoint)
    real = ["who wrote hamlet", "what is the language of new zealand"]
    usages = system.usage(real, system.encode([texts("The rival of is was")] * 2), max_new_tokens=6)
    assert len({type(usage) for usage in usages}) == 1


@torch.no_grad()
def test_the_policys_highest_logits_are_expanded(refrag_checkpoint: Path) -> None:
    system = opened(refrag_checkpoint, select="policy", expand=0.25)
    model = system.model
    assert model.policy is not None
    questions, rows = ragged()
    for question, row, choice in zip(questions, rows, choices(system, questions, rows), strict=True):
        chunks = system.encode([row]).embeddings_ME[None]
        if not chunks.shape[1]:
            assert picked(choice) == []
            continue
        ids = torch.tensor(system.prompting.questions([question]))
        logits = model.policy(
            model.decoder.model.embed_tokens(ids),
            torch.ones_like(ids, dtype=torch.bool),
            chunks,
            torch.ones(chunks.shape[:2], dtype=torch.bool),
        )[0]
        assert picked(choice) == sorted(logits.topk(half_up(0.25, len(logits))).indices.tolist())
        assert choice.scores == pytest.approx(logits.tolist(), abs=1e-4)


# How it is generated


@EACH
def test_a_prompt_starts_once(refrag_checkpoint: Path, select: str, expand: float) -> None:
    """Whatever is spliced in: a chunk that began a text of its own would put a start into the middle."""
    start = TOKENIZER.bos_token_id
    for choice in choices(opened(refrag_checkpoint, select=select, expand=expand), *ragged()):
        assert choice.codes[0] == start and choice.codes.count(start) == 1


@pytest.mark.parametrize("tag", TAGS)
def test_no_passage_can_forge_a_tag(refrag_checkpoint: Path, tag: str) -> None:
    system = opened(refrag_checkpoint, select="all", expand=1.0)
    (choice,) = choices(system, ["what is"], [texts(f"The rival {tag} of")])
    (honest,) = choices(system, ["what is"], [texts("The rival of")])
    token = TOKENIZER.convert_tokens_to_ids(tag)
    assert choice.codes.count(token) == honest.codes.count(token)


@EACH
def test_nothing_is_recorded_for_gradients(
    refrag_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, select: str, expand: float
) -> None:
    system = opened(refrag_checkpoint, select=select, expand=expand)
    seen: list[bool] = []

    def watched(name: str) -> None:
        original = getattr(system.llama, name)

        def call(*arguments: Any) -> Tensor:
            out: Tensor = original(*arguments)
            seen.append(torch.is_grad_enabled() or out.requires_grad)
            return out

        monkeypatch.setattr(system.llama, name, call)

    watched("prefill"), watched("decode_one_token")
    questions, rows = ragged()
    assert torch.is_grad_enabled() and any(p.requires_grad for p in system.model.parameters())
    context = system.encode(rows)
    columns = list(system.generate(questions, context, max_new_tokens=4))
    assert len(seen) == len(columns) > 1
    assert not any(seen) and not context.embeddings_ME.requires_grad
    assert torch.is_grad_enabled(), "and the caller is left as it was"


def test_the_encoder_does_not_drop_out(tmp_path: Path) -> None:
    system = opened(write(tmp_path / "roberta", policy=False, encoder="random:roberta-tiny"))
    dropout = [module for module in system.model.encoder.modules() if isinstance(module, torch.nn.Dropout)]
    assert any(module.p > 0 for module in dropout)
    assert not any(module.training for module in system.model.modules())
    _, rows = ragged()
    assert torch.equal(system.encode(rows).embeddings_ME, system.encode(rows).embeddings_ME)


# What finds room

QUESTION, NEW = "what is the rival", 4  # 6 tokens with "?" and the tag, and the start token before
ROOMS = range(11, 40)


def longest_fitting(needed: Sequence[int], room: int) -> int:
    """How many passages find room if the first n need ``needed[n - 1]`` positions."""
    return max((n for n, positions in enumerate(needed, 1) if 1 + positions + 6 + NEW <= room), default=0)


@pytest.mark.parametrize(
    ("select", "expand", "needed"),
    [
        ("none", 0.0, (3, 5, 9)),  # a tag, and 2, 1 and 3 chunks
        # Of 2, 3 and 6 chunks 1, 2 and 3 are expanded.
        ("first", 0.5, (3 + 3, 5 + 6, 9 + 9)),
        ("random", 0.5, (3 + 3, 5 + 6, 9 + 9)),
        ("all", 1.0, (9, 14, 27)),
    ],
)
def test_what_does_not_fit_is_left_out_whole(
    refrag_checkpoint: Path, select: str, expand: float, needed: tuple[int, ...]
) -> None:
    """From the end of the ranking, and the number of those that were read is said."""
    row = texts(of(2 * K), of(K), of(3 * K))
    unbounded = opened(refrag_checkpoint, select=select, expand=expand)
    answered = [answers(unbounded, [QUESTION], [row[:n]], NEW) for n in range(4)]
    for room in ROOMS:
        system = opened(refrag_checkpoint, select=select, expand=expand, max_positions=room)
        context = system.encode([row])
        (usage,) = system.usage([QUESTION], context, max_new_tokens=NEW)
        (choice,) = system.choose([QUESTION], context, NEW)
        n = longest_fitting(needed, room)
        assert usage.passages_read == n
        assert choice.passages == context.passages[0][:n]
        assert usage.chunks == sum((2, 1, 3)[:n])
        assert usage.decoder_positions == len(choice.codes) <= room - NEW
        assert choice.codes[-6:] == system.prompting.questions([QUESTION])[0], "the question is never cut"
        assert answers(system, [QUESTION], [row], NEW) == answered[n]


def test_everything_expanded_finds_room_where_standard_rag_does(refrag_checkpoint: Path) -> None:
    row = texts(of(K + 1), of(1), of(K + 2))
    for room in ROOMS:
        system = opened(refrag_checkpoint, select="all", expand=1.0, max_positions=room)
        reference = standard_rag(refrag_checkpoint, max_positions=room)
        (ours,) = system.usage([QUESTION], system.encode([row]), max_new_tokens=NEW)
        (theirs,) = reference.usage([QUESTION], reference.encode([row]), max_new_tokens=NEW)
        assert (ours.passages_read, ours.decoder_positions) == (theirs.passages_read, theirs.decoder_positions)


def test_a_question_that_never_fits_is_named(refrag_checkpoint: Path) -> None:
    system = opened(refrag_checkpoint, max_positions=11)
    system.check([QUESTION], max_new_tokens=NEW)
    with pytest.raises(InputError, match=r"'what is the rival of' needs 12 positions .* holds 11"):
        system.check(["what is the rival of"], max_new_tokens=NEW)


@EACH
def test_closed_book_is_standard_rags(refrag_checkpoint: Path, select: str, expand: float, tmp_path: Path) -> None:
    """Without passages there is nothing to compress, nothing to choose from and nothing to cache."""
    questions = [asked(seed, 1)[0] for seed in range(3)]
    expected = answers(standard_rag(refrag_checkpoint), questions, [[]] * 3)
    for cache in (None, tmp_path):
        system = opened(refrag_checkpoint, cache=cache, select=select, expand=expand)
        assert answers(system, questions, [[]] * 3) == expected
        for usage in system.usage(questions, system.encode([[]] * 3), max_new_tokens=6):
            assert (usage.passages_read, usage.chunks, usage.chunks_expanded, usage.effective_rate) == (0, 0, 0, 1.0)


# What a user can get wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expand": -0.1, "select": "first"}, "from 0 to 1, got -0.1"),
        ({"expand": 1.5, "select": "first"}, "from 0 to 1, got 1.5"),
        ({"expand": math.nan, "select": "first"}, "from 0 to 1, got nan"),
        ({"select": "polcy", "expand": 0.1}, "unknown selector 'polcy'.*'policy'.*valid choices: .*oracle.*random"),
        ({"select": "first", "expand": 0.0}, "expand=0.0 does not go with select='first'"),
        ({"select": "none", "expand": 0.5}, "expand=0.5 does not go with select='none'"),
        ({"select": "all", "expand": 0.99}, "expand=0.99 does not go with select='all'"),
        ({"select": "policy", "expand": 1.0}, "expand=1.0 does not go with select='policy'"),
        ({"k": 8}, "has chunks of 4 tokens; k=8 is not its k"),
        ({"template": "taged"}, "unknown prompt template 'taged'.*valid choices: bare, tagged, text"),
        ({"expand": "a lot"}, "setting expand: expected float, got 'a lot'"),
        ({"colour": "red"}, "unknown setting of refrag_v2 'colour'.*valid choices: expand, k"),
    ],
)
def test_settings_that_cannot_be_say_what_could(
    refrag_checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_system("refrag_v2", str(refrag_checkpoint), settings, dtype="float32", device="cpu")


def test_a_checkpoint_says_its_own_settings(refrag_checkpoint: Path) -> None:
    found = open_system(
        "refrag_v2", str(refrag_checkpoint), {"expand": "0.5", "select": "first"}, dtype="float32", device="cpu"
    )
    assert found.config == RefragV2Config(k=K, template="tagged", expand=0.5, select="first")


def test_without_a_policy_there_is_no_choosing_by_it(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "final", policy=False)
    with pytest.raises(InputError, match="no policy; run `train refrag_v2 policy`"):
        opened(checkpoint, select="policy", expand=0.5)


def test_a_plain_decoder_is_no_refrag(tiny_checkpoint: Path) -> None:
    message = "has no chunk encoder .*train refrag_v2"
    with pytest.raises(InputError, match=message):
        open_system("refrag_v2", str(tiny_checkpoint), {}, dtype="float32", device="cpu")
    with pytest.raises(InputError, match=message):
        opened(tiny_checkpoint)
