"""The documentation is true: every command in it is run, in a temporary folder, or says what it needs.

A block of commands is fenced as ``sh``. The comment right above it may be ``<!-- not run: REASON -->`` (one of
``REASONS``), ``<!-- slow -->`` (run by ``make docs-test`` alone) or ``<!-- clone -->`` (that too, in a clone of the
project, as processes of their own). ``<!-- file: NAME -->`` above any block puts it
into the folder under that name: so the system of the tutorial is the one on the page. Commands run in this process,
where torch is loaded already.
"""

import csv
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import PROJECT
from test_checkout import git
from test_gate import cloned, command

from harness.cli.catalog import ASKED_SUITES, MADE_SUITES, SUITES
from harness.cli.main import main
from harness.data.world.mirror import WorldConfig, write_world

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md")))
REASONS = {"real model", "server", "cluster", "gpu", "repository"}
NOT_RUN = {"docs/gate.md": 2, "docs/how-to.md": 5}
FENCE = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TUTORIAL = "first_words"
# Suites whose questions the synthetic world has none of: the tutorial names them, and runs all others.
NOT_IN_THE_WORLD = {"qrecc", "orconvqa", "pubmed_summary"}


@dataclass(frozen=True)
class Block:
    mark: str
    kind: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        return [shlex.split(line) for line in self.text.replace("\\\n", " ").splitlines() if line]

    @property
    def is_run(self) -> bool:
        return self.kind == "sh" and self.mark != "clone" and not self.mark.startswith("not run: ")


def blocks(page: str) -> list[Block]:
    text = (PROJECT / page).read_text(encoding="utf-8")
    return [Block(m["mark"] or "", m["kind"], m["text"]) for m in FENCE.finditer(text)]


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why(page: str) -> None:
    marks = [block.mark for block in blocks(page)]
    refused = [mark.removeprefix("not run: ") for mark in marks if mark.startswith("not run: ")]
    assert set(refused) <= REASONS
    assert len(refused) == NOT_RUN.get(page, 0), "one more or less than was agreed"
    for mark in marks:
        assert re.fullmatch(r"|slow|clone|counts|not run: .+|file: [\w.-]+", mark), mark
    for block in blocks(page):
        if block.kind not in ("sh", "yaml", "bash"):
            assert not re.search(r"^refrag-bench ", block.text, re.MULTILINE), "commands are fenced as sh"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a reader starts: nothing but the project's checkpoints and records."""
    (tmp_path / "results").mkdir()
    for name in ("checkpoints", "records"):
        (tmp_path / "results" / name).symlink_to(PROJECT / "results" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFRAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REFRAG_DATA", raising=False)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop(TUTORIAL, None)


def expanded(words: list[str]) -> Iterator[str]:
    """``words`` with patterns of file names as a shell reads them."""
    for word in words:
        yield from sorted(map(str, Path().glob(word))) if "*" in word else [word]


def follow(page: str, folder: Path, *, slow: bool) -> int:
    """Do what ``page`` says; how many commands were run."""
    done = 0
    for block in blocks(page):
        if block.mark.startswith("file: "):
            (folder / block.mark.removeprefix("file: ")).write_text(block.text, encoding="utf-8")
        if not block.is_run or (block.mark == "slow" and not slow):
            continue
        for words in block.commands:
            assert words[0] == "refrag-bench", words
            assert main(list(expanded(words[1:]))) == 0, words
            done += 1
    return done


@pytest.mark.usefixtures("one_thread")
def test_the_tutorial(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    assert follow("docs/tutorial.md", folder, slow=False) == 16
    records = [json.loads(path.read_text()) for path in (folder / "runs").rglob("record.json")]
    suites = {*SUITES, *ASKED_SUITES, *MADE_SUITES}
    assert {record["spec"]["suite"]["name"] for record in records} == suites - NOT_IN_THE_WORLD, "one is forgotten"
    page = (PROJECT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{suite}`" for suite in sorted(NOT_IN_THE_WORLD, key=list(ASKED_SUITES).index)) in page
    assert {path.name for path in (folder / "runs" / "drawn" / "tables").glob("*.md")} == {
        "adhoc.md", "adhoc-rougeL.md", "adhoc-memory.md", "adhoc-long-range-2.md",
    }  # fmt: skip
    table = (folder / "runs" / "drawn" / "tables" / "adhoc.md").read_text(encoding="utf-8")
    for record in records:
        link = f"{quote(record['spec']['system']['name'])}/{record['run_id']}/record.json"
        answers = record["spec"]["suite"]["name"] not in {*MADE_SUITES, "arxiv_summary"}
        assert (link in table) == answers, record["spec"]["suite"]
    assert {record["spec"]["system"]["name"] for record in records} == {"first_words:FirstWordsConfig"}
    assert not any(record["n_errors"] for record in records)
    assert len(list((folder / "runs" / "lm-eval").rglob("samples_*.jsonl"))) == 4
    assert len(list((folder / "runs" / "exported").rglob("samples_*.jsonl"))) == 1
    code = next(block.text for block in blocks("docs/tutorial.md") if block.kind == "python")
    assert len(code.splitlines()) <= 60


@pytest.mark.usefixtures("one_thread")
def test_the_tutorials_system_is_standard_rag_where_nothing_is_cut(folder: Path) -> None:
    from slurm.jobs.evaluate import EvaluateJob

    (folder / f"{TUTORIAL}.py").write_text(next(b.text for b in blocks("docs/tutorial.md") if b.kind == "python"))
    (checkpoint,) = (PROJECT / "results" / "checkpoints" / "standard_rag").iterdir()

    def answers(system: str, **options: object) -> list[str]:
        asked = {"length": 128, "instructions": False}
        job = EvaluateJob(
            system=system,
            suite="passkey",
            checkpoint=str(checkpoint),
            asked=asked,
            limit=8,
            options=options,
            runs=folder,
        )
        record = job.run()
        path = folder / "passkey" / system / record.run_id / "predictions.jsonl"
        return [json.loads(line)["prediction"] for line in path.read_text().splitlines()]

    whole = answers("standard_rag")
    assert answers("first_words:FirstWordsConfig", words=64) == whole
    assert answers("first_words:FirstWordsConfig", words=1) != whole


@pytest.mark.parametrize("suite", sorted(NOT_IN_THE_WORLD))
def test_what_the_tutorial_leaves_out_the_world_does_not_have(
    folder: Path, capsys: pytest.CaptureFixture[str], suite: str
) -> None:
    world = write_world(WorldConfig(people=400, questions=8, documents=2), folder / "world")
    (checkpoint,) = (PROJECT / "results" / "checkpoints" / "standard_rag").iterdir()
    passages = "4" if suite == "pubmed_summary" else "0"  # conversations would ask for a retrieval first
    own = ["--system", "standard_rag", "--checkpoint", str(checkpoint), "--data", str(world), "--passages", passages]
    assert main(["evaluate", "--suite", suite, *own]) == 2
    assert "expected the dataset at" in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
def test_a_system_without_our_settings_goes_through_lm_eval(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    code = next(block.text for block in blocks("docs/tutorial.md") if block.kind == "python")
    for cut in ('    template: str = "text"\n', "    max_positions: int | None = None\n"):
        assert code.count(cut) == 1
        code = code.replace(cut, "")
    code = code.replace("self.template, self.max_positions, decoder", '"tagged", None, decoder')
    code = re.sub(r"return \{\"template.*\}", "return {}", code)
    (folder / f"{TUTORIAL}.py").write_text(code)
    (checkpoint,) = (PROJECT / "results" / "checkpoints" / "standard_rag").iterdir()
    own = ["--system", "first_words:FirstWordsConfig", "--checkpoint", str(checkpoint), "--limit", "4"]
    assert main(["lm-eval", *own, "--tasks", "passkey", "--max-new-tokens", "4"]) == 0
    assert "passkey: exact_match" in capsys.readouterr().out


def test_the_other_pages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from slurm.clusters.profiles import find_profile

    done = {page: follow(page, folder, slow=False) for page in PAGES if page != "docs/tutorial.md"}
    assert {page: n for page, n in done.items() if n} == {"docs/how-to.md": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFRAG_SITE", str(folder / "site.toml"))
        assert find_profile("h100").partition == "gpu-long"  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_slow_blocks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert follow("docs/claims.md", folder, slow=True) == 1
    assert "the seed's claims" in capsys.readouterr().out
    assert follow("README.md", folder, slow=True) == 1
    table = (folder / "runs" / "first" / "results" / "tables" / "tiny-systems-cost.md").read_text(encoding="utf-8")
    for system in ("Standard RAG", "CEPE", "REFRAG v1", "REFRAG v2"):
        assert f"| {system}" in table


@pytest.mark.slow
def test_the_tutorials_gate(tmp_path: Path) -> None:
    """As the page says; then a commit that leaves the system alone is compared, and one that breaks it is caught."""
    clone = cloned(tmp_path)
    page = {block.mark: block for block in blocks("docs/tutorial.md")}
    system = clone / f"{TUTORIAL}.py"
    system.write_text(page[f"file: {system.name}"].text)
    add, commit, gate = page["clone"].text.replace(" && ", "\n").splitlines()
    for line in (add, commit):
        assert line.startswith("git ")
        git(clone, *shlex.split(line)[1:])
    code, said = command(clone, *shlex.split(gate)[1:])
    name = "first_words:FirstWordsConfig"
    assert code == 0, said
    why = "nothing to compare with, the base has no such system: it has no module 'first_words'"
    for cell in ("same_relation", "nq"):
        assert f"new: {name}, {cell}: {why}" in said
    git(clone, "commit", "--quiet", "--allow-empty", "-m", "nothing")
    code, said = command(clone, *shlex.split(gate)[1:])
    assert code == 0 and "nothing to compare with" not in said, said
    assert said.count(f"| {name}, ") == 4, "two figures of two cells"
    assert "predictions are stored already" in said
    text = system.read_text()
    assert text.count("tag + text[: self.words]") == 1
    system.write_text(text.replace("tag + text[: self.words]", "tag"))
    git(clone, "commit", "--quiet", "-am", "break it")
    code, said = command(clone, *shlex.split(gate)[1:])
    assert code == 1 and f"regression: {name}, " in said, said
    code, said = command(clone, *shlex.split(gate.replace(TUTORIAL, "last_words"))[1:])
    assert code == 2 and "system 'last_words:FirstWordsConfig' is not in the candidate" in said, said


def test_the_count_of_claims_is_that_of_the_table() -> None:
    with (PROJECT / "results" / "tables" / "claims.csv").open(encoding="utf-8", newline="") as file:
        counts = Counter(row["Verdict"] for row in csv.DictReader(file))
    lines = [f"| {verdict} | {n} |" for verdict, n in counts.most_common()]
    expected = "\n".join(["| verdict of the claim against the paper | items |", "|---|--:|", *lines])
    page = (PROJECT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert re.search(r"<!-- counts -->\n\n(.*?)\n\n<!-- /counts -->", page, re.DOTALL)[1] == expected


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (PROJECT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]+)#?([^)\s]*)\)", text):
        if not target.startswith("http"):
            there = (PROJECT / page).parent / target
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """What a link may name of a Markdown page: its headings, in lower case, without punctuation, joined by hyphens."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_score_is_explained() -> None:
    from harness.metrics import DIALECTS

    page = (PROJECT / "docs" / "quantities.md").read_text(encoding="utf-8")
    assert {name for name in DIALECTS if f"`{name}`" not in page} == set()


def test_every_key_of_a_record_is_explained() -> None:
    from harness.summary import BINARY

    page = (PROJECT / "docs" / "quantities.md").read_text(encoding="utf-8")
    keys, methods = set(), {}
    for path in (PROJECT / "results" / "records").rglob("record.json"):
        record = json.loads(path.read_bytes())
        keys |= record["timings"].keys()
        for name, metric in record["metrics"].items():
            methods[re.sub(r"@.*|(?<=log_perplexity_)\d+", lambda m: "" if m[0][0] == "@" else "N", name)] = metric[
                "method"
            ]
    assert {"stored_bytes", "log_perplexity_N", "digits", "ttft_s"} < keys | methods.keys()
    assert {key for key in keys | methods.keys() if f"`{key}`" not in page} == set()
    assert {name for name, method in methods.items() if method == "wilson"} == set(BINARY)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:Config", "cannot import 'nowhere_at_all'"),
        ("json:Config", "json has no 'Config'"),
        ("json:JSONDecoder", "expected a dataclass with defaults"),
        (":Config", "cannot import ''"),
        ("json:", "json has no ''"),
    ],
)
def test_an_own_system_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    assert main(["evaluate", "--system", name, "--suite", "passkey", "--ask", "length=128", "--checkpoint", "x"]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
