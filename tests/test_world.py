"""The synthetic world keeps its promises."""

import gzip
import hashlib
import itertools
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from harness.data.sources import DataRoot
from harness.data.world import facts
from harness.data.world.facts import in_pairs
from harness.data.world.lexicon import lexicon
from harness.data.world.mirror import OPENING, SAME_RELATION_SIZES, WorldConfig, write_world
from harness.data.world.practice import Practice, Reading
from harness.data.world.tokenizer import build_tokenizer
from harness.errors import InputError
from harness.metrics import has_answer_dpr
from harness.protocol import Passage
from harness.train.rows import collate_tokens
from suites import same_relation


def read(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def reading(config: Reading, seed: int = 0) -> Practice:
    tokenizer = build_tokenizer()
    return Practice(config, tokenizer, lambda rows, rng: collate_tokens(rows, tokenizer.pad_token_id), seed=seed)


def test_words_are_unique_and_one_token_each() -> None:
    words = lexicon().words()
    assert len(set(words)) == len(words)
    tokenizer = build_tokenizer()
    assert all(len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1 for word in words)


def test_a_statement_is_eight_tokens() -> None:
    rng = random.Random(0)
    tokenizer = build_tokenizer()
    for _ in range(50):
        person = facts.draw_person(rng, "train")
        text = facts.state(rng, facts.draw_biography(rng, person, facts.draw_relations(rng)))
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 8 * facts.FACTS_PER_PASSAGE


@pytest.mark.parametrize(
    "text", ["The birthplace of", "Hello, wörld  two\nlines", "日本 é? a.b.c", "", "a </s> b", "x" * 500, "<0x0A><unk>"]
)
def test_no_text_is_lost(text: str) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]) == text


def test_training_never_names_a_test_person() -> None:
    tokenizer = build_tokenizer()
    batches = reading(Reading(), seed=1)
    words = lexicon()
    first = {name: i for i, name in enumerate(words.first_names)}
    last = {name: i for i, name in enumerate(words.last_names)}
    seen = 0
    for _ in range(10):
        for row in next(batches)["input_ids"]:
            spoken = tokenizer.decode(row, skip_special_tokens=True).replace(".", " ").replace("?", " ").split()
            for left, right in itertools.pairwise(spoken):
                if left in first and right in last:
                    seen += 1
                    assert not facts.is_test((first[left], last[right]))
    assert seen > 1000


def test_test_people_are_all_from_the_test_fold(world_root: Path) -> None:
    words = lexicon()
    titles = [row["title"].split() for row in read(world_root / "corpus" / "world_passages.jsonl.gz")]
    titles += [
        c["title"].split() for row in read(world_root / "ctxs" / "same_relation_n8.jsonl.gz") for c in row["ctxs"]
    ]
    for first, last in titles:
        assert facts.is_test((words.first_names.index(first), words.last_names.index(last)))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_hard_set_cannot_be_solved_by_the_relation_alone(world_root: Path, size: int) -> None:
    places, chances = Counter(), []
    for row in read(world_root / "ctxs" / f"same_relation_n{size}.jsonl.gz"):
        passages = tuple(Passage(id=c["id"], title=c["title"], text=c["text"]) for c in row["ctxs"])
        chances.append(facts.chance(passages, row["question"], row["answers"]))
        stated = [value for p in passages for value in facts.values_stated(p.text, row["question"])]
        assert len(stated) == size, "every passage states the asked relation"
        name = row["question"].rsplit(" of ", 1)[1]
        (place,) = [i for i, p in enumerate(passages) if name in p.text]
        assert has_answer_dpr(passages[place].text, row["answers"])
        places[place] += 1
    assert len(places) == size, "the right passage must be able to stand anywhere"
    assert min(chances) == 1 / size, "unless somebody else happens to have the same value"
    assert sum(chances) / len(chances) < 1.5 / size


def test_chance_is_the_score_of_a_reader_that_ignores_whose_value_it_is() -> None:
    relation = lexicon().relations[0]
    right = Passage(id="1", title="", text=f"The {relation.nouns[1]} of A B is C. The nothing of A B is C.")
    wrong = Passage(id="2", title="", text=f"Known {relation.nouns[0]} of D E was F.")
    silent = Passage(id="3", title="", text="The nothing of A B is C.")
    question = f"what is the {relation.nouns[0]} of A B"
    assert facts.chance((right, silent, wrong, wrong), question, ["C"]) == pytest.approx(1 / 3)
    assert facts.chance((right, wrong), question, ["C", "F"]) == 1
    assert facts.chance((wrong, wrong), question, ["C"]) == 0
    assert facts.chance((silent,), question, ["C"]) == 0
    assert facts.chance((), question, ["C"]) == 0


def test_values_are_drawn_evenly() -> None:
    rng = random.Random(3)
    n = 20_000
    drawn = Counter(facts.draw_biography(rng, (0, 1), [2]).facts[0][1] for _ in range(n))
    expected = n / len(lexicon().relations[2].values)
    chi_squared = sum((count - expected) ** 2 / expected for count in drawn.values())
    assert len(drawn) == len(lexicon().relations[2].values)
    assert chi_squared < 70  # 35 degrees of freedom: p < 0.0005 above this


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    config = WorldConfig(people=60, questions=10, documents=2, document_statements=40)

    def digests(folder: Path) -> dict[str, str]:
        write_world(config, folder)
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_a_complete_world_is_not_written_again(tmp_path: Path) -> None:
    config = WorldConfig(people=60, questions=10, documents=2, document_statements=40)
    write_world(config, tmp_path / "w")
    kept = tmp_path / "w" / "kept"
    kept.touch()
    write_world(config, tmp_path / "w")
    assert kept.exists()
    write_world(WorldConfig(seed=1, people=60, questions=10, documents=2, document_statements=40), tmp_path / "w")
    assert not kept.exists()


def test_batches_depend_on_their_position_alone() -> None:
    batches = reading(Reading(), seed=5)
    for _ in range(3):
        next(batches)
    state = batches.state_dict()
    expected = next(batches)
    again = reading(Reading(), seed=5)
    again.load_state_dict(state)
    got = next(again)
    assert all((got[name] == expected[name]).all() for name in expected)


def test_every_answer_and_its_end_is_supervised() -> None:
    tokenizer = build_tokenizer()
    config = Reading(sizes=((2, 3),), questions=4)
    batch = next(reading(config))
    for ids, labels, answers in zip(batch["input_ids"], batch["labels"], batch["is_answer"], strict=True):
        supervised = ids[answers].tolist()
        assert len(supervised) == 2 * config.questions
        assert supervised[1::2] == [tokenizer.eos_token_id] * config.questions
        assert (labels[answers] == ids[answers]).all()


def test_openings_tell_the_suites_apart() -> None:
    assert len(set(OPENING.values())) == 3


# Two people to a passage


def test_pairs_are_the_same_people_two_to_a_passage(tmp_path: Path) -> None:
    sizes: dict[str, int] = dict(people=120, questions=10, documents=2)
    pairs = write_world(WorldConfig(pairs=True, **sizes), tmp_path / "pairs")
    alone = write_world(WorldConfig(**sizes), tmp_path / "alone")
    for size in SAME_RELATION_SIZES:
        rows = read(pairs / "ctxs" / f"same_relation_n{size}.jsonl.gz")
        assert len(rows) == 10
        for row in rows:
            assert len(row["ctxs"]) == size
            people = [name for ctx in row["ctxs"] for name in ctx["title"].split(", ")]
            assert len(set(people)) == 2 * size
            for ctx in row["ctxs"]:
                first, second = ctx["title"].split(", ")
                assert ctx["text"].count(first) >= 4
                assert ctx["text"].count(second) >= 4
                assert ctx["text"].index(first) < ctx["text"].index(second)
            (asked,) = (name for name in people if name in row["question"])
            assert sum(asked in ctx["text"] for ctx in row["ctxs"]) == 1
    same = "hub/google-research-datasets/nq_open/nq_open/validation-00000-of-00001.parquet"
    assert (pairs / same).read_bytes() == (alone / same).read_bytes(), "the other suites are as they were"
    assert WorldConfig(pairs=True).name != WorldConfig().name


def test_of_an_odd_number_the_last_passage_stays_alone() -> None:
    three = [Passage(id=str(i), title=f"T{i}", text=f"Text {i}.") for i in range(3)]
    assert in_pairs(three) == [Passage(id="0+1", title="T0, T1", text="Text 0. Text 1."), three[2]]
    assert in_pairs([]) == []


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"{}\n"), gzip.compress(b"[1]\n"), gzip.compress(bytes(range(99)))[:30]],
    ids=["no gzip", "no row", "a list", "cut off"],  # gzip writes the time into its bytes
)
def test_a_damaged_file_of_the_hard_set_is_one_line(world_root: Path, tmp_path: Path, content: bytes) -> None:
    root = tmp_path / world_root.name
    shutil.copytree(world_root, root)
    (root / "ctxs" / "same_relation_n8.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match="is missing or damaged; write the world again"):
        same_relation.build("same_relation", DataRoot.open(root), passages=8, frozen=None, limit=None)
