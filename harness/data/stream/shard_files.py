"""Which files is a text in? Those of a folder, a single one, or those that ``datasets`` finds for a Hub id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.data.stream.reading import SUFFIXES
from harness.errors import InputError, unknown

EVERY_SPLIT = "all"


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """``label`` is the path below the folder that it was found in, or its URL; ``size`` is in bytes."""

    path: str
    label: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """A text's files in the order of their labels, and what it is called. ``revision`` is the Hub's, else empty."""

    name: str
    revision: str
    files: tuple[ShardFile, ...]


def find_files(where: str, split: str) -> Found:
    """The files of ``where``: a folder (of it those whose name, or a folder of whose, starts with ``split``; all of
    them for "all"), a file, or a Hub id.

    Raises ``InputError`` where there is no such text, no such split, or a file of another kind.
    """
    path = Path(where)
    if path.is_dir():
        return Found(name=path.resolve().name, revision="", files=tuple(_in_folder(path, split)))
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"expected a file {', '.join(SUFFIXES)}, got {path}")
        files = (ShardFile(path=str(path), label=path.name, size=path.stat().st_size),)
        return Found(name=path.name, revision="", files=files)
    return on_hub(where, split)


def _in_folder(folder: Path, split: str) -> Iterator[ShardFile]:
    there = {path.relative_to(folder): path for path in folder.rglob("*") if path.name.endswith(SUFFIXES)}
    chosen = [
        label for label in there if split == EVERY_SPLIT or any(part.startswith(split) for part in label.parts)
    ]
    if not chosen:
        names = ", ".join(sorted(map(str, there))[:5]) or "none"
        raise InputError(
            f"{folder}: expected files {', '.join(SUFFIXES)} of split {split!r}; found {names} (--split "
            f"{EVERY_SPLIT} takes every file)"
        )
    for label in sorted(chosen, key=lambda label: label.as_posix()):
        yield ShardFile(path=str(there[label]), label=label.as_posix(), size=there[label].stat().st_size)


def on_hub(hub_id: str, split: str) -> Found:
    """The files that ``datasets`` takes ``split`` of ``hub_id`` from. Without leave to download, the Hub is not asked.

    Raises ``InputError`` where there is no such dataset or split, and where its files are of another kind.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        builder = datasets.load_dataset_builder(hub_id)
        named = builder.config.data_files or {}
    except (ConnectionError, DatasetsError, OSError, ValueError) as error:
        raise InputError(
            f"no text {hub_id!r}: neither a folder, nor a file, nor a Hub id that can be reached (the Hub is asked "
            f"with --allow-download)"
        ) from error
    if split not in named:
        raise unknown(f"split of {hub_id}", split, map(str, named))
    urls = sorted(map(str, named[split]))
    if other := [url for url in urls if not url.endswith(SUFFIXES)]:
        raise InputError(f"{hub_id}: expected files {', '.join(SUFFIXES)}, got {other[0]}")
    return Found(name=hub_id, revision=str(builder.hash), files=tuple(_sized(urls)))


def _sized(urls: Sequence[str]) -> Iterator[ShardFile]:
    """One listing per folder: a corpus may have tens of thousands of files."""
    import fsspec

    sizes: dict[str, int] = {}
    fs, _ = fsspec.core.url_to_fs(urls[0])
    for folder in sorted({str(PurePosixPath(fs._strip_protocol(url)).parent) for url in urls}):
        sizes |= {entry["name"]: entry["size"] for entry in fs.ls(folder, detail=True)}
    for url in urls:
        yield ShardFile(path=url, label=url, size=int(sizes[fs._strip_protocol(url)]))
