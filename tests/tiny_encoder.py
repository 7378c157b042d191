"""A two-layer random BERT in a sentence-transformers folder: what an encoder looks like on disk."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ("cats", "cat", "chase", "mice", "dogs", "a", "the", "dog", "sleeps", "dreams", "of", "parrot", "who", "what")


def write_tiny_encoder(folder: Path, pooling: str = "mean", max_tokens: int = 16, prompt: str = "") -> Path:
    """Random weights of seed 0, hidden size 16, one token per known word."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    rust = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    rust.normalizer, rust.pre_tokenizer = Lowercase(), Whitespace()
    rust.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=rust, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # at BERT's own 0.02 all texts look alike
    model.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": prompt}}))
    return folder
