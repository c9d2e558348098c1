"""A SentencePiece model as a Hugging Face tokenizer: the same ids for the same text, but for what is pinned here."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as model_files

from energymt.data.bridge import Bridge
from energymt.data.hub import HubVocabulary
from energymt.data.hub_pieces import hub_vocabulary
from energymt.data.vocabulary import SentencePieceVocabulary, load_vocabulary, require_same
from energymt.errors import ConfigurationError
from tests.data.conftest import ENGLISH, GERMAN

TEXT = [*GERMAN, *ENGLISH, "Straße fi ½ 漢字 Привет , 12 of 34"] * 3
NORMALIZATIONS = ("nmt_nfkc", "nfkc", "identity")
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
normalizations = pytest.mark.parametrize("normalization", NORMALIZATIONS)

WORDS = {name: SentencePieceVocabulary.train(TEXT, 150, normalization=name) for name in NORMALIZATIONS}
PIECES = {name: hub_vocabulary(words) for name, words in WORDS.items()}
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]))  # but halves of characters, which are no text
LIKE_THE_TEXT = st.text(st.sampled_from("ado. ,12  läßü½ﬁ字П<>s/\t\r\n\x85\xa0\u3000"))


SCORES = {
    name: [piece.score for piece in model_files.ModelProto.FromString(words.model).pieces]
    for name, words in WORDS.items()
}


def same(found: list[int], expected: list[int], normalization: str) -> bool:
    """The same split, or another that is as likely to the last digits of a float32: the two break such ties apart."""
    scores = SCORES[normalization]
    words = WORDS[normalization]
    as_likely = math.isclose(sum(scores[i] for i in found), sum(scores[i] for i in expected), rel_tol=1e-6)
    spelled = ["".join(words.piece(i) for i in ids) for ids in (found, expected)]
    return found == expected or (as_likely and spelled[0] == spelled[1])


def agree(text: str, normalization: str) -> None:
    words, pieces = WORDS[normalization], PIECES[normalization]
    assert same(pieces.encode(text), words.encode(text), normalization)
    start, *rest = pieces.encode_source(text)
    assert start == words.bos_id and same(rest, words.encode_source(text), normalization)


@normalizations
@given(text=ANYTHING | LIKE_THE_TEXT)
@example(text="")
@example(text=" \t a  dog\n")
@example(text="a dog \n runs")  # whose spaces stand at the end of a line, but not of the text
@example(text="½ﬁ ")
@example(text="各かがÅ")
@example(text="0ara")  # "ar a" and "a ra" are as likely as one another
def test_the_ids_are_those_of_sentencepiece(normalization: str, text: str) -> None:
    assume(not any(name in text for name in SPECIAL) and "▁" not in text)
    agree(text, normalization)


@given(text=st.text(st.sampled_from("▁ ado.\n")))
def test_a_written_mark_of_a_word_is_a_space(text: str) -> None:
    """As the default normalisation has it; without it SentencePiece keeps one more mark."""
    agree(text, "nmt_nfkc")


@normalizations
def test_the_text_of_training_is_split_as_sentencepiece_splits_it(normalization: str) -> None:
    for line in TEXT:
        agree(line, normalization)
        ids = WORDS[normalization].encode(line)
        assert len(ids) > len(line.split()) and PIECES[normalization].decode(ids) == WORDS[normalization].decode(ids)


def test_the_name_of_a_special_token_is_that_token() -> None:
    """Where SentencePiece reads its characters; an estimator leaves special tokens out of every text."""
    words, pieces = WORDS["nmt_nfkc"], PIECES["nmt_nfkc"]
    for token, name in enumerate(SPECIAL):
        assert pieces.encode(name) == [token]
        assert len(words.encode(name)) > 1
    assert pieces.encode("a </s> dog") == [*words.encode("a "), words.eos_id, *words.encode(" dog")]


def test_an_accent_behind_what_normalisation_takes_apart_is_lost() -> None:
    words, pieces = WORDS["nmt_nfkc"], PIECES["nmt_nfkc"]
    assert words.encode("½\u0301") == [*words.encode("½"), words.unk_id]
    assert pieces.encode("½\u0301") == words.encode("½")


def test_special_tokens_have_their_ids() -> None:
    words, pieces = WORDS["nmt_nfkc"], PIECES["nmt_nfkc"]
    for name in ("size", "input_size", "pad_id", "unk_id", "bos_id", "eos_id", "mask_id", "never_ids"):
        assert getattr(pieces, name) == getattr(words, name), name
    assert [pieces.piece(i) for i in range(pieces.size)] == [words.piece(i) for i in range(words.size)]
    joined = pieces.tokenizer("a dog", "a book").input_ids
    a, b = words.encode("a dog"), words.encode("a book")
    assert joined == [words.bos_id, *a, words.eos_id, words.eos_id, *b, words.eos_id]


def test_a_translator_of_these_pieces_needs_no_bridge() -> None:
    words, pieces = WORDS["nmt_nfkc"], PIECES["nmt_nfkc"]
    bridge = Bridge(words, pieces)
    assert bridge.identical and bridge.coverage == 1.0
    ids_BT = torch.tensor([words.encode(ENGLISH[0])])
    assert torch.equal(bridge.rows(ids_BT), ids_BT)
    table_VD = torch.randn(pieces.size, 3)
    kept = [token for token in range(words.size) if token not in {*words.never_ids, words.eos_id}]
    assert torch.equal(bridge.table(table_VD)[kept], table_VD[kept])


def test_it_is_written_and_read_back(tmp_path: Path) -> None:
    pieces = PIECES["nmt_nfkc"]
    pieces.save(tmp_path)
    found = load_vocabulary(tmp_path)
    assert isinstance(found, HubVocabulary)
    require_same(pieces, found, "written", "read")
    assert found.never_ids == pieces.never_ids
    for line in [*TEXT, "½ </s> ", " Ä\u00a0\x85", "<mask>"]:
        assert found.encode(line) == pieces.encode(line)
        assert found.encode_source(line) == pieces.encode_source(line)
        assert found.decode(pieces.encode(line)) == pieces.decode(pieces.encode(line))


@pytest.mark.parametrize(
    "options",
    [{"model_type": "word"}, {"model_type": "bpe"}, {"segmented": True, "joiner": "▁"}, {"byte_fallback": True}],
)
def test_other_models_are_refused(options: dict) -> None:
    words = SentencePieceVocabulary.train(TEXT, 400, **options)
    with pytest.raises(ConfigurationError, match=r"unigram model: train .*model_type: unigram"):
        hub_vocabulary(words)
