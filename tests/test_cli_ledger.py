"""``refrag-bench ledger`` shows each number with who said it, and its filters leave no rest."""

import json
from pathlib import Path

import pytest

from harness.cli.main import main
from results.ledger.entries import SOURCE_CLASSES
from results.ledger.verdicts import AGAINST_PAPER, VERDICTS


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main(["ledger", *arguments, "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_classes_and_verdicts_split_the_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    everything = listed(capsys)
    assert len(everything) == 2829
    assert sum(len(listed(capsys, "--source-class", name)) for name in SOURCE_CLASSES) == 2829
    assert sum(len(listed(capsys, "--verdict", name)) for name in VERDICTS) == 2829
    claims = listed(capsys, "--source-class", "seed-claim")
    assert sum(len(listed(capsys, "--verdict", name)) for name in AGAINST_PAPER) == len(claims) == 127


def test_filters_meet(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys, "--table", "Table 2", "--source-class", "seed-claim", "--grep", "cannot BE")
    assert {entry["column"] for entry in found} == {"TTIT", "Throughput", "Memory"}
    assert all(entry["flags"] and entry["file"] == "seed_claims.csv" for entry in found)
    found = listed(capsys, "--file", "fig02_08_09_latency.csv", "--grep", "context=65536")
    assert {entry["conditions"]["context"] for entry in found} == {65536}  # type: ignore[index]
    assert len(found) == 27


def test_the_list_shows_source_verdict_flag_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "--table", "Table 2", "--grep", "memory"]) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if " 8.6 " in line)
    assert "seed-claim, Table 2" in line
    assert "not comparable; not in the paper" in line
    assert "cannot be: 8.6 GB" in line
    counts = [" ".join(line.split()) for line in out.splitlines()]
    assert "3 entries" in counts
    assert "the seed's claims 3 not in the paper" in counts
    assert "flagged 1 cannot be" in counts
    assert any(line.startswith("by class 3 seed-claim") for line in counts)
    assert main(["ledger", "--table", "Table 3", "--grep", "LLaMA_FT + 1 passage"]) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if " NQ " in line and "23.96" in line)
    assert "paper, Table 3, p. 9" in line
    assert "not comparable" in line and "differs in model, retriever, metric" in line


def test_nothing_found_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "--grep", "no such words"]) == 0
    assert capsys.readouterr().out == "0 entries\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--table", "Table 33"], "unknown table 'Table 33' (did you mean 'Table 3'?)"),
        (["--source-class", "papers"], "unknown source class 'papers' (did you mean 'paper'?)"),
        (["--file", "table03.csv"], "unknown file 'table03.csv'"),
        (["--verdict", "reproducd"], "unknown verdict 'reproducd' (did you mean 'reproduced'?)"),
        (["--records", "no/such/records"], "no folder no/such/records"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["ledger", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert "--records" in arguments or "valid choices: " in err


def test_claims_are_drawn_and_no_filter_cuts_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["ledger", "--claims", str(tmp_path), "--table", "abstract"]) == 0
    drawn = {path.name: path.read_text() for path in (tmp_path / "tables").iterdir()}
    assert drawn.keys() == {"claims.md", "claims.csv", "claims.tex"}
    assert len(drawn["claims.csv"].splitlines()) == 1 + 62 + 2
    assert "wrote" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ledger", "--help"])
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in VERDICTS)
    assert all(name in " ".join(out.split()) for name in (*AGAINST_PAPER, *SOURCE_CLASSES))
