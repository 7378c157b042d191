"""Log-perplexity on text, from the files of a text to its tables: exact windows, honest means, resumable runs."""

from __future__ import annotations

import gzip
import json
import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cli.main import main
from harness.data.text import Text, TextConfig, open_text, prepare
from harness.data.text_practice import PASSAGE, NextParagraph, NextToken, Repeating, draw_window
from harness.data.world.practice import Growing
from harness.errors import InputError
from harness.train.text_scales import TEXT_SCALES
from results.experiments import perplexity as drawn
from results.records import read_records
from slurm.jobs.perplexity import PerplexityJob
from slurm.jobs.text import TextJob
from slurm.jobs.train import TrainJob
from suites.perplexity import PerplexitySuite
from suites.reconstruction import ReconstructionSuite

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "tu", "né") for b in ("rn", "sel", "vo", "x", "日", "pp ")]


def document(seed: int, words: int) -> str:
    """Words of a topic of its own, so that the context tells something about what follows it."""
    rng = random.Random(seed)
    return " ".join(rng.choices(rng.sample(WORDS, 6), k=words))


def write_text(folder: Path, documents: int = 6, words: int = 2500) -> Path:
    """Two sets and two splits in SlimPajama's schema, one split of them gzipped; a document too short for a window."""
    (folder / "train").mkdir(parents=True)
    rows = [
        {"text": document(i, words), "meta": {"redpajama_set_name": name}}
        for i, name in enumerate(["RedPajamaBook", "RedPajamaArXiv"] * documents)
    ]
    with gzip.open(folder / "train" / "part.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[4:])
    short = {"text": "short <s> </s>", "meta": {"redpajama_set_name": "RedPajamaBook"}}
    with gzip.open(folder / "validation-0.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in [*rows[:4], short])
    return folder


CONFIG = TextConfig(vocabulary=400)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("source") / "text")


@pytest.fixture(scope="module")
def text(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Text:
    return open_text(prepare(str(source), CONFIG, tmp_path_factory.mktemp("runs")))


def suite(text: Text, **changes: Any) -> PerplexitySuite:
    settings: dict[str, Any] = dict(set="book", context=128, output=16, outputs=(4, 16), longest=256)
    return PerplexitySuite(text=text, **settings | changes)


# --- the text


def test_every_document_is_there_once_and_comes_back_from_its_ids(text: Text) -> None:
    tokenizer = text.tokenizer()
    for split, first, last in (("validation", 0, 4), ("train", 4, 12)):
        for name, offset in (("book", 0), ("arxiv", 1)):
            ids, borders = text.ids(split, name)
            said = [tokenizer.decode(ids[a:b].tolist()) for a, b in pairwise(borders)]
            expected = [document(i, 2500) for i in range(first + offset, last, 2)]
            assert said == [*expected, *(["short <s> </s>"] if (split, name) == ("validation", "book") else [])]
            assert text.counts[split][name]["tokens"] == len(ids) == borders[-1]
            assert text.counts[split][name]["documents"] == len(said)


def test_no_text_spells_a_special_token(text: Text) -> None:
    specials = text.tokenizer().all_special_ids
    assert len(specials) == 3
    for split, sets in text.counts.items():
        for name in sets:
            assert not np.isin(text.ids(split, name)[0], specials).any()


def test_a_prepared_text_is_named_after_its_bytes_and_settings(source: Path, tmp_path: Path) -> None:
    one = prepare(str(source), CONFIG, tmp_path)
    written = (one / "manifest.json").stat().st_mtime_ns
    assert prepare(str(source), CONFIG, tmp_path) == one
    assert (one / "manifest.json").stat().st_mtime_ns == written, "what is there is not made again"
    assert prepare(str(source), replace(CONFIG, vocabulary=390), tmp_path) != one
    other = write_text(tmp_path / "other", words=2501)
    assert prepare(str(other), CONFIG, tmp_path) != one


def test_a_prepared_text_is_taken_as_it_is_where_its_settings_fit(text: Text, tmp_path: Path) -> None:
    job = TextJob(data=str(text.folder), runs=tmp_path, config=CONFIG)
    assert job.run() == job.folder == text.folder
    assert not any(tmp_path.iterdir())
    with pytest.raises(InputError, match="was prepared as .*'vocabulary': 400.*; expected .*'vocabulary': 390"):
        TextJob(data=str(text.folder), runs=tmp_path, config=replace(CONFIG, vocabulary=390)).run()


def test_wrong_sources_are_told_in_one_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"expected files train\*\.parquet or \.jsonl"):
        prepare(str(tmp_path / "empty"), CONFIG, tmp_path)
    with pytest.raises(InputError, match="missing column meta.set; columns found: text, meta"):
        prepare(str(source), replace(CONFIG, set_column="meta.set"), tmp_path / "runs")
    with pytest.raises(InputError, match="expected a vocabulary of 259"):
        TextConfig(vocabulary=258)
    with pytest.raises(InputError, match="expected a prepared text"):
        Text(tmp_path)


# --- what is trained on


def test_windows_lie_in_one_document_and_come_from_every_place(text: Text) -> None:
    documents = [
        set(map(tuple, np.lib.stride_tricks.sliding_window_view(text.ids("train", name)[0][a:b], 40)))
        for name in text.sets
        for a, b in pairwise(text.ids("train", name)[1])
    ]
    rng = random.Random(0)
    drawn_from = [0] * len(documents)
    for _ in range(400):
        window = draw_window(text, rng, 40)
        (number,) = [i for i, whole in enumerate(documents) if tuple(window) in whole][:1]
        drawn_from[number] += 1
    assert min(drawn_from) > 20, f"every document is drawn from, in proportion to its length: {drawn_from}"


def test_exercises_lay_out_context_and_answer(text: Text) -> None:
    tokenizer, rng = text.tokenizer(), random.Random(1)
    (row, *others) = NextToken(length=50, rows=3).over(text.folder).draw(rng, 0, tokenizer)
    assert (row.start, row.context, len(row.tail), len(others)) == ([tokenizer.bos_token_id], [], 50, 2)
    assert all(row.is_answer)
    (row, *others) = NextParagraph(context=160, output=30, rows=2).over(text.folder).draw(rng, 0, tokenizer)
    assert [len(block.text) for block in row.context] == [PASSAGE, PASSAGE, 32]
    assert (len(row.tail), len(others)) == (30, 1)
    growing = Growing(k=8, steps=1, max_chunks=4, tokens=64, curriculum="none")
    (row, other) = Repeating(growing=growing).over(text.folder).draw(rng, 0, tokenizer)
    assert [token for block in row.context for token in block.text] == row.tail != other.tail
    assert len(row.tail) == 32


def test_all_compressing_systems_see_the_same_windows() -> None:
    from baselines.cepe_stages import CPT as CEPE
    from refrag_v2.stages import CPT as REFRAG

    for scale in TEXT_SCALES.values():
        recipes = [CEPE[scale.name], *(REFRAG[scale.of_rate(k)] for k in (8, 16, 32))]
        assert len({(recipe.data, recipe.stage.steps, recipe.stage.seed) for recipe in recipes}) == 1


def test_training_on_text_is_named_after_the_text_and_the_world_takes_none(tmp_path: Path) -> None:
    job = TrainJob(system="decoder", stage="pretrain", scale="text-tiny", runs=tmp_path, text=tmp_path / "text-a")
    assert job.identity == replace(job, text=Path("elsewhere/text-a")).identity
    assert job.identity != replace(job, text=tmp_path / "text-b").identity
    after = TrainJob(system="cepe", stage="cpt", scale="text-tiny", runs=tmp_path, text=tmp_path / "text-a")
    assert [before.text for before in after.chain] == [job.text] * 3
    with pytest.raises(InputError, match="trains on a prepared text: give it with --text"):
        replace(job, text=None).run()
    with pytest.raises(InputError, match="trains on the synthetic world; leave --text"):
        replace(job, scale="tiny", from_scratch=True).run()


# --- what is measured on


def test_windows_are_exact_and_the_same_tokens_follow_every_context(text: Text) -> None:
    ids, borders = text.ids("validation", "book")
    found = {s: suite(text, context=s).windows for s in (0, 64, 256)}
    n = sum(int(length) // 272 for length in np.diff(borders))
    assert {len(windows) for windows in found.values()} == {n}
    for none, some, all_ in zip(*found.values(), strict=True):
        assert none.id == some.id == all_.id
        assert none.continuation == some.continuation == all_.continuation
        assert (len(none.context), len(some.context), len(all_.context), len(none.continuation)) == (0, 64, 256, 16)
        assert some.context == all_.context[-64:]
        _, document_, place = all_.id.split("-")
        start = int(borders[int(document_)]) + int(place)
        assert ids[start : start + 272].tolist() == [*all_.context, *all_.continuation]
        assert start + 272 <= borders[int(document_) + 1]
    assert suite(text).too_short == 1
    assert len(suite(text, limit=3).windows) == 3
    assert len({window.document for window in suite(text, limit=3).windows}) > 1, "spread over the documents"


def test_scores_are_means_over_the_first_tokens(text: Text) -> None:
    assert suite(text, outputs=(1, 2, 4)).score([-1.0, -2.0, -3.0, -6.0]) == {
        "log_perplexity_1": 1.0,
        "log_perplexity_2": 1.5,
        "log_perplexity_4": 3.0,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context": 96}, "a multiple of 64; got 96"),
        ({"context": 512}, "a context of 0 to 256"),
        ({"outputs": (17,)}, "the first 1 to 16 tokens"),
        ({"limit": 0}, "a limit of at least 1 window"),
    ],
)
def test_lengths_that_fit_nothing_are_refused(text: Text, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        suite(text, **changes)
    with pytest.raises(InputError, match="no document of book has 100016 tokens"):
        _ = suite(text, context=0, longest=100_000).windows
    with pytest.raises(InputError, match="unknown set of validation 'code'"):
        _ = suite(text, set="code").windows


# --- the whole path


@pytest.fixture(scope="module")
def ran(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment in its short budget, from files to tables: two steps of every training."""
    folder = tmp_path_factory.mktemp("ran")
    command = ["run", "perplexity", "--scale", "short", "--limit", "3", "--data", str(source)]
    assert main([*command, "--runs", str(folder / "runs"), "--out", str(folder / "out")]) == 0
    return folder


def test_the_whole_path_from_a_folder_of_text_to_tables(ran: Path) -> None:
    records = [record for record in read_records([ran / "runs"]) if "perplexity" in record.experiments]
    # Five without context, seven systems at three contexts, two sets.
    assert len(records) == 2 * (5 + 7 * 3)
    assert {record.n_examples for record in records} == {3}
    assert sum(record.n_errors for record in records) == 0
    positions = {
        (r.system, r.spec["system"]["config"].get("k")): r.metrics["decoder_positions"].mean
        for r in records
        if r.spec["suite"]["context"] in (0, 256)
    }
    assert positions == {
        ("standard_rag", None): 257,
        ("no_context", None): 1,
        ("llama_k", 8): 33,
        ("replug", None): 4 * 65,
        ("cepe", None): 1,
        ("refrag_v2", 8): 33,
        ("refrag_v2", 16): 17,
        ("refrag_v2", 32): 9,
    }
    markdown = (ran / "out/tables/perplexity.md").read_text()
    assert len(re.findall(r"^\| REFRAG_16 +\|", markdown, re.MULTILINE)) == 4, "twice measured, twice published"
    assert "| REFRAG_8 - No context, REFRAG_8's decoder " in markdown
    published = markdown.split("**published, LLaMA-2-7B: the paper's Table 1")[1].split("\n\n")[1]
    assert "1.075" in published
    assert "record.json" not in published, "no published number links to a record"
    assert "1.075" not in markdown.split("**published")[0]


def test_no_text_of_the_data_is_in_what_is_kept(ran: Path) -> None:
    for path in [*(ran / "out").rglob("*.json"), *(ran / "runs" / "perplexity").rglob("*.json*")]:
        assert not [word for word in WORDS if len(word) > 4 and word in path.read_text()], path


def test_tables_redraw_from_records_alone_and_refuse_a_mixture(ran: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    command = ["tables", "--only", "perplexity", "--out", str(ran / "out"), "--records", str(ran / "runs")]
    before = {path: path.read_bytes() for path in (ran / "out" / "tables").iterdir()}
    assert main(command) == 0
    assert {path: path.read_bytes() for path in (ran / "out" / "tables").iterdir()} == before
    records = read_records([ran / "runs"])
    suite_ = {**records[0].spec["suite"], "longest": 512}
    other = replace(records[0], run_id="other", spec={**records[0].spec, "suite": suite_})
    with pytest.raises(InputError, match="predict other tokens"):
        drawn.build([*records, other], [], experiment="perplexity")
    copied = replace(records[0], run_id="other")
    with pytest.raises(InputError, match="two records for one cell"):
        drawn.build([*records, copied], [], experiment="perplexity")


def test_a_run_goes_on_where_its_journal_ends(ran: Path, tmp_path: Path) -> None:
    text_folder = next((ran / "runs/text").iterdir())
    checkpoint = next((ran / "runs/train/standard_rag").iterdir()) / "final"
    job = PerplexityJob(
        system="standard_rag", checkpoint=str(checkpoint), text=text_folder, set="book", context=64, output=8,
        outputs=(8,), longest=64, batch_size=2, runs=tmp_path, limit=5,
    )  # fmt: skip
    whole = job.run()
    folder = next(tmp_path.rglob("record.json")).parent
    journal = (folder / "predictions.jsonl").read_bytes()
    lines = journal.splitlines(keepends=True)
    assert len(lines) == 5
    (folder / "record.json").unlink()
    (folder / "predictions.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    again = job.run()
    assert (folder / "predictions.jsonl").read_bytes() == journal
    assert again.metrics == whole.metrics


def test_a_decoder_of_other_tokens_is_refused(ran: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    text_folder = next((ran / "runs/text").iterdir())
    job = PerplexityJob(
        system="standard_rag", checkpoint=str(tiny_checkpoint), text=text_folder, set="book", context=64, output=8,
        outputs=(8,), longest=64, runs=tmp_path,
    )  # fmt: skip
    with pytest.raises(InputError, match="was trained on world; its tokens are not those"):
        job.run()
    checkpoint = next((ran / "runs/train/standard_rag").iterdir()) / "final"
    with pytest.raises(InputError, match="gives no likelihood"):
        replace(job, system="kv_reuse_plain", checkpoint=str(checkpoint)).run()


# --- ablations on text


@pytest.fixture(scope="module")
def ablated(ran: Path, source: Path) -> Path:
    """The ablations in the same budget, going on from the same trainings."""
    command = ["run", "text_ablation", "--scale", "short", "--limit", "3", "--data", str(source)]
    assert main([*command, "--runs", str(ran / "runs"), "--out", str(ran / "ablated")]) == 0
    return ran / "ablated"


def test_ablations_compare_trainings_that_differ_in_one_thing(ran: Path, ablated: Path) -> None:
    lineages = {
        path.parent.parent.name.rpartition("-")[0]: json.loads(path.read_text())
        for path in (ran / "runs/train/refrag_v2").glob("*/final/training.json")
    }
    stages = ("reconstruction", "cpt", "mixed", "policy_start", "policy")
    chain = lineages["policy-text-tiny-k16-short"]["lineage"]
    assert chain == ["decoder/pretrain", *(f"refrag_v2/{stage}" for stage in stages)]
    alone = [
        training
        for path in (ran / "runs/train/refrag_v2").glob("cpt-text-tiny-k8-short-*/final/training.json")
        if (training := json.loads(path.read_text()))["skipped"]
    ]
    assert [training["lineage"] for training in alone] == [["decoder/pretrain", "refrag_v2/cpt"]]
    flat, staged = (lineages[f"reconstruction-text-tiny-k8-short{way}"] for way in ("-flat", ""))
    assert flat["recipe"]["data"]["growing"] != staged["recipe"]["data"]["growing"]
    assert flat["recipe"]["stage"] == staged["recipe"]["stage"]


def test_tables_of_ablations_name_their_lines(ran: Path, ablated: Path) -> None:
    order = (ablated / "tables/text_order.md").read_text()
    assert "| reconstruction, then CPT - CPT alone | Arxiv |" in order.replace("  ", " ").replace("  ", " ")
    read_back = (ablated / "tables/text_curriculum.md").read_text()
    assert "the context's own tokens again" in read_back
    policy = (ablated / "tables/text_policy.md").read_text()
    assert policy.count("REFRAG_16, 1/16 by the policy -") == 2 * 3
    for name in ("text_order", "text_curriculum", "text_policy"):
        assert (ablated / f"tables/{name}.tex").exists()
    positions = {
        (r.spec["system"]["config"]["k"], r.spec["system"]["config"]["expand"]): r.metrics["decoder_positions"].mean
        for r in read_records([ran / "runs"])
        if "text_policy" in r.experiments
    }
    assert positions == {(8, 0.0): 33, (16, 0.0625): 1 + 15 + 16, (16, 0.0): 17}


def test_what_is_read_back_is_the_context(text: Text) -> None:
    settings: dict[str, Any] = dict(text=text, set="book", context=128, output=16, outputs=(4, 16), longest=256)
    following, again = PerplexitySuite(**settings), ReconstructionSuite(**settings)
    assert again.spec == replace(following.spec, name="reconstruction")
    for one, other in zip(following.windows, again.windows, strict=True):
        assert (one.id, one.context) == (other.id, other.context)
        assert other.continuation == one.context[:16] != one.continuation
    with pytest.raises(InputError, match="a context of 0 tokens cannot give back 16"):
        ReconstructionSuite(**settings | {"context": 0})
