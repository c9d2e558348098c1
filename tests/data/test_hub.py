from collections.abc import Callable
from pathlib import Path

import pytest

from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import SentencePieceVocabulary, load_vocabulary, require_same
from energymt.errors import ConfigurationError, StorageError

Folders = Callable[[str], Path]

SOURCE, TARGET = "ein Hund läuft über die Wiese .", "a dog runs over the meadow ."
OPTIONS: dict[str, dict[str, str]] = {
    "marian": {"source_prefix": ">>eng<< "},
    "t5": {"source_prefix": "a book: "},
    "bart": {},
    "mbart50": {"source_language": "de_DE", "target_language": "en_XX"},
    "nllb": {"source_language": "deu_Latn", "target_language": "eng_Latn"},
    "m2m100": {"source_language": "de", "target_language": "en"},
}
CODES = {"mbart50": ("de_DE", "en_XX"), "nllb": ("deu_Latn", "eng_Latn"), "m2m100": ("__de__", "__en__")}
HAS_MASK = {"bart", "mbart50", "nllb"}

families = pytest.mark.parametrize("family", list(OPTIONS))


def opened(folders: Folders, family: str) -> HubVocabulary:
    return HubVocabulary.open(folders(family), **OPTIONS[family])


@families
def test_target_side(tokenizer_folder: Folders, family: str) -> None:
    vocabulary = opened(tokenizer_folder, family)
    ids = vocabulary.encode(TARGET)
    assert vocabulary.decode(ids) == TARGET
    assert vocabulary.decode([*ids, vocabulary.eos_id, *ids]) == TARGET
    assert vocabulary.decode([vocabulary.pad_id, *ids, vocabulary.mask_id, vocabulary.size + 5]) == TARGET
    assert not set(ids) & {*vocabulary.never_ids, vocabulary.eos_id, vocabulary.unk_id}
    assert vocabulary.decode([]) == ""
    assert "unk" in vocabulary.decode([vocabulary.unk_id])


@families
def test_source_side(tokenizer_folder: Folders, family: str) -> None:
    vocabulary = opened(tokenizer_folder, family)
    ids = vocabulary.encode_source(SOURCE)
    assert ids[-1] == vocabulary.eos_id and ids.count(vocabulary.eos_id) == 1
    pieces = [vocabulary.piece(i) for i in ids]
    if family in CODES:
        assert pieces[0] == CODES[family][0]
    if family == "marian":
        assert pieces[0] == ">>eng<<"
    if family == "t5":
        assert "".join(pieces).replace("▁", " ").startswith(" a book")


@families
def test_special_tokens_and_sizes(tokenizer_folder: Folders, family: str) -> None:
    vocabulary = opened(tokenizer_folder, family)
    ids = {vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id}
    assert max(ids) < vocabulary.size
    assert vocabulary.pad_id in vocabulary.never_ids and vocabulary.bos_id in vocabulary.never_ids
    assert not {vocabulary.eos_id, vocabulary.unk_id} & set(vocabulary.never_ids)
    assert min(vocabulary.never_ids) >= 0 and max(vocabulary.never_ids) < vocabulary.size
    if family in HAS_MASK:
        assert vocabulary.piece(vocabulary.mask_id) == "<mask>" and vocabulary.mask_id in vocabulary.never_ids
        assert vocabulary.input_size == vocabulary.size
    else:
        assert vocabulary.mask_id == vocabulary.size and vocabulary.input_size == vocabulary.size + 1
    assert all(i < vocabulary.size for i in [*vocabulary.encode(TARGET), *vocabulary.encode_source(SOURCE)])


@families
def test_language_codes(tokenizer_folder: Folders, family: str) -> None:
    vocabulary = opened(tokenizer_folder, family)
    if family in CODES:
        assert vocabulary.target_code is not None
        assert vocabulary.piece(vocabulary.target_code) == CODES[family][1]
        assert vocabulary.target_code in vocabulary.never_ids
    else:
        assert vocabulary.target_code is None


@families
def test_saved_vocabulary_is_read_back(tokenizer_folder: Folders, tmp_path: Path, family: str) -> None:
    vocabulary = opened(tokenizer_folder, family)
    vocabulary.save(tmp_path / "model")
    found = load_vocabulary(tmp_path / "model")
    assert isinstance(found, HubVocabulary)
    require_same(vocabulary, found, "teacher", "student")
    assert found.never_ids == vocabulary.never_ids and found.target_code == vocabulary.target_code
    assert found.encode(TARGET) == vocabulary.encode(TARGET)
    assert found.encode_source(SOURCE) == vocabulary.encode_source(SOURCE)


def test_target_text_does_not_touch_the_source_side(tokenizer_folder: Folders) -> None:
    vocabulary = opened(tokenizer_folder, "marian")
    before = vocabulary.encode_source(SOURCE)
    assert vocabulary.unk_id not in vocabulary.encode(TARGET), "Marian's target model reads the target"
    assert vocabulary.encode_source(SOURCE) == before
    assert vocabulary.unk_id not in before


@pytest.mark.parametrize("family", list(OPTIONS))
@pytest.mark.parametrize("side", ["source_language", "target_language"])
def test_unknown_language_is_refused(tokenizer_folder: Folders, family: str, side: str) -> None:
    problem = "knows no language 'xx_YY'" if family in CODES else "knows no language codes"
    with pytest.raises(ConfigurationError, match=problem):
        HubVocabulary.open(tokenizer_folder(family), **{side: "xx_YY"})


def test_separate_vocabularies_are_refused(tokenizer_folder: Folders) -> None:
    tokenizer = HubVocabulary.open(tokenizer_folder("marian")).tokenizer
    tokenizer.separate_vocabs = True
    with pytest.raises(ConfigurationError, match="needs a shared one"):
        HubVocabulary(tokenizer)


def test_tokenizer_without_end_token_is_refused(tokenizer_folder: Folders) -> None:
    tokenizer = HubVocabulary.open(tokenizer_folder("bart")).tokenizer
    tokenizer.pad_token = None
    with pytest.raises(ConfigurationError, match="no padding token"):
        HubVocabulary(tokenizer)


def test_missing_or_broken_tokenizer(tokenizer_folder: Folders, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"{tmp_path} holds no tokenizer"):
        HubVocabulary.open(tmp_path)
    vocabulary = opened(tokenizer_folder, "bart")
    vocabulary.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(StorageError, match="holds no tokenizer"):
        load_vocabulary(tmp_path)


def test_other_kinds_of_vocabulary_differ(tokenizer_folder: Folders) -> None:
    with pytest.raises(ConfigurationError, match="different vocabularies"):
        require_same(
            opened(tokenizer_folder, "t5"),
            SentencePieceVocabulary.train([TARGET, SOURCE] * 3, 40),
            "teacher",
            "student",
        )
