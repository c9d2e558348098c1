"""A SentencePiece unigram model as a Hugging Face tokenizer of the same tokens, ids and all.

An estimator that reads a translator's own pieces needs no bridge between the two: a relaxed token means the same to
both. Texts get `<s>` and `</s>` around them, as XLM-R's do.

Two things in a text are read in another way than by SentencePiece, here as in every tokenizer of this library: the name
of a special token becomes that token, and an accent behind a character that Unicode normalisation takes apart (`½`,
`ﬁ`) is lost. And of two splits whose probabilities differ in the last digit of a float32, each of the two libraries may
take another.
"""

from __future__ import annotations

from sentencepiece import sentencepiece_model_pb2 as model_files
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import WORD_START, SentencePieceVocabulary
from energymt.errors import ConfigurationError

UNIGRAM = 1  # `model_type` of a SentencePiece file


def hub_vocabulary(words: SentencePieceVocabulary) -> HubVocabulary:
    """The tokenizer of an estimator over the pieces of `words`.

    Raises:
        ConfigurationError: `words` is no unigram model of plain text.
    """
    file = model_files.ModelProto.FromString(words.model)
    if words.segmented or file.trainer_spec.model_type != UNIGRAM or file.trainer_spec.byte_fallback:
        raise ConfigurationError(
            "An estimator reads pieces of plain text by a unigram model: train the vocabulary with "
            "vocabulary.model_type: unigram, on text that is not segmented."
        )
    tokenizer = Tokenizer(Unigram([(piece.piece, piece.score) for piece in file.pieces], unk_id=words.unk_id))
    charsmap = file.normalizer_spec.precompiled_charsmap
    steps = [normalizers.Precompiled(charsmap)] if charsmap else []
    # As SentencePiece: spaces at both ends go, several are one. (normalizers.Strip takes other white space away too.)
    steps += [normalizers.Replace(Regex(ends), "") for ends in (r"\A +", rf"[ {WORD_START}]+\z")]
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=WORD_START, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", words.bos_id), ("</s>", words.eos_id)],
    )
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **names)
    return HubVocabulary(fast)
