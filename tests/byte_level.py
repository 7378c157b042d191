"""A byte-level BPE with RoBERTa's special tokens, made in memory: an encoder's own tokenizer."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

TEXTS = ("The birthplace of Mirel Tovan is Grell.", "Known rival of Mirel Tovan was Pavo.", "two  spaces, naïve 日本語")


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Other tokens than the decoder's: merges across its borders, and no text that it cannot spell.

    A new one each time (3 ms): a test may take its special tokens away.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
