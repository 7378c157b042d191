"""Looking into a question: every character of a passage is in one chunk, counts add up, and no text can act."""

import dataclasses
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from conftest import PROJECT
from rich.console import Console
from tiny_refrag import write_tiny_refrag

from baselines.standard_rag import StandardRAGConfig
from harness.cli import inspection as verb
from harness.cli.main import main
from harness.data.world.facts import ask, draw_biography, draw_person, draw_relations, state
from harness.model.load import load_decoder
from harness.protocol import Passage
from harness.retrieval.corpus import Corpus
from harness.retrieval.index import ensure_index
from harness.retrieval.retrievers import index_config
from refrag_v2.selectors import SELECTORS
from results.inspection import SCORES, Inspection, to_html
from slurm.jobs.generate import GenerateJob
from slurm.jobs.inspect import InspectJob

RNG = random.Random(0)
PEOPLE = [draw_biography(RNG, draw_person(RNG, "test"), draw_relations(RNG)) for _ in range(5)]
QUESTION = ask(RNG, PEOPLE[0], PEOPLE[0].facts[0][0], "what is")
WORLD = [Passage(id=f"w{i}", title=person.name, text=state(RNG, person)) for i, person in enumerate(PEOPLE)]
STRANGE = Passage(
    id='x" onload="alert(1)',
    title="<b>bold</b> [red]title[/red]",
    text="<script>alert('&')</script> naïve 日本語 \x1b[31mred [bold]x[/bold]",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_refrag(tmp_path_factory.mktemp("refrag") / "final")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps(dataclasses.asdict(p)) + "\n" for p in [*WORLD, STRANGE]))
    return path


def look(checkpoint: Path, file: Path, question: str = QUESTION, **options: object) -> Inspection:
    return InspectJob(
        question=question, checkpoint=str(checkpoint), passages_file=file, max_new_tokens=4, options=options
    ).run()


@pytest.fixture
def inspection(checkpoint: Path, file: Path) -> Inspection:
    return look(checkpoint, file, expand=0.2, select="policy")


# --- what is gathered


def test_the_chunks_of_a_passage_are_its_text(inspection: Inspection) -> None:
    for passage, given in zip(inspection.passages, [*WORLD, STRANGE], strict=True):
        assert (passage.id, passage.title, passage.score, passage.read) == (given.id, given.title, None, True)
        assert "".join(chunk.text for chunk in passage.chunks) == given.text
        assert [chunk.tokens for chunk in passage.chunks[:-1]] == [8] * (len(passage.chunks) - 1)


@pytest.mark.parametrize("select", SCORES)
@pytest.mark.parametrize("expand", [0.1, 0.5])
def test_the_best_round_pl_chunks_are_expanded(checkpoint: Path, file: Path, expand: float, select: str) -> None:
    it = look(checkpoint, file, expand=expand, select=select)
    chunks = [chunk for passage in it.passages for chunk in passage.chunks]
    assert it.chunks == len(chunks)
    expanded = [chunk.score for chunk in chunks if chunk.expanded]
    assert it.chunks_expanded == len(expanded) == int(expand * len(chunks) + 0.5)
    assert min(expanded) >= max(chunk.score for chunk in chunks if not chunk.expanded)
    p = len(expanded) / len(chunks)
    assert it.effective_rate == pytest.approx(8 / (1 - p + 8 * p))


@pytest.mark.parametrize(("expand", "select"), [(0.0, "none"), (1.0, "all")])
def test_where_nothing_is_chosen_there_are_no_scores(checkpoint: Path, file: Path, expand: float, select: str) -> None:
    it = look(checkpoint, file, expand=expand, select=select)
    assert {chunk.score for passage in it.passages for chunk in passage.chunks} == {None}
    assert it.chunks_expanded == expand * it.chunks
    assert 'class="score"' not in to_html(it)
    assert "Score" not in to_html(it)


def test_every_selector_that_chooses_says_what_its_scores_are() -> None:
    assert set(SCORES) == set(SELECTORS) - {"none", "all"}


@pytest.mark.parametrize(("expand", "select"), [(0.0, "none"), (0.2, "policy"), (1.0, "all")])
def test_all_tokens_are_the_prompt_of_standard_rag(checkpoint: Path, file: Path, expand: float, select: str) -> None:
    it = look(checkpoint, file, expand=expand, select=select)
    plain = StandardRAGConfig(template="tagged").build(load_decoder(str(checkpoint)))
    (usage,) = plain.usage([QUESTION], plain.encode([[*WORLD, STRANGE]]), max_new_tokens=4)
    assert it.token_positions == usage.decoder_positions
    saved = sum(c.tokens - 1 for passage in it.passages for c in passage.chunks if not c.expanded)
    assert it.decoder_positions == it.token_positions - saved
    assert it.position_ratio == it.decoder_positions / it.token_positions


def test_the_answer_is_generates(checkpoint: Path, tmp_path: Path) -> None:
    index = ensure_index(index_config("bm25"), Corpus.of(WORLD), tmp_path).folder
    shared = {"question": QUESTION, "checkpoint": str(checkpoint), "index": index, "max_new_tokens": 6}
    answers = []
    for options in ({"expand": 0.2, "select": "policy"}, {"expand": 1.0, "select": "all"}):
        it = InspectJob(**shared, passages=3, options=options).run()
        answered = GenerateJob(
            **shared, system="refrag_v2", passages=3, options=options, dtype="float32", device="cpu"
        ).run()
        assert it.answer == answered["answer"]
        assert [(p.title, p.score) for p in it.passages] == [(p["title"], p["score"]) for p in answered["passages"]]
        answers.append(it.answer)
    assert any(answers), "a random decoder may say nothing, but not always"
    assert len(InspectJob(**shared).run().passages) == 4, "of an index, unless said otherwise"


def test_a_passage_without_room_is_shown_as_not_read(checkpoint: Path, file: Path) -> None:
    it = look(checkpoint, file, max_positions=30)
    assert [passage.read for passage in it.passages] == [True] * 3 + [False] * 3
    assert [len(passage.chunks) for passage in it.passages] == [4] * 3 + [0] * 3
    assert it.chunks == 12
    assert to_html(it).count("Not read") == 3


def test_no_passage_has_room(checkpoint: Path, file: Path) -> None:
    it = look(checkpoint, file, max_positions=14, expand=0.2, select="policy")
    assert (it.chunks, it.chunks_expanded, it.position_ratio, it.effective_rate) == (0, 0, 1.0, 1.0)
    assert to_html(it).count("Not read") == 6


# --- the page


class Page(HTMLParser):
    """Every tag with its attributes, and the text below each element of class ``text``."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("class") == "text"
        if self.inside:
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if attributes.get("class") == name]


def test_the_page_holds_every_chunk_and_marks_the_expanded(inspection: Inspection) -> None:
    page = Page(to_html(inspection))
    chunks = [chunk for passage in inspection.passages for chunk in passage.chunks]
    assert page.texts == [chunk.text for chunk in chunks]
    assert len(page.of_class("chunk expanded")) == len(page.of_class("cell expanded")) == inspection.chunks_expanded
    assert len(page.of_class("chunk")) == len(page.of_class("cell")) == len(chunks) - inspection.chunks_expanded
    marks = re.findall(r'<li class="(chunk[^"]*)">.*?<span class="mark">(\w+)</span>', to_html(inspection))
    assert {mark for name, mark in marks if name == "chunk expanded"} == {"expanded"}, "in words too"
    assert {mark for name, mark in marks if name == "chunk"} == {"compressed"}


def test_no_text_of_a_passage_is_markup(checkpoint: Path, file: Path) -> None:
    written = to_html(
        look(checkpoint, file, question="<img src=x onerror=alert(1)> &amp;", expand=0.2, select="random")
    )
    page = Page(written)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "id x&#34; onload=&#34;alert(1)" in written
    assert "&lt;b&gt;bold&lt;/b&gt;" in written
    assert "&lt;img src=x onerror=alert(1)&gt; &amp;amp;" in written


def test_the_page_needs_nothing_else(inspection: Inspection) -> None:
    written = to_html(inspection)
    assert not re.search(r"(?i)<link|<script|<img|<iframe|\bsrc=|\bhref=|url\(|@import|https?://", written)
    assert "prefers-color-scheme: dark" in written


def test_the_same_question_gives_the_same_bytes(checkpoint: Path, file: Path, inspection: Inspection) -> None:
    assert to_html(look(checkpoint, file, expand=0.2, select="policy")) == to_html(inspection)


def test_bars_run_from_the_lowest_score_to_the_highest(inspection: Inspection) -> None:
    scores = [chunk.score for passage in inspection.passages for chunk in passage.chunks]
    assert [inspection.share(score) for score in (min(scores), max(scores))] == [0, 1]
    assert all(0 <= inspection.share(score) <= 1 for score in scores)
    alike = tuple(
        dataclasses.replace(p, chunks=tuple(dataclasses.replace(c, score=3.0) for c in p.chunks))
        for p in inspection.passages
    )
    assert dataclasses.replace(inspection, passages=alike).share(3.0) == 1


# --- the verb


def command(checkpoint: Path, file: Path, *more: str) -> list[str]:
    return [
        *("inspect", QUESTION, "--checkpoint", str(checkpoint), "--passages-file", str(file)),
        *("--max-new-tokens", "4", "--set", "expand=0.2", "--set", "select=policy", *more),
    ]


def test_the_terminals_width_is_kept_and_a_pipe_is_plain(
    checkpoint: Path, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    assert main(command(checkpoint, file)) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 50
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out), "neither ours nor a passage's"
    assert "<b>bold</b> [red]title[/red]" in out, "a passage's brackets are no markup"
    assert f"chunks     {out.count('■') - 1} of " in out


def test_a_terminal_gets_styles(inspection: Inspection) -> None:
    drawn = StringIO()
    verb._draw(inspection, Console(file=drawn, force_terminal=True, width=80, highlight=False))
    assert "\x1b[1" in drawn.getvalue()
    assert "\x1b[31m" not in drawn.getvalue(), "a passage's escape sequence does nothing"


def test_json_has_the_documented_keys_and_the_page_is_written_beside_it(
    checkpoint: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "page.html"
    assert main(command(checkpoint, file, "--json", "--html", str(page), "--passages", "2")) == 0
    document = json.loads(capsys.readouterr().out)
    documented = re.sub(r"\([^)]*\)", "", verb.EPILOG.split("keys of --json:")[1])
    assert [name.strip() for name in documented.replace("\n", " ").split(",")] == list(document)
    assert len(document["passages"]) == 2
    assert document["chunks_expanded"] == 2
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--passages", "0"), "expected at least 1 passage"),
        (("--passages", "-1"), "expected at least 0 passages"),
        (("--max-new-tokens", "0"), "1 new token"),
        (("--set", "select=polcy"), "unknown selector 'polcy' (did you mean 'policy'?)"),
        (("--set", "expand=2"), "expected a share of expanded chunks from 0 to 1"),
        (("--set", "expand"), "expected a setting as NAME=VALUE"),
        (("--set", "select=oracle"), "the selector 'oracle' expects questions of the synthetic world"),
        (("--passages-file", "no/such/file.jsonl"), "no corpus at no/such/file.jsonl"),
        (("--index", "no/such/index"), "not allowed with argument"),
        (("--html", "."), "expected a file to write, got the folder ."),
        (("--checkpoint", "no/such/model"), "has no chunk encoder (refrag.json)"),
        (("--device", "tpu9"), "device 'tpu9'"),
    ],
)
def test_bad_input_is_one_line(
    checkpoint: Path, file: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(checkpoint, file, *words)
    arguments[1] = "who are you"
    try:
        code = main(arguments)
    except SystemExit as exit_:  # argparse's own errors
        code = exit_.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1
    assert message in err


def test_passages_have_to_come_from_somewhere(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", QUESTION, "--checkpoint", str(checkpoint)])
    assert "one of the arguments --index --passages-file is required" in capsys.readouterr().err


def test_a_plain_decoder_is_refused(tiny_checkpoint: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tiny_checkpoint, file)) == 2
    assert "has no chunk encoder (refrag.json); expected what `train refrag_v2` made" in capsys.readouterr().err


def test_no_verb_hides_a_module_of_the_standard_library() -> None:
    """As a script, main.py has its own folder first on the path; dataclasses imports ``inspect`` from there."""
    names = {path.stem for path in (PROJECT / "harness" / "cli").glob("*.py")}
    assert not names & sys.stdlib_module_names
    script = [sys.executable, "harness/cli/main.py", "inspect", "--help"]
    done = subprocess.run(script, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "--passages-file" in done.stdout
