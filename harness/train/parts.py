"""What a checkpoint in parts says of itself, read so that nothing in it can run code or point out of its folder.

torch's reader unpickles ``.metadata`` whatever is in it, and values that are no tensors after it; a checkpoint may have
been copied from elsewhere. So only the classes that the file is made of are known here, all values must be tensors,
and every part must be a file of the folder itself.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as kinds
from torch.distributed.checkpoint.filesystem import FileSystemReader

from harness.errors import InputError
from harness.files import is_file_name

METADATA = ".metadata"

_KINDS = "torch.distributed.checkpoint.metadata"
_KNOWN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *((_KINDS, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata")),
    *((_KINDS, name) for name in ("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING")),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # as Python 3.13 calls it
}


class Parts(FileSystemReader):
    """torch's reader of the parts in a folder, with metadata that are read as above."""

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> kinds.Metadata:
        """Raises ``InputError`` where they are damaged, or anything but the metadata of tensors in this folder."""
        found = _read(Path(self.path) / METADATA)
        found.storage_meta = found.storage_meta or kinds.StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in _KNOWN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of it")


def _read(path: Path) -> kinds.Metadata:
    try:
        found = _Unpickler(io.BytesIO(path.read_bytes())).load()
        tensors, parts = found.state_dict_metadata, found.storage_data
        other = [name for name, about in tensors.items() if not isinstance(about, kinds.TensorStorageMetadata)]
        outside = [part.relative_path for part in parts.values() if not is_file_name(part.relative_path)]
    except Exception as error:  # unpickling damaged bytes raises whatever the bytes spell
        raise InputError(f"checkpoint {path.parent} is damaged: {METADATA}: {error}; delete it to go on") from error
    if not isinstance(found, kinds.Metadata) or other or outside:
        raise InputError(
            f"checkpoint {path.parent} is damaged: {METADATA}: expected tensors in files of its folder, got "
            f"{[*other, *outside][:3]}"
        )
    return found
