"""A corpus is its passages, whatever file they came in; cutting documents loses nothing."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InputError
from harness.protocol import Passage
from harness.retrieval.bm25 import BM25Config
from harness.retrieval.corpus import Corpus, passage_text, read_corpus, write_corpus
from harness.retrieval.cut import Spans, cut_documents
from harness.retrieval.index import ensure_index
from harness.retrieval.retrievers import open_index

PASSAGES = [
    Passage(id="1", title="Ann", text='She said "no"\tand left.'),
    Passage(id="2", title="", text="Né à Paris; line\nbreak."),
]


def words(text: str) -> Spans:
    return [match.span() for match in re.finditer(r"\S+", text)]


def word_pieces(text: str) -> Spans:
    """Tokens of at most three characters, as a subword tokenizer makes them."""
    return [match.span() for match in re.finditer(r"\S{1,3}", text)]


def test_every_form_of_file_gives_the_same_corpus(tmp_path: Path) -> None:
    jsonl = "".join(json.dumps({"id": int(p.id), "title": p.title, "text": p.text}) + "\n" for p in PASSAGES)
    quoted = ["\t".join((p.id, '"' + p.text.replace('"', '""') + '"', p.title)) for p in PASSAGES]
    tsv = "\n".join(["id\ttext\ttitle", *quoted, ""])
    for name, text in (("c.jsonl", jsonl), ("c.tsv", tsv)):
        (tmp_path / name).write_text(text)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    write_corpus(Corpus.of(PASSAGES), tmp_path / "again.jsonl")
    for file in sorted(tmp_path.iterdir()):
        corpus = read_corpus(file)
        assert (corpus.passages, corpus.digest) == (PASSAGES, Corpus.of(PASSAGES).digest), file.name


def test_a_folder_is_its_files_in_order_of_name(tmp_path: Path) -> None:
    for name, passage in (("b.jsonl", PASSAGES[1]), ("a.jsonl", PASSAGES[0])):
        write_corpus(Corpus.of([passage]), tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a corpus")
    assert read_corpus(tmp_path).passages == PASSAGES


def test_the_digest_names_ids_titles_and_texts() -> None:
    one, two = PASSAGES
    others = [[two, one], [one], [Passage(id="1", title="", text=one.title + one.text), two]]
    assert len({Corpus.of(passages).digest for passages in [PASSAGES, *others]}) == 4


def test_retrievers_see_title_and_text() -> None:
    assert [passage_text(p) for p in PASSAGES] == ['Ann She said "no"\tand left.', "Né à Paris; line\nbreak."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "at least one passage"),
        (
            '\n{"id": 1, "text": "a"}\n{"id": 2, "text": "a"}\n\n{"id": 1, "text": "b"}\n',
            r"^c.jsonl, line 5: expected unique passage ids, got '1' again \(first at c.jsonl, line 2\)$",
        ),
        (
            '{"id": 1, "text": "a"}\n\n{"id": 2, "body": "b"}\n',
            r"c.jsonl, line 3: expected a text, got None; columns: id, body",
        ),
        ('{"id": 1, "text": "a"}\n{"id": 2, \n', "c.jsonl, line 2: expected a JSON object, got broken JSON"),
        ('["a"]\n', "c.jsonl, line 1: expected a JSON object"),
        ('{"id": 1, "text": "a"}\n{"id": 2, "text": "\\ud800"}\n', "c.jsonl, line 2: expected Unicode text"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_corpus(tmp_path / "c.jsonl")


@pytest.mark.parametrize("text", ['"Never" she said', '"Never', '"Never\tAnn\n7\t"Ever"'])
def test_a_quote_that_would_swallow_rows_is_named_by_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.tsv").write_text(f'id\ttext\ttitle\n1\t"a\nb"\tA\n2\t{text}\tB\n3\tlast\tC\n')
    with pytest.raises(InputError, match="c.tsv, line 4: expected a field that starts with a quote to end with one"):
        read_corpus(tmp_path / "c.tsv")


@pytest.mark.parametrize("documents", [False, True], ids=["passages", "documents"])
def test_an_id_that_comes_again_in_another_file_is_named_with_both_places(tmp_path: Path, documents: bool) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": "one two three"}\n{"id": "y", "text": "b"}\n')
    (tmp_path / "b.tsv").write_text('id\ttext\ttitle\nz\t"c\nd"\tC\ny\te\tE\n')
    with pytest.raises(InputError, match=r"^b.tsv, line 4: .*, got 'y' again \(first at a.jsonl, line 2\)$"):
        read_corpus(tmp_path, (lambda rows: cut_documents(rows, 2, tokenize=words)) if documents else None)


LINE = b'{"id": 1, "text": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "c.jsonl",
            LINE * 2 + b'{"id": 2, "text": "caf\xe9"}\n',
            r"^c.jsonl, line 3: expected UTF-8, got .* 0xe9",
        ),
        ("c.jsonl.gz", gzip.compress(LINE + b"\xe2\x82"), r"^c.jsonl.gz, line 2: expected UTF-8, got "),
        ("c.tsv", b"id\ttext\ttitle\n1\tcaf\xe9\tA\n", r"^c.tsv, line 2: expected UTF-8, got "),
        ("c.jsonl", gzip.compress(LINE), r"^c.jsonl, line 1: expected UTF-8, got gzip \(its name ends in .gz then\)$"),
    ],
)
def test_what_is_not_utf8_is_named_by_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_corpus(tmp_path / name)


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    jsonl, tsv = b'{"id": "7", "title": "A", "text": "a"}\n', b"id\ttext\ttitle\n7\ta\tA\n"
    for name, content in {"c.jsonl": jsonl, "c.tsv": tsv}.items():
        (tmp_path / name).write_bytes(mark + content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(mark + content))
        for file in (name, f"{name}.gz"):
            assert read_corpus(tmp_path / file).passages == [Passage(id="7", title="A", text="a")], file


def test_a_table_without_a_header_is_told_which_one_is_expected(tmp_path: Path) -> None:
    (tmp_path / "c.tsv").write_text("1\tAnn left.\tAnn\n2\tBob came.\tBob\n")
    expected = r"^c.tsv, line 1: expected a header, .*\(id, text, title, of which text is needed\), got '1\\tAnn left"
    with pytest.raises(InputError, match=expected):
        read_corpus(tmp_path / "c.tsv")


def test_what_is_no_corpus_is_said(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("text")
    (tmp_path / "c.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot read a corpus from c.txt; expected a file ending in .jsonl"):
        read_corpus(tmp_path / "c.txt")
    with pytest.raises(InputError, match="no corpus at"):
        read_corpus(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="cannot read a corpus from .*gz: "):
        read_corpus(tmp_path / "c.jsonl.gz")
    with pytest.raises(InputError, match="found none"):
        read_corpus(tmp_path / "empty")


@given(text=st.text(alphabet="ab \n\té", max_size=200), tokens=st.integers(1, 7))
def test_the_passages_of_a_document_joined_are_the_document(text: str, tokens: int) -> None:
    for tokenize in (words, word_pieces):
        pieces = list(cut_documents([Passage(id="d", title="T", text=text)], tokens, tokenize=tokenize))
        assert "".join(piece.text for piece in pieces) == text
        assert all(len(tokenize(piece.text)) <= tokens for piece in pieces)
        assert [piece.id for piece in pieces] == [f"d#{number}" for number in range(len(pieces))]
        assert {piece.title for piece in pieces} == {"T"}


def test_a_cut_falls_between_words_where_there_is_one() -> None:
    document = Passage(id="d", title="", text="abcdef ghijkl mn opqrstuvwxyz")
    pieces = [piece.text for piece in cut_documents([document], 3, tokenize=word_pieces)]
    assert pieces == ["abcdef ", "ghijkl mn ", "opqrstuvw", "xyz"], (
        "6 + 6 + 2 letters, then a word longer than a passage"
    )
    document = Passage(id="d", title="", text="a bcdefghijkl")
    pieces = [piece.text for piece in cut_documents([document], 3, tokenize=word_pieces)]
    assert pieces == ["a ", "bcdefghij", "kl"]


def test_a_corpus_of_documents_is_read_as_their_passages(tmp_path: Path) -> None:
    (tmp_path / "books.jsonl").write_text(json.dumps({"text": "one two three", "meta": {}}) + "\n")
    corpus = read_corpus(tmp_path / "books.jsonl", lambda documents: cut_documents(documents, 2, tokenize=words))
    assert [(p.id, p.text) for p in corpus.passages] == [("1#0", "one two "), ("1#1", "three")]


def test_a_length_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 token, got 0"):
        list(cut_documents(PASSAGES, 0, tokenize=words))


def test_rows_without_ids_of_several_files_are_told_apart(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": f"of {name}"}) + "\n")
    assert [passage.id for passage in read_corpus(tmp_path).passages] == ["a.jsonl:1", "b.jsonl:1"]
    assert [passage.id for passage in read_corpus(tmp_path / "a.jsonl").passages] == ["1"]


def test_an_index_of_documents_that_leave_a_blank_passage_is_opened(tmp_path: Path) -> None:
    def lines(text: str) -> Spans:
        return [match.span() for match in re.finditer(r"\S+|\n", text)]

    (tmp_path / "books.jsonl").write_text(json.dumps({"text": "a b c d\n"}) + "\n")
    corpus = read_corpus(tmp_path / "books.jsonl", lambda documents: cut_documents(documents, 4, tokenize=lines))
    assert corpus.passages[-1].text == "\n"
    for new in (True, False):
        index = ensure_index(BM25Config(), corpus, tmp_path / "work")
        assert (index.corpus.digest, index.new) == (corpus.digest, new)
    assert len(open_index(index.folder).search(["a"], len(corpus.passages))[0]) == len(corpus.passages)
