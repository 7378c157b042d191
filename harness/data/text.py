"""Long texts as token ids: what language modelling is trained and measured on.

Any folder or Hub id that ``datasets`` reads (parquet, jsonl, also gzipped or zstd) with a column of text and one that
names the set it belongs to, as SlimPajama has them. ``prepare`` trains a byte-level BPE on the training split and
writes every document down as token ids, once; what is trained and measured afterwards is cut from those ids, so that
no text is ever decoded and tokenised again, and a window of n tokens has exactly n.

    <runs>/text/text-<digest>/tokenizer/               a transformers tokenizer
    <runs>/text/text-<digest>/train-book.npy           the ids of all documents of a split and a set, end to end
    <runs>/text/text-<digest>/train-book.starts.npy    where each document starts, and where the last one ends
    <runs>/text/text-<digest>/manifest.json            source, settings, counts; written last

The digest is that of the source's files and of ``TextConfig``: it is what records and checkpoints call this text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.config import digest, file_digest, plain
from harness.data.stream import windows
from harness.errors import InputError, unknown
from harness.files import is_file_name, write_atomically
from harness.prompts import text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 1
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SPLITS = ("train", "validation")
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
MANIFEST, TOKENIZER = "manifest.json", "tokenizer"
MADE_BY = (
    "`refrag-bench run perplexity` makes one, below RUNS/text, for the text-* scales; what `refrag-bench data prepare` "
    "makes, windows, is for stream-smoke and paper-*"
)

Ids = NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """``vocabulary`` is the BPE's size, its 256 bytes and three special tokens included.

    ``set_column`` may lie inside another column: names with dots between.
    """

    vocabulary: int = 2048
    text_column: str = "text"
    set_column: str = "meta.redpajama_set_name"

    def __post_init__(self) -> None:
        if not 259 <= self.vocabulary <= 1 << 16:
            raise InputError(f"expected a vocabulary of 259 (bytes and special tokens) to 65536, got {self.vocabulary}")


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text and its set, as short as possible: ``RedPajamaBook`` is ``book``."""

    set: str
    text: str


def text_folder(where: str, config: TextConfig, runs: Path) -> Path:
    """Where ``prepare`` puts the text of ``where``. Raises ``InputError`` where there is no such dataset."""
    return runs / "text" / f"text-{digest([FORMAT, _Source.open(where).revision, config])}"


def prepare(where: str, config: TextConfig, runs: Path) -> Path:
    """Tokenise the dataset ``where``; what is there already is not made again. Returns the folder.

    Raises ``InputError`` where there is no such dataset, no split of ``SPLITS`` or no such column.
    """
    folder = text_folder(where, config, runs)
    if (folder / MANIFEST).exists():
        return folder
    source = _Source.open(where)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer((document.text for document in source.documents("train", config)), config)
    tokenizer.save_pretrained(folder / TOKENIZER)
    counts = {split: _write_split(folder, split, source.documents(split, config), tokenizer) for split in SPLITS}
    manifest = {
        "format": FORMAT,
        "dataset": source.name,
        "revision": source.revision,
        "config": plain(config),
        "counts": counts,
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return folder


def train_tokenizer(texts: Iterator[str], config: TextConfig) -> PreTrainedTokenizerFast:
    """A byte-level BPE: every text survives the round trip, and no text can spell a special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


class Text:
    """A prepared text. Documents of a split and a set lie end to end; nothing crosses from one into the next."""

    def __init__(self, folder: Path) -> None:
        """Raises ``InputError`` where ``folder`` holds no prepared text."""
        path = folder / MANIFEST
        if not path.exists():
            found = "prepared windows" if (folder / windows.MANIFEST).exists() else "no such file"
            raise InputError(f"expected a prepared text at {folder}, with {MANIFEST} in it; found {found} ({MADE_BY})")
        try:
            self.manifest: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.counts: Mapping[str, Mapping[str, Any]] = self.manifest["counts"]
            form, named = self.manifest["format"], [name for split in self.counts.values() for name in split]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"expected a prepared text at {folder}, with {MANIFEST} in it ({error})") from error
        if form != FORMAT:
            raise InputError(f"{path}: expected format {FORMAT}, got {form!r}; delete the folder to prepare it again")
        if other := [name for name in (*self.counts, *named) if not is_file_name(name)]:
            raise InputError(f"{path} is damaged: no set or split is called {other[0]!r}; prepare it again")
        self.folder, self.name = folder, folder.name
        self._read: dict[tuple[str, str], tuple[Ids, NDArray[np.int64]]] = {}

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets of the training split."""
        return tuple(sorted(self.counts["train"]))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        from transformers import PreTrainedTokenizerFast

        found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.folder / TOKENIZER)
        return found

    def ids(self, split: str, name: str) -> tuple[Ids, NDArray[np.int64]]:
        """All ids of a set end to end, and the borders of its n documents, n + 1 of them.

        Raises ``InputError`` with the valid names.
        """
        if split not in self.counts:
            raise unknown("split", split, self.counts)
        if name not in self.counts[split]:
            raise unknown(f"set of {split}", name, self.counts[split])
        if (split, name) not in self._read:
            self._read[split, name] = _read_set(self.folder / f"{split}-{name}")
        return self._read[split, name]


def _read_set(stem: Path) -> tuple[Ids, NDArray[np.int64]]:
    """The ids of a set, memory-mapped, and its borders. Raises ``InputError`` where they are damaged or cut short."""
    try:
        ids, borders = np.load(f"{stem}.npy", mmap_mode="r"), np.load(f"{stem}.starts.npy")
        whole = ids.dtype == np.uint16 and borders.dtype == np.int64 and ids.ndim == borders.ndim == 1
        if not whole or not len(borders) or borders[0] or borders[-1] != len(ids) or (np.diff(borders) < 0).any():
            raise ValueError(f"{ids.shape} ids do not go with {borders.shape} borders")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{stem}.npy or its .starts.npy is damaged ({error}); prepare the text again") from error
    return ids, borders


@lru_cache
def open_text(folder: Path) -> Text:
    """The prepared text in ``folder``, opened once."""
    return Text(folder)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A folder's files by split, or a Hub id (``files`` is empty), and what identifies their content."""

    where: str
    revision: str
    files: Mapping[str, Sequence[str]]

    @classmethod
    def open(cls, where: str) -> _Source:
        if Path(where).is_dir():
            files = {split: sorted(_files(Path(where), split)) for split in SPLITS}
            if missing := [split for split, found in files.items() if not found]:
                raise InputError(
                    f"{where}: expected files {missing[0]}*.parquet or .jsonl (.gz, .zst), in folders or not; found none"
                )
            return cls(where=where, revision=file_digest(*map(Path, sum(files.values(), []))), files=files)
        import datasets
        from datasets.exceptions import DatasetsError

        try:
            return cls(where=where, revision=str(datasets.load_dataset_builder(where).hash), files={})
        except (ConnectionError, DatasetsError, OSError, ValueError) as error:
            raise InputError(f"no text dataset {where!r}: neither a folder nor a reachable Hub id") from error

    @property
    def name(self) -> str:
        return Path(self.where).name if self.files else self.where

    def documents(self, split: str, config: TextConfig) -> Iterator[Document]:
        """Streamed: the files are read as they are, and no copy of them goes to a cache."""
        import datasets

        if self.files:
            kind = "parquet" if self.files[split][0].endswith(".parquet") else "json"
            rows = datasets.load_dataset(kind, data_files=dict(self.files), split=split, streaming=True)
        else:
            rows = datasets.load_dataset(self.where, split=split, streaming=True)
        for row in rows:
            text, name = _cell(row, config.text_column, self.where), _cell(row, config.set_column, self.where)
            if not isinstance(text, str) or not isinstance(name, str) or not name:
                raise InputError(f"{self.where}, split {split}: expected a text and the name of its set in every row")
            name = name.removeprefix("RedPajama").lower()
            if not is_file_name(name):
                raise InputError(f"{self.where}, split {split}: no file can be named after the set {name!r}")
            yield Document(set=name, text=text)


def _files(folder: Path, split: str) -> Iterator[str]:
    """Those of ``SUFFIXES`` with a name, or in a folder of a name, that starts with that of the split."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.name.endswith(SUFFIXES) and any(part.startswith(split) for part in parts):
            yield str(path)


def _cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    found: Any = row
    for part in column.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise InputError(f"{where}: missing column {column}; columns found: {', '.join(row)}")
        found = found[part]
    return found


def _write_split(
    folder: Path, split: str, documents: Iterator[Document], tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    """Write every set of a split; returns documents, characters and tokens of each."""
    ids: dict[str, list[NDArray[np.uint16]]] = {}
    characters: dict[str, int] = {}
    for document in documents:
        (tokens,) = text_ids(tokenizer, [document.text])
        ids.setdefault(document.set, []).append(np.array(tokens, dtype=np.uint16))
        characters[document.set] = characters.get(document.set, 0) + len(document.text)
    for name, rows in ids.items():
        np.save(folder / f"{split}-{name}.npy", np.concatenate(rows))
        np.save(folder / f"{split}-{name}.starts.npy", _borders(rows))
    return {
        name: {"documents": len(rows), "characters": characters[name], "tokens": int(_borders(rows)[-1])}
        for name, rows in sorted(ids.items())
    }


def _borders(rows: Sequence[Ids]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, rows)], dtype=np.int64)
