"""The world written to disk as a data root: the same files and schemas as the Hub's datasets.

    root.json                                          name, seed, sizes; written last: its presence means complete
    hub/google-research-datasets/nq_open/              questions "what is the ... of ..."
    hub/mandarjoshi/trivia_qa/rc.nocontext/            questions "Name the ... of ...", several aliases
    hub/akariasai/PopQA/test.tsv                       questions "What is the ... of ...", with popularity
    hub/McGill-NLP/TopiOCQA/                           conversations about two people, four questions each
    hub/ccdv/arxiv-summarization/document/             articles about eight people, with abstracts
    hub/DKYoon/SlimPajama-6B/                          long text
    corpus/world_passages.jsonl.gz                     one passage per test person
    qrels/{nq,triviaqa,popqa,topiocqa}.gold.tsv        the passage that answers each question
    ctxs/same_relation_n{2,4,8}.jsonl.gz               the hard set, passages given

The same seed gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.data.sources import question_id
from harness.data.world import PREFIX
from harness.data.world.facts import (
    FACTS_PER_PASSAGE,
    Biography,
    Person,
    ask,
    draw_biography,
    draw_namesake,
    draw_person,
    draw_relations,
    in_pairs,
    state,
)
from harness.data.world.lexicon import lexicon
from harness.protocol import Passage

WORLD_VERSION = 2
OPENING = {"nq": "what is", "triviaqa": "Name", "popqa": "What is"}
OPENINGS = tuple(OPENING.values())
SAME_RELATION_SIZES = (2, 4, 8)
PEOPLE_PER_CONVERSATION = 2
PEOPLE_PER_ARTICLE = 8


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Sizes of the test world. Training draws its own people and never reads this.

    With ``pairs`` a passage of the same-relation set tells of two people: room for chunks of 64 tokens.
    """

    seed: int = 0
    people: int = 2000
    questions: int = 500
    documents: int = 40
    document_statements: int = 400
    pairs: bool = False

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.seed}{'-pairs' if self.pairs else ''}"


def write_world(config: WorldConfig, folder: Path) -> Path:
    """Write the root under ``folder`` unless the same world is there already; returns ``folder``."""
    header = {"name": config.name, "version": WORLD_VERSION, **asdict(config)}
    marker = folder / "root.json"
    if marker.exists() and json.loads(marker.read_text()) == header:
        return folder
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    _write(config, temporary)
    (temporary / "root.json").write_text(json.dumps(header, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


def _write(config: WorldConfig, root: Path) -> None:
    rng = random.Random(f"world-{config.seed}")
    biographies = _population(rng, config.people)
    popularity = [int(1_000_000 / rank) for rank in range(1, config.people + 1)]
    texts = [state(rng, biography) for biography in biographies]
    _write_gzip(
        root / "corpus" / "world_passages.jsonl.gz",
        (
            {"id": str(index), "title": biography.name, "text": text}
            for index, (biography, text) in enumerate(zip(biographies, texts, strict=True), start=1)
        ),
    )

    # Every suite asks about other (person, relation) pairs; in no order that a row number could betray.
    pairs = [(index, relation) for index, biography in enumerate(biographies) for relation, _ in biography.facts]
    rng.shuffle(pairs)
    assert len(pairs) >= 3 * config.questions, "the world has fewer facts than its suites have questions"
    chunks = [pairs[i * config.questions : (i + 1) * config.questions] for i in range(3)]
    asked_ids = {
        "nq": _write_nq(root, rng, [(biographies[p], r) for p, r in chunks[0]]),
        "triviaqa": _write_triviaqa(root, rng, [(biographies[p], r) for p, r in chunks[1]]),
        "popqa": _write_popqa(root, rng, [(biographies[p], r, popularity[p]) for p, r in chunks[2]]),
    }
    (root / "qrels").mkdir()
    for (suite, ids), chunk in zip(asked_ids.items(), chunks, strict=True):
        lines = [f"{name}\t0\t{person + 1}\t1\n" for name, (person, _) in zip(ids, chunk, strict=True)]
        (root / "qrels" / f"{suite}.gold.tsv").write_text("".join(lines))
    for size in SAME_RELATION_SIZES:
        _write_same_relation(root, rng, config, size)
    _write_long_text(root, rng, config)
    # With draws of their own: what stands above is as it was in version 1, byte for byte.
    _write_conversations(root, random.Random(f"conversations-{config.seed}"), config, biographies)
    _write_articles(root, random.Random(f"articles-{config.seed}"), config)


def _population(rng: random.Random, n: int) -> list[Biography]:
    """n different test people, half of them namesakes of an earlier one."""
    people: list[Person] = []
    taken: set[Person] = set()
    while len(people) < n:
        near = people and rng.random() < 0.5
        person = draw_namesake(rng, rng.choice(people), "test") if near else draw_person(rng, "test")
        if person not in taken:
            taken.add(person)
            people.append(person)
    return [draw_biography(rng, person, draw_relations(rng)) for person in people]


def _write_nq(root: Path, rng: random.Random, asked: list[tuple[Biography, int]]) -> list[str]:
    """Write the dataset; returns the questions' ids, as do the next two."""
    rows = [{"question": ask(rng, b, r, OPENING["nq"]), "answer": [b.value(r)]} for b, r in asked]
    folder = root / "hub" / "google-research-datasets" / "nq_open"
    _write_parquet(folder / "nq_open" / "validation-00000-of-00001.parquet", rows)
    _write_card(folder, "nq_open", "validation", "nq_open/validation-*", len(rows))
    return [question_id(str(row["question"])) for row in rows]


def _write_triviaqa(root: Path, rng: random.Random, asked: list[tuple[Biography, int]]) -> list[str]:
    rows = []
    for number, (biography, relation) in enumerate(asked):
        value = biography.value(relation)
        rows.append(
            {
                "question": ask(rng, biography, relation, OPENING["triviaqa"]) + "?",
                "question_id": f"world_{number}",
                "question_source": "the synthetic world",
                "entity_pages": {"doc_source": [], "filename": [], "title": [], "wiki_context": []},
                "search_results": {
                    "description": [], "filename": [], "rank": [], "title": [], "url": [], "search_context": [],
                },
                "answer": {
                    "aliases": [value, value.upper(), f"The {value}"],
                    "normalized_aliases": [value.lower()],
                    "matched_wiki_entity_name": "",
                    "normalized_matched_wiki_entity_name": "",
                    "normalized_value": value.lower(),
                    "type": "WikipediaEntity",
                    "value": value,
                },
            }
        )  # fmt: skip
    folder = root / "hub" / "mandarjoshi" / "trivia_qa"
    _write_parquet(folder / "rc.nocontext" / "validation-00000-of-00001.parquet", rows, _triviaqa_schema())
    _write_card(folder, "rc.nocontext", "validation", "rc.nocontext/validation-*", len(rows))
    return [str(row["question_id"]) for row in rows]


def _triviaqa_schema() -> Any:
    """The columns of trivia_qa rc.nocontext as the Hub types them; most of them are empty here as they are there."""
    import pyarrow as pa

    texts = pa.list_(pa.string())
    return pa.schema(
        [
            ("question", pa.string()),
            ("question_id", pa.string()),
            ("question_source", pa.string()),
            ("entity_pages", pa.struct([(k, texts) for k in ("doc_source", "filename", "title", "wiki_context")])),
            (
                "search_results",
                pa.struct(
                    [("description", texts), ("filename", texts), ("rank", pa.list_(pa.int32()))]
                    + [(k, texts) for k in ("title", "url", "search_context")]
                ),
            ),
            (
                "answer",
                pa.struct(
                    [("aliases", texts), ("normalized_aliases", texts)]
                    + [
                        (k, pa.string())
                        for k in (
                            "matched_wiki_entity_name",
                            "normalized_matched_wiki_entity_name",
                            "normalized_value",
                            "type",
                            "value",
                        )
                    ]
                ),
            ),
        ]
    )


def _write_popqa(root: Path, rng: random.Random, asked: list[tuple[Biography, int, int]]) -> list[str]:
    import pandas as pd

    rows = []
    for number, (biography, relation, popularity) in enumerate(asked):
        value = biography.value(relation)
        name = lexicon().relations[relation].name
        rows.append(
            {
                "id": number,
                "subj": biography.name,
                "prop": name,
                "obj": value,
                "subj_id": biography.person[0] * len(lexicon().last_names) + biography.person[1],
                "prop_id": relation,
                "obj_id": relation * len(lexicon().relations[relation].values) + dict(biography.facts)[relation],
                "s_aliases": "[]",
                "o_aliases": "[]",
                "s_uri": "",
                "o_uri": "",
                "s_wiki_title": biography.name,
                "o_wiki_title": value,
                "s_pop": popularity,
                "o_pop": popularity,
                "question": ask(rng, biography, relation, OPENING["popqa"]) + "?",
                "possible_answers": json.dumps([value]),
            }
        )
    folder = root / "hub" / "akariasai" / "PopQA"
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "test.tsv", sep="\t", index=False)
    _write_card(folder, "default", "test", "test.tsv", len(rows), extra='  sep: "\\t"\n')
    return [f"popqa_{row['id']}" for row in rows]


def _write_same_relation(root: Path, rng: random.Random, config: WorldConfig, size: int) -> None:
    """Questions with ``size`` passages that all state the asked relation, the right one at a random place."""
    rows = []
    for number in range(config.questions):
        people = [draw_person(rng, "test")]
        while len(people) < (2 * size if config.pairs else size):
            near = rng.random() < 0.5
            other = draw_namesake(rng, people[0], "test") if near else draw_person(rng, "test")
            if other not in people:
                people.append(other)
        relations = draw_relations(rng)
        asked, *others = (draw_biography(rng, person, relations) for person in people)
        relation = rng.choice(relations)
        group = [asked, *others]
        rng.shuffle(group)
        passages = [
            Passage(id=f"{number}-{place}", title=b.name, text=state(rng, b)) for place, b in enumerate(group)
        ]
        told = in_pairs(passages) if config.pairs else passages
        ctxs = [{"id": p.id, "title": p.title, "text": p.text, "score": None} for p in told]
        question = ask(rng, asked, relation, OPENING["nq"])
        rows.append(
            {"id": f"same_{size}_{number}", "question": question, "answers": [asked.value(relation)], "ctxs": ctxs}
        )
    _write_gzip(root / "ctxs" / f"same_relation_n{size}.jsonl.gz", rows)


def _write_conversations(
    root: Path, rng: random.Random, config: WorldConfig, biographies: list[Biography]
) -> None:
    """Conversations in the columns of ``harness.data.conversations``, and their gold passages.

    Only the first question about a person names them; the others leave the name out.
    """
    rows: list[dict[str, Any]] = []
    gold: list[str] = []
    turns = PEOPLE_PER_CONVERSATION * FACTS_PER_PASSAGE
    for number in range(1, 1 + max(1, config.questions // turns)):
        context: list[str] = []
        for person in rng.sample(range(len(biographies)), PEOPLE_PER_CONVERSATION):
            biography = biographies[person]
            for place, (relation, _) in enumerate(rng.sample(biography.facts, FACTS_PER_PASSAGE)):
                rewrite = ask(rng, biography, relation, OPENING["nq"])
                question = rewrite if place == 0 else rewrite.removesuffix(f" of {biography.name}")
                turn = len(context) // 2 + 1
                rows.append(
                    {
                        "Conversation_no": number,
                        "Turn_no": turn,
                        "Question": question,
                        "Context": list(context),
                        "Answer": biography.value(relation),
                        "Rewrite": rewrite,
                    }
                )
                gold.append(f"topiocqa_{number}_{turn}\t0\t{person + 1}\t1\n")
                context += [question, biography.value(relation)]
    folder = root / "hub" / "McGill-NLP" / "TopiOCQA"
    _write_parquet(folder / "data" / "validation-00000-of-00001.parquet", rows)
    _write_card(folder, "default", "validation", "data/validation-*", len(rows))
    (root / "qrels" / "topiocqa.gold.tsv").write_text("".join(gold))


def _write_articles(root: Path, rng: random.Random, config: WorldConfig) -> None:
    """Articles of eight people's statements, whose abstract is the first statement about each of them."""
    rows = []
    for _ in range(max(1, config.questions // 10)):
        people: list[Person] = []
        while len(people) < PEOPLE_PER_ARTICLE:
            if (person := draw_person(rng, "test")) not in people:
                people.append(person)
        told = [state(rng, draw_biography(rng, person, draw_relations(rng))) for person in people]
        abstract = " ".join(text[: text.index(".") + 1] for text in told)
        rows.append({"article": " ".join(told), "abstract": abstract})
    folder = root / "hub" / "ccdv" / "arxiv-summarization"
    _write_parquet(folder / "document" / "validation-00000-of-00001.parquet", rows)
    _write_card(folder, "document", "validation", "document/validation-*", len(rows))


def _write_long_text(root: Path, rng: random.Random, config: WorldConfig) -> None:
    """Documents in which people recur, so that a longer context tells more about the next statement."""
    folder = root / "hub" / "DKYoon" / "SlimPajama-6B"
    for split, n in (("train", config.documents), ("validation", max(1, config.documents // 10))):
        rows = []
        for index in range(n):
            cast = [draw_biography(rng, draw_person(rng, "train"), draw_relations(rng)) for _ in range(32)]
            statements = [state(rng, rng.choice(cast)) for _ in range(config.document_statements // 4)]
            meta = {"redpajama_set_name": "RedPajamaBook" if index % 2 else "RedPajamaArXiv"}
            rows.append({"text": " ".join(statements), "meta": meta, "__index_level_0__": index})
        _write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows)
    splits = {"train": config.documents, "validation": max(1, config.documents // 10)}
    _write_card_splits(folder, "default", {split: (f"data/{split}-*", rows) for split, rows in splits.items()})


def _write_parquet(path: Path, rows: list[dict[str, Any]], schema: Any = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _write_gzip(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def _write_card(folder: Path, config: str, split: str, pattern: str, rows: int, extra: str = "") -> None:
    _write_card_splits(folder, config, {split: (pattern, rows)}, extra)


def _write_card_splits(folder: Path, config: str, splits: dict[str, tuple[str, int]], extra: str = "") -> None:
    """The dataset card: which files are which split, and how many rows each must have."""
    files = "".join(f"  - split: {split}\n    path: {pattern}\n" for split, (pattern, _) in splits.items())
    # A count is only read beside a size; the size itself is not checked.
    counts = "".join(
        f"  - name: {split}\n    num_bytes: {sum(file.stat().st_size for file in folder.glob(pattern))}\n"
        f"    num_examples: {rows}\n"
        for split, (pattern, rows) in splits.items()
    )
    (folder / "README.md").write_text(
        f"---\ndataset_info:\n  config_name: {config}\n  splits:\n{counts}"
        f"configs:\n- config_name: {config}\n  data_files:\n{files}{extra}  default: true\n---\n"
        "Written by the synthetic world of refrag-bench; nothing in it is true.\n"
    )
