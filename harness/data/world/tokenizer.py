"""The tokenizer of the tiny decoders: one token per world word, bytes for everything else.

A unigram model over the closed lexicon with byte fallback, so that any text survives the round trip (a user's own
questions must not crash a tiny model, though it will not understand them). Words carry the space before them
(``▁``), punctuation stands alone. Four tags structure the prompt; they are special tokens, so no text can forge
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.data.world.lexicon import lexicon
from harness.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN, PASSAGE, ANSWER = "<pad>", "<s>", "</s>", "<unk>", "<passage>", "<answer>"
TAGS = (PAD, BOS, EOS, UNKNOWN, PASSAGE, ANSWER)


def build_tokenizer(max_length: int = 4096) -> PreTrainedTokenizerFast:
    """The tokenizer, built in memory.

    ``decode(encode(text)) == text`` for every text that neither starts with a space nor holds U+2581, the two that
    this family of tokenizers (LLaMA-2's among them) folds into its word mark.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The segmentation with the highest sum wins, and a character outside the lexicon scores (lowest score - 10) = 10
    # before it becomes bytes. So spelling out "</s>" or "<0x0A>" beats the piece of that name, and no text can forge
    # one; and a whole word beats both its spelling and a shorter word with the rest spelled.
    pieces = [(tag, 20.0) for tag in TAGS]
    pieces += [(f"<0x{byte:02X}>", 20.0) for byte in range(256)]
    pieces += [(f"▁{word}", 100.0 * (1 + len(word))) for word in lexicon().words()]
    pieces += [(".", 100.0), ("?", 100.0), ("▁", 20.0)]

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=TAGS.index(UNKNOWN), byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            pre_tokenizers.Split("<", "isolated"),  # or unknown characters run together could spell a tag
            pre_tokenizers.Split(".", "isolated"),
            pre_tokenizers.Split("?", "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.add_special_tokens([AddedToken(tag, special=True, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[PASSAGE, ANSWER],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def content_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, frozenset[int]]:
    """The tokens of which a passage is more than grammar: ``names`` and ``values``, each word one token.

    Raises ``InputError`` for a tokenizer that spells the world's words in pieces.
    """
    words = lexicon()

    def ids(of: Iterable[str]) -> frozenset[int]:
        found = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in of}
        for word, pieces in found.items():
            if len(pieces) != 1:
                raise InputError(
                    f"expected a decoder of the synthetic world, whose words are one token each; "
                    f"this tokenizer makes {len(pieces)} of {word!r}"
                )
        return frozenset(pieces[0] for pieces in found.values())

    return {
        "names": ids([*words.first_names, *words.last_names]),
        "values": ids(value for relation in words.relations for value in relation.values),
    }
