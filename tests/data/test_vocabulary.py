import io
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer

from energymt.data.corpus import DataConfig, read_corpus
from energymt.data.vocabulary import SentencePieceVocabulary, Vocabulary, load_vocabulary, require_same
from energymt.errors import ConfigurationError, DataError, StorageError

LINES = [
    "ein Hund läuft über die Wiese .",
    "a dog runs over the meadow .",
    "zwei Kinder spielen im Garten .",
    "two children play in the garden .",
    "eine Frau liest ein Buch .",
    "a woman reads a book .",
] * 2


@pytest.fixture(scope="module")
def words() -> SentencePieceVocabulary:
    return SentencePieceVocabulary.train(LINES, 60)


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "word"])
def test_text_survives(model_type: str) -> None:
    vocabulary = SentencePieceVocabulary.train(LINES, 60, model_type=model_type)
    for line in LINES:
        ids = vocabulary.encode(line)
        assert vocabulary.decode(ids) == vocabulary.as_corpus_text(ids) == vocabulary.as_plain_text(line) == line
        assert vocabulary.encode_source(line) == [*ids, vocabulary.eos_id]
        assert min(ids) > vocabulary.mask_id and max(ids) < vocabulary.size


def test_special_tokens(words: SentencePieceVocabulary) -> None:
    special = (words.pad_id, words.unk_id, words.bos_id, words.eos_id, words.mask_id)
    assert special == (0, 1, 2, 3, 4)
    assert [words.piece(i) for i in special] == ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    assert set(words.never_ids) == {words.pad_id, words.bos_id, words.mask_id}
    assert words.input_size == words.size == words.processor.get_piece_size()


@given(text=st.text(alphabet=st.sampled_from("aeiou <>/_spadmkun▁.ß漢"), max_size=30))
def test_no_text_makes_a_control_token(words: SentencePieceVocabulary, text: str) -> None:
    for written in (text, f"{text}<mask> </s><pad> <s>"):
        assert not {0, 2, 3, 4} & set(words.encode(written))


@given(ids=st.lists(st.integers(-3, 100), max_size=20))
def test_decode_takes_any_ids(words: SentencePieceVocabulary, ids: list[int]) -> None:
    text = words.decode(ids)
    end = ids.index(words.eos_id) if words.eos_id in ids else len(ids)
    assert text == words.decode(ids[:end])
    assert not any(mark in text for mark in ("<pad>", "<s>", "</s>", "<mask>"))


def test_decode_stops_at_the_end_token_and_skips_special_tokens(words: SentencePieceVocabulary) -> None:
    first, second = words.encode("a dog"), words.encode("a book")
    assert words.decode([words.bos_id, *first, words.mask_id, words.pad_id, words.eos_id, *second]) == "a dog"
    assert words.decode([]) == ""


def test_unknown_characters_are_shown(words: SentencePieceVocabulary) -> None:
    ids = words.encode("a 漢 dog")
    assert words.unk_id in ids
    assert "⁇" in words.decode(ids)


def test_byte_fallback_knows_every_character() -> None:
    vocabulary = SentencePieceVocabulary.train(LINES, 400, byte_fallback=True)
    assert vocabulary.decode(vocabulary.encode("a 漢 dog")) == "a 漢 dog"


def test_training_is_deterministic_and_follows_the_text() -> None:
    models = [SentencePieceVocabulary.train(iter(LINES), 60) for _ in range(2)]
    assert models[0].model == models[1].model
    assert models[0].fingerprint == models[1].fingerprint
    assert SentencePieceVocabulary.train([*LINES, "noch ein Satz"], 60).fingerprint != models[0].fingerprint


def test_normalization_is_a_choice() -> None:
    def spell(normalization: str) -> str:
        made = SentencePieceVocabulary.train([*LINES, "½ ℃"], 70, normalization=normalization)
        return made.decode(made.encode("½"))

    assert spell("identity") == "½"
    assert spell("nmt_nfkc") != "½"


@pytest.mark.parametrize("lines, size", [([], 60), (LINES, 10)])
def test_impossible_training_is_one_sentence(lines: list[str], size: int) -> None:
    with pytest.raises(DataError, match=f"could not make {size} pieces") as caught:
        SentencePieceVocabulary.train(lines, size)
    assert "\n" not in str(caught.value)


def segmented(lines: list[str], joiner: str | None) -> SentencePieceVocabulary:
    return SentencePieceVocabulary.train(lines, 100, segmented=True, joiner=joiner)


def test_segmented_bpe_is_looked_up_and_joined() -> None:
    line = "ein gro@@ ßer Hund läu@@ ft ."
    vocabulary = segmented([line], "@@")
    ids = vocabulary.encode(line)
    assert len(ids) == 7 and [vocabulary.piece(i) for i in ids] == line.split()
    assert vocabulary.decode(ids) == vocabulary.as_plain_text(line) == "ein großer Hund läuft ."
    assert vocabulary.as_corpus_text(ids) == line
    assert vocabulary.decode(ids[:2]) == "ein gro", "a joiner at the end goes too"
    special = [vocabulary.bos_id, vocabulary.mask_id, vocabulary.pad_id, -1, vocabulary.size]
    assert vocabulary.as_corpus_text([*special, *ids, vocabulary.eos_id, *ids]) == line
    assert vocabulary.encode("großer") == [vocabulary.unk_id]
    assert segmented([line], None).decode(ids) == line


def test_segmented_sentencepieces_keep_their_word_starts() -> None:
    line = "▁Das ▁ist s Das ▁gut ."
    vocabulary = segmented([line], "▁")
    ids = vocabulary.encode(line)
    assert [vocabulary.piece(i) for i in ids] == line.split()
    assert len(set(ids)) == 6, "▁Das and Das differ"
    assert vocabulary.as_corpus_text(ids) == line
    assert vocabulary.decode(ids) == "Das istsDas gut."


def test_segmented_text_is_not_normalized() -> None:
    vocabulary = segmented(["ﬁ ½ A@@ b"], None)
    assert vocabulary.decode(vocabulary.encode("ﬁ ½ A@@ b")) == "ﬁ ½ A@@ b"
    assert vocabulary.as_corpus_text([vocabulary.unk_id, *vocabulary.encode("½")]) == "⁇ ½"


@pytest.mark.parametrize("joiner", [None, "@@", "▁"])
def test_segmented_vocabulary_is_read_back(tmp_path: Path, joiner: str | None) -> None:
    vocabulary = segmented(["a@@ b ▁c d"], joiner)
    vocabulary.save(tmp_path)
    found = load_vocabulary(tmp_path)
    assert found.segmented
    ids = vocabulary.encode("a@@ b ▁c d")
    assert found.encode("a@@ b ▁c d") == ids and found.decode(ids) == vocabulary.decode(ids)


def test_saved_vocabulary_is_read_back(words: SentencePieceVocabulary, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    words.save(folder)
    assert {path.name for path in folder.iterdir()} == {"spiece.model", "vocabulary.json"}
    found = load_vocabulary(str(folder))
    assert found.fingerprint == words.fingerprint
    assert all(found.encode(line) == words.encode(line) for line in LINES)
    require_same(words, found, "teacher", "student")


def damage(folder: Path, how: str, other: Vocabulary) -> None:
    description = folder / "vocabulary.json"
    match how:
        case "no folder":
            shutil.rmtree(folder)
        case "no description":
            description.unlink()
        case "no pieces":
            (folder / "spiece.model").unlink()
        case "cut description":
            description.write_text(description.read_text()[:20])
        case "cut pieces":
            (folder / "spiece.model").write_bytes((folder / "spiece.model").read_bytes()[:50])
        case "other pieces":
            other.save(folder / "other")
            shutil.copy(folder / "other" / "spiece.model", folder)
        case "unknown kind":
            description.write_text(json.dumps({"kind": "morse", "fingerprint": ""}))
        case "no list":
            description.write_text("[]")


@pytest.mark.parametrize(
    "how, sentence",
    [
        ("no folder", "holds no vocabulary"),
        ("no description", "holds no vocabulary"),
        ("no pieces", "spiece.model is missing"),
        ("cut description", "vocabulary.json is damaged"),
        ("cut pieces", "spiece.model is no SentencePiece model"),
        ("other pieces", "are not those"),
        ("unknown kind", "names the kind 'morse'"),
        ("no list", "vocabulary.json is damaged"),
    ],
)
def test_damaged_folder_is_refused(words: SentencePieceVocabulary, tmp_path: Path, how: str, sentence: str) -> None:
    words.save(tmp_path / "model")
    damage(tmp_path / "model", how, SentencePieceVocabulary.train(LINES, 50))
    with pytest.raises(StorageError, match=sentence):
        load_vocabulary(tmp_path / "model")


def test_model_with_other_special_tokens_is_refused() -> None:
    out = io.BytesIO()
    options = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=out, **options)
    with pytest.raises(ConfigurationError, match="instead of <pad> <unk> <s> </s> <mask>"):
        SentencePieceVocabulary(out.getvalue())


def test_different_vocabularies_are_refused_with_the_first_difference(words: SentencePieceVocabulary) -> None:
    other = SentencePieceVocabulary.train([line.upper() for line in LINES], 60)
    with pytest.raises(ConfigurationError) as caught:
        require_same(words, other, "The teacher", "the student")
    text = str(caught.value)
    first = next(i for i in range(60) if words.piece(i) != other.piece(i))
    for part in (
        "The teacher and the student",
        f"id {first} is {words.piece(first)!r} there and {other.piece(first)!r} here",
        words.fingerprint[:12],
        other.fingerprint[:12],
        f"({words.size} pieces",
        f"{other.size} pieces",
    ):
        assert part in text


def test_longer_vocabulary_differs_behind_the_end_of_the_shorter() -> None:
    short, long = (
        SentencePieceVocabulary.train([line], 50, segmented=True) for line in ("a a a b b", "a a a a b b b c c d")
    )
    assert [short.piece(i) for i in range(short.size)] == [long.piece(i) for i in range(short.size)]
    with pytest.raises(ConfigurationError, match="is nothing there and 'c' here"):
        require_same(short, long, "a", "b")


def test_multi30k_vocabulary(data_folder: Path) -> None:
    path = str(data_folder / "multi30k" / "val.tsv.gz")
    corpus = read_corpus(DataConfig(path=path, source="de", target="en"))
    vocabulary = SentencePieceVocabulary.train([*corpus.source, *(corpus.target or [])], 1000)
    assert vocabulary.size == 1000
    survived = sum(vocabulary.decode(vocabulary.encode(text)) == text for text in corpus.source)
    assert survived >= 0.99 * len(corpus), "normalization and runs of spaces alone change a text"
