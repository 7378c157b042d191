"""The page in a browser: it sorts, opens records, works by keyboard, fits, and says nothing on the console."""

from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from conftest import PROJECT
from report_fakes import ATTACK, write_runs
from test_gate_answers import answers

from results.gate.answers import judge
from results.report.page import draw

EXECUTABLE = chromium.find()
pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason=f"no Chromium here: none of {', '.join(chromium.NAMES)} is on the PATH"
)
COLUMN = "#tiny th:nth-child(3)"
BUTTON = f"{COLUMN} button"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    assert EXECUTABLE
    with chromium.browse(EXECUTABLE, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_runs(home / "runs")
    out = home / "report.html"
    out.write_bytes(draw([home / "runs"], out)[1][out])
    return out


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("accepted") / "report.html"
    out.write_bytes(draw([PROJECT / "results" / "records"], out)[1][out])
    return out


@pytest.fixture
def page(tab: chromium.Page, file: Path) -> Iterator[chromium.Page]:
    tab.trouble.clear()
    yield tab.open(file, 1280)
    assert tab.trouble == []
    assert tab.run("window.attacked") is None


def numbers(page: chromium.Page) -> list[float]:
    cells = page.run("[...document.querySelectorAll('#tiny tbody td:nth-child(3)')].map((cell) => cell.textContent)")
    return [float(cell.split()[0]) for cell in cells]


def test_a_click_on_a_heading_sorts_by_value(page: chromium.Page) -> None:
    drawn = numbers(page)
    for order, expected in (("ascending", sorted(drawn)), ("descending", sorted(drawn)[::-1]), ("none", drawn)):
        page.click(BUTTON)
        assert numbers(page) == expected
        assert page.run(f"document.querySelector('{COLUMN}').getAttribute('aria-sort')") == order
    assert drawn != sorted(drawn)
    assert [f"{it:.1f}" for it in sorted(drawn)] != sorted(f"{it:.1f}" for it in drawn)  # by value, not as texts


def test_the_keyboard_sorts_and_moves_the_mark(page: chromium.Page) -> None:
    page.run(f"document.querySelector('{BUTTON}').focus()")
    page.press("Enter")
    assert numbers(page) == sorted(numbers(page))
    page.run("document.querySelector('#tiny th:first-child button').focus()")
    page.press("Enter")
    orders = page.run("[...document.querySelectorAll('#tiny th')].map((head) => head.ariaSort).filter(Boolean)")
    assert orders == ["ascending", "none", "none"]


def test_a_cell_opens_its_record_and_escape_gives_the_focus_back(page: chromium.Page) -> None:
    cell = "#tiny tbody tr:nth-child(3) button.open"
    page.run(f"document.querySelector('{cell}').focus()")
    page.press("Enter")
    assert page.run("document.getElementById('record').open") is True
    assert "REFRAG v2" in page.run("document.getElementById('record-title').textContent")
    text = page.run("document.getElementById('record-content').textContent")
    assert all(word in text for word in ("d" * 16, "system.config.k", "0.9274", "chunks expanded", "Vepin", ATTACK))
    assert page.run("document.querySelectorAll('#record-content script, #record-content img').length") == 0
    page.press("Escape")
    assert page.run("document.getElementById('record').open") is False
    assert page.run(f"document.activeElement === document.querySelector('{cell}')") is True


ACTING = "script, img, svg, a[href^=javascript], [onerror], [onload]"


def test_all_that_was_planted_is_text(page: chromium.Page) -> None:
    """In a question, gold, answer, error, passage, title, setting, note and name of a system, in every record."""
    for place in range(page.run("document.querySelectorAll('#tiny button.open').length")):
        page.run(f"document.querySelectorAll('#tiny button.open')[{place}].click()")
        assert page.run("document.getElementById('record-content').textContent.length") > 0
        assert page.run(f"document.querySelector('#record-content :is({ACTING})')") is None
        page.run("document.getElementById('record').close()")
    assert page.run("document.querySelectorAll('body > script').length") == 2
    assert page.run("!document.querySelector('img, a[href^=javascript], [onerror], [onload]')") is True
    assert page.run("document.body.innerText").count("{{ 7 * 7 }}") > 0


@pytest.mark.parametrize("kind", ["gate", "inspection"])
def test_the_other_pages_run_nothing_either(tab: chromium.Page, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.html"
    path.write_text(gate_page() if kind == "gate" else inspected())
    tab.trouble.clear()
    tab.open(path, 1280)
    assert tab.run("window.attacked") is None and tab.trouble == []
    assert tab.run("!document.querySelector('script, img, a, [onerror], [onload]')") is True
    assert tab.run("document.body.textContent").count(ATTACK) >= 4


def gate_page() -> str:
    from test_gate import COMMIT, report

    ours, worse = answers([1] * 9, said=ATTACK), answers([0] * 9, said=ATTACK, question=ATTACK, answers=[ATTACK])
    commit = {**COMMIT, "said": ATTACK, "subject": ATTACK}
    verdicts = judge({ATTACK: (ours, worse), "other": (ATTACK, ours)})
    return report(suites=ATTACK, base=commit, candidate=commit, answers=verdicts).html()


def inspected() -> str:
    from results.inspection import InspectedChunk, InspectedPassage, Inspection, to_html

    chunk = InspectedChunk(text=ATTACK, tokens=3, expanded=True, score=1.0)
    passage = InspectedPassage(id=ATTACK, title=ATTACK, score=1.0, read=True, chunks=(chunk,))
    return to_html(
        Inspection(
            question=ATTACK, answer=ATTACK, checkpoint=ATTACK, source=ATTACK, k=8, select=ATTACK, expand=0.5,
            passages=(passage,), chunks=1, chunks_expanded=1, decoder_positions=9, token_positions=12,
            position_ratio=0.7, effective_rate=1.0,
        )
    )  # fmt: skip


def test_a_click_on_the_close_button_closes(page: chromium.Page) -> None:
    page.click("#tiny button.open")
    assert page.run("document.getElementById('record').open") is True
    page.click("#record header button")
    assert page.run("document.getElementById('record').open") is False


def test_the_focus_can_be_seen(page: chromium.Page) -> None:
    page.run("document.querySelector('#tiny .scroll').focus()")
    page.press("Tab")
    assert page.run("document.activeElement.className") == "sort"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_ledger_is_filtered(page: chromium.Page) -> None:
    page.run(
        "{const form = document.getElementById('ledger-filter'); form.elements.source.value = 'seed-claim';"
        "form.elements.words.value = 'TTFT'; form.dispatchEvent(new Event('input'))}"
    )
    rows = page.run(
        "[...document.querySelectorAll('#ledger-table tbody tr')].filter((row) => row.checkVisibility())"
        ".map((row) => [row.dataset.source, row.textContent.toLowerCase().includes('ttft')])"
    )
    assert 0 < len(rows) < 100 and all(row == ["seed-claim", True] for row in rows)
    assert page.run("document.getElementById('ledger-shown').value").startswith(f"{len(rows)} of ")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_accepted_page_fits_and_is_silent(tab: chromium.Page, accepted: Path, width: int, dark: bool) -> None:
    tab.trouble.clear()
    tab.open(accepted, width, dark=dark)
    assert tab.run("document.documentElement.scrollWidth") <= width
    tab.click("#tiny button.open")
    assert tab.run("document.documentElement.scrollWidth") <= width
    inside = "document.getElementById('record-content').scrollWidth <= document.getElementById('record').clientWidth"
    assert tab.run(inside)
    background = "rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)"
    assert tab.run("getComputedStyle(document.body).backgroundColor") == background
    assert tab.trouble == []
