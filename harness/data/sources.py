"""Where questions come from: the Hub, or a local mirror whose ``hub/<owner>/<name>`` folders have the Hub's schema.

One loader serves both, because a mirror is loaded by the same call with the id replaced by a path. Two guards make
that safe. ``datasets`` keys its cache for a local folder on the folder's base name and its card, not on its path or
contents, so two mirrors could be confused: each gets a cache folder named after its path and its bytes. And row
counts are checked, against the card of a mirror and against the known sizes on the Hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import digest, file_digest
from harness.data import conversations
from harness.errors import InputError, unknown
from harness.protocol import Example

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

ID_LENGTH = 12
FILES_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRoot:
    """A local mirror (``path``) or the Hub (``path`` is None), and the name that records give it."""

    path: Path | None
    name: str

    @classmethod
    def open(cls, path: Path | None = None) -> DataRoot:
        """The mirror at ``path``, else at the environment's REFRAG_DATA, else the Hub.

        A mirror is named by the ``name`` in its ``root.json``, if it has one. Raises ``InputError`` when the folder
        holds no ``hub/``, or its ``root.json`` cannot be read or claims a synthetic world's name without being one.
        """
        path = path or (Path(os.environ["REFRAG_DATA"]) if os.environ.get("REFRAG_DATA") else None)
        if path is None:
            return cls(path=None, name="hub")
        if not (path / "hub").is_dir():
            found = f"it holds {_listing(path)}" if path.is_dir() else "there is no such folder"
            raise InputError(f"expected a data folder with hub/ inside at {path}; {found}")
        return cls(path=path, name=_root_name(path / "root.json"))

    def file(self, relative: str) -> Path | None:
        """A file or folder of the mirror if it is there; the Hub has none."""
        found = self.path / relative if self.path else None
        return found if found and found.exists() else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What was loaded, exactly: the fingerprint that records carry. ``rows`` counts the whole split."""

    root: str
    dataset: str
    config: str
    split: str
    rows: int
    revision: str
    """The Hub's commit, or the digest of the split's data files in a mirror."""


@dataclass(frozen=True, kw_only=True)
class HubSplit:
    """A split of a dataset: where it is, and what it must have."""

    hub_id: str
    config: str | None
    split: str
    hub_rows: int | None
    """How many rows the split has on the Hub; None where that is not known, and not checked."""
    columns: tuple[str, ...]
    optional_columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QuestionSet(HubSplit):
    """A dataset of questions, and how its rows are read."""

    read: Callable[[Mapping[str, Any]], tuple[str, Any, dict[str, Any]]]
    """A row's id, its answers as they stand there, and its meta."""
    question: Callable[[Mapping[str, Any]], Any] = itemgetter("question")
    """A row's question as it stands there."""
    repeats_questions: bool = False


def question_id(question: str) -> str:
    """The id of an NQ question, which the dataset does not give: ``nq_`` and 12 hex digits of its SHA-256."""
    return f"nq_{hashlib.sha256(question.encode()).hexdigest()[:ID_LENGTH]}"


def _read_nq(row: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    return question_id(row["question"]), row["answer"], {}


def _read_triviaqa(row: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    answer = row["answer"] or {}
    return str(row["question_id"]), answer.get("aliases"), {"value": answer.get("value")}


def _read_popqa(row: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    try:
        answers = json.loads(row["possible_answers"])
    except (TypeError, json.JSONDecodeError):
        answers = row["possible_answers"]  # not the list of texts that is checked for next
    return f"popqa_{row['id']}", answers, {"s_pop": row["s_pop"], "prop": row["prop"], "subj": row["subj"]}


def _conversations(name: str, hub_id: str, *, split: str) -> QuestionSet:
    """Turns of conversations, the whole of what was said before in each question: so retrieval finds what it is of."""
    return QuestionSet(
        hub_id=hub_id,
        config=None,
        split=split,
        hub_rows=None,  # never loaded from the Hub here
        columns=conversations.COLUMNS,
        optional_columns=conversations.OPTIONAL_COLUMNS,
        read=partial(conversations.read_turn, name),
        question=conversations.whole_question,
    )


QUESTION_SETS: Mapping[str, QuestionSet] = {
    "nq": QuestionSet(
        hub_id="google-research-datasets/nq_open",
        config=None,
        split="validation",
        hub_rows=3610,
        columns=("question", "answer"),
        read=_read_nq,
    ),
    "triviaqa": QuestionSet(
        hub_id="mandarjoshi/trivia_qa",
        config="rc.nocontext",
        split="validation",
        hub_rows=17944,
        columns=("question", "question_id", "answer"),
        read=_read_triviaqa,
        # The rc configurations hold the Web rows and then the Wikipedia rows of what are mostly the same questions.
        repeats_questions=True,
    ),
    "popqa": QuestionSet(
        hub_id="akariasai/PopQA",
        config=None,
        split="test",
        hub_rows=14267,
        columns=("id", "question", "possible_answers", "s_pop", "prop", "subj"),
        read=_read_popqa,
    ),
    "topiocqa": _conversations("topiocqa", "McGill-NLP/TopiOCQA", split="validation"),
    "qrecc": _conversations("qrecc", "svakulenk0/qrecc", split="test"),
    "orconvqa": _conversations("orconvqa", "prdwb/orconvqa", split="test"),
}


def load_questions(
    suite: str, root: DataRoot, split: str | None = None, limit: int | None = None
) -> tuple[list[Example], Source]:
    """The questions of ``suite`` (a key of ``QUESTION_SETS``) in file order, at most ``limit``, and what they came from.

    A question that TriviaQA's rows repeat comes once, with the answers of all its rows. Examples have no passages.

    Raises ``InputError`` for an unknown suite, a missing dataset or column, an unexpected number of rows, a row
    without a question or answers, and ids that stand for two questions.
    """
    if suite not in QUESTION_SETS:
        raise unknown("suite", suite, QUESTION_SETS)
    if limit is not None and limit < 1:
        raise InputError(f"expected a limit of at least 1 question, got {limit}")
    questions = QUESTION_SETS[suite]
    rows, source = load_rows(questions, root, split)
    examples = _examples(questions, rows)
    return examples[:limit], source


def load_rows(
    wanted: HubSplit, root: DataRoot, split: str | None = None, limit: int | None = None
) -> tuple[list[dict[str, Any]], Source]:
    """The columns of ``wanted``, row by row in file order, at most ``limit``, and what they came from.

    Raises ``InputError`` for a missing dataset or column, an unexpected number of rows, and a file of a mirror, which
    it names, that is empty, damaged, or not UTF-8.
    """
    dataset, source, where = _load(wanted, root, split or wanted.split)
    _require_columns(wanted.hub_id, wanted.columns, dataset.column_names)
    there = [column for column in wanted.optional_columns if column in dataset.column_names]
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    try:
        return dataset.select_columns([*wanted.columns, *there]).to_list(), source
    except UnicodeDecodeError as error:  # Arrow keeps the bytes of a text as they are
        raise _unreadable(wanted, where, error) from error


def _examples(questions: QuestionSet, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
    """Every question of ``rows``, once. Raises ``InputError`` naming the first row that cannot be an example."""
    examples: dict[str, Example] = {}
    repeated: dict[str, None] = {}
    for number, row in enumerate(rows):
        try:
            question = questions.question(row)
            if not isinstance(question, str) or not question.strip():
                raise InputError(f"expected a question, got {question!r}")
            name, answers, meta = questions.read(row)
        except InputError as error:
            raise InputError(f"{questions.hub_id}, row {number}: {error}") from error
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{questions.hub_id}, row {number} is malformed: {error}") from error
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise InputError(
                f"{questions.hub_id}, row {number} ({name}): expected a list of at least one answer, got {answers!r}"
            )
        earlier = examples.get(name)
        if earlier is None:
            examples[name] = Example(id=name, question=question, answers=tuple(answers), meta=meta)
        elif questions.repeats_questions and earlier.question == question:
            examples[name] = replace(earlier, answers=tuple(dict.fromkeys((*earlier.answers, *answers))))
        else:
            repeated[name] = None
    if repeated:
        names = ", ".join(list(repeated)[:5])
        raise InputError(f"{questions.hub_id}: expected unique question ids, got {len(repeated)} repeated: {names}")
    return list(examples.values())


def cache_folder() -> Path:
    """The environment's REFRAG_CACHE, or ``~/.cache/refrag-bench``."""
    return Path(os.environ.get("REFRAG_CACHE") or "~/.cache/refrag-bench").expanduser()


def _load(questions: HubSplit, root: DataRoot, split: str) -> tuple[Dataset, Source, str]:
    """The split with its fingerprint, and where it is, for the reader of an error.

    Raises ``InputError`` where ``datasets`` would raise an error of its own.
    """
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    where = questions.hub_id if root.path is None else str(_mirror_of(questions, root.path))
    try:
        if root.path is None:
            builder = _builder(questions, where)
            revision, expected = str(builder.hash), questions.hub_rows if split == questions.split else None
        else:
            # A builder over an empty cache still says what the card declares and which files it names.
            with tempfile.TemporaryDirectory() as empty:
                builder = _builder(questions, where, empty)
            revision, expected = file_digest(*_data_files(builder, split)), _declared_rows(builder, split)
            cache = cache_folder() / "datasets" / digest([str(Path(where).resolve()), revision])
            builder = _builder(questions, where, str(cache))
            where = _files_of(builder, where)
        builder.download_and_prepare(verification_mode="no_checks")
        dataset = builder.as_dataset(split=split)
    except InputError:
        raise
    except ConnectionError as error:
        raise InputError(
            f"{questions.hub_id} is not in the local cache and the Hub cannot be reached; "
            "give a mirror with --data or REFRAG_DATA, or let it be downloaded with --allow-download"
        ) from error
    # The library looks into the first file for its columns, and what that raises comes through as it is: StopIteration
    # for a file of no rows, whatever gzip and Arrow have to say of others.
    except (DatasetsError, ArrowException, OSError, ValueError, EOFError, StopIteration, zlib.error) as error:
        raise _unreadable(questions, where, error) from error
    if expected is not None and len(dataset) != expected:
        raise InputError(f"{where}: expected {expected} rows in split {split!r}, found {len(dataset)}")
    source = Source(
        root=root.name,
        dataset=questions.hub_id,
        config=builder.config.name,
        split=split,
        rows=len(dataset),
        revision=revision,
    )
    return dataset, source, where


def _builder(questions: HubSplit, where: str, cache: str | None = None) -> DatasetBuilder:
    import datasets

    if cache is not None:
        # Of local files they would only litter the log; and what is wrong with a file, our own error says.
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    return datasets.load_dataset_builder(where, questions.config, cache_dir=cache)


def _mirror_of(questions: HubSplit, path: Path) -> Path:
    folder = path / "hub" / questions.hub_id
    if not folder.is_dir():
        there = ", ".join(sorted(f"{d.parent.name}/{d.name}" for d in (path / "hub").glob("*/*") if d.is_dir()))
        raise InputError(f"expected the dataset at {folder}; {path / 'hub'} holds {there or 'nothing'}")
    return folder


def _declared_rows(builder: DatasetBuilder, split: str) -> int | None:
    """How many rows the dataset's card promises for ``split``, if it says."""
    splits = builder.info.splits or {}
    return splits[split].num_examples if split in splits else None


def _data_files(builder: DatasetBuilder, split: str) -> list[Path]:
    files = builder.config.data_files or {}
    if split not in files:
        raise unknown("split", split, map(str, files))
    return sorted(Path(file) for file in files[split])


def _files_of(builder: DatasetBuilder, folder: str) -> str:
    """The files that the library reads, in words; of all splits, as it prepares them together."""
    files = sorted({Path(file) for files in (builder.config.data_files or {}).values() for file in files})
    if len(files) == 1:
        return str(files[0])
    shown = ", ".join(file.name for file in files[:FILES_SHOWN])
    return f"{folder} ({shown}{', ...' if len(files) > FILES_SHOWN else ''})"


def _require_columns(hub_id: str, expected: Iterable[str], found: Iterable[str]) -> None:
    missing = [column for column in expected if column not in set(found)]
    if missing:
        raise InputError(f"{hub_id}: missing column {', '.join(missing)}; columns found: {', '.join(found)}")


def _unreadable(questions: HubSplit, where: str, error: BaseException) -> InputError:
    """One line for what ``datasets`` raised; a schema cast is told as the columns that are missing."""
    from datasets.table import CastError

    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
        if isinstance(cause, CastError):
            found = cause.table_column_names
            missing = [column for column in cause.requested_column_names if column not in found]
            if missing:
                return InputError(f"{where}: missing column {', '.join(missing)}; columns found: {', '.join(found)}")
            break
    said = "it holds no rows" if isinstance(cause, StopIteration) else str(cause)
    reason = next((line.strip() for line in said.splitlines() if line.strip()), type(cause).__name__)
    return InputError(f"{where}: cannot be read as {questions.hub_id}: {reason}")


def _root_name(root_json: Path) -> str:
    if not root_json.exists():
        return "mirror"
    try:
        about = json.loads(root_json.read_text(encoding="utf-8"))
        name = str(about.get("name", "mirror"))
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError, AttributeError) as error:
        raise InputError(f"expected a JSON object with a name in {root_json}, cannot read it ({error})") from error
    # Questions of a root of this name are scored as the world's: of others the chance line cannot be computed.
    if name.startswith("world-") and not (isinstance(about.get("version"), int) and "seed" in about):
        raise InputError(f"{root_json}: a root named {name!r} is a synthetic world, with an integer version and a seed")
    return name


def _listing(folder: Path) -> str:
    return ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
