"""A translator's tokens in an estimator's embedding space: by name where the piece is the same, else by what is
written, worked out by hand on an estimator of a few pieces.
"""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from energymt.data.bridge import Bridge, written
from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import SentencePieceVocabulary, Vocabulary
from energymt.errors import ConfigurationError
from energymt.records import Source
from tests import tiny
from tests.data.conftest import ENGLISH, GERMAN, names, pieces
from tests.data.test_hub import OPTIONS

Folders = Callable[[str], Path]

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
KNOWN = ["▁", "▁dog", "dog", "s", "▁run", "n", "ing", "e", "ä", "▁of", "▁the", "fi", "ß"]
ROW = {piece: row for row, piece in enumerate([*SPECIAL, *KNOWN, "<mask>"])}
UNKNOWN = ROW["<unk>"]


def unigram(known: Sequence[str], special: Sequence[str]) -> HubVocabulary:
    """A tokenizer of XLM-R's kind: four special tokens, pieces that are all equally likely, `<mask>`."""
    scores = [(piece, 0.0) for piece in special] + [(piece, -1.0) for piece in [*known, "<mask>"]]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    marks = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=True))
    return HubVocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>", **marks))


def estimator() -> HubVocabulary:
    """Of the pieces that ROW numbers."""
    return unigram(KNOWN, SPECIAL)


def translator(*tokens: str, joiner: str | None = "▁") -> SentencePieceVocabulary:
    """A vocabulary of just these pieces."""
    return SentencePieceVocabulary.train([" ".join(tokens)], 100, segmented=True, joiner=joiner)


def bags(bridge: Bridge) -> dict[str, list[int]]:
    """The sparse map, read back: the rows of each piece."""
    parts = torch.tensor_split(bridge.rows_N, bridge.starts_V[1:])
    return {bridge.translator.piece(token): rows.tolist() for token, rows in enumerate(parts)}


def distinct(size: int, width: int = 5) -> torch.Tensor:
    return torch.randn(size, width, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


def xlmr(folder: Path) -> HubVocabulary:
    """XLM-R's tokenizer over the SentencePiece model that also the small mBART, NLLB and M2M100 of the tests have."""
    (folder / "sentencepiece.bpe.model").write_bytes(pieces(GERMAN + ENGLISH))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    return HubVocabulary.open(folder)


# -------------------------------------------------------------------------------------------------- the same pieces


def shuffled_m2m100(folder: Path) -> HubVocabulary:
    """The same pieces once more, under other numbers."""
    model = pieces(GERMAN + ENGLISH)
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    order = ["<s>", "<pad>", "</s>", "<unk>", *reversed(names(model)[3:])]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(order)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "M2M100Tokenizer"}))
    return HubVocabulary.open(folder, **OPTIONS["m2m100"])


@pytest.mark.parametrize("family", ["mbart50", "nllb", "m2m100", "shuffled", "itself"])
def test_the_same_pieces_are_the_same_rows_whatever_their_numbers(
    family: str, tokenizer_folder: Folders, tmp_path: Path
) -> None:
    estimator = xlmr(tmp_path)
    (tmp_path / "other").mkdir()
    own = {"itself": lambda: estimator, "shuffled": lambda: shuffled_m2m100(tmp_path / "other")}
    words = own.get(family, lambda: HubVocabulary.open(tokenizer_folder(family), **OPTIONS[family]))()
    bridge = Bridge(words, estimator)
    assert bridge.identical and bridge.coverage == 1.0
    rows_ED = distinct(estimator.size)
    table_VD = bridge.table(rows_ED)
    assert (table_VD.data_ptr() == rows_ED.data_ptr()) == (family == "itself")  # where no token needs another row
    special = {*words.never_ids, words.eos_id, words.unk_id}
    moved = 0
    for token in range(words.size):
        if token in special:
            assert not bridge.covered_V[token]
            assert bridge.row_V[token] == (estimator.unk_id if token == words.unk_id else -1)
            if family != "itself" or token == words.unk_id:
                assert torch.equal(table_VD[token], rows_ED[estimator.unk_id])
        else:
            row = int(bridge.row_V[token])
            assert estimator.piece(row) == words.piece(token) and bridge.covered_V[token]
            assert torch.equal(table_VD[token], rows_ED[row])
            moved += row != token
    assert moved > 20 if family == "shuffled" else moved == 0
    for text in ENGLISH:
        ids = words.encode(text)
        rows = bridge.rows(torch.tensor([ids]))[0].tolist()
        assert [estimator.piece(row) for row in rows] == [words.piece(token) for token in ids]


def test_a_sentencepiece_vocabulary_of_the_estimator_s_pieces_is_the_same_too() -> None:
    words = translator("▁dog", "dog", "s", "▁run")
    bridge = Bridge(words, estimator())
    assert bridge.identical
    ids = words.encode("▁run s dog ▁dog")
    assert bridge.rows(torch.tensor([ids])).tolist() == [[ROW["▁run"], ROW["s"], ROW["dog"], ROW["▁dog"]]]
    assert bridge.rows(torch.tensor([words.unk_id, words.pad_id])).tolist() == [UNKNOWN, UNKNOWN]


def test_one_piece_more_and_ids_are_no_ids_any_longer(tokenizer_folder: Folders, tmp_path: Path) -> None:
    words = HubVocabulary.open(tokenizer_folder("mbart50"), **OPTIONS["mbart50"])
    words.tokenizer.add_tokens(["▁meadows"])
    words = HubVocabulary(words.tokenizer)
    bridge = Bridge(words, xlmr(tmp_path))
    assert not bridge.identical and bridge.coverage == 1.0
    assert bridge.rows(torch.tensor([[5]])) is None
    new = words.tokenizer.convert_tokens_to_ids("▁meadows")
    assert bridge.row_V[new] == -1 and bridge.covered_V[new]


# ----------------------------------------------------------------------------------------------- surfaces, by hand


@pytest.mark.parametrize(
    "piece, spelled",
    [
        ("▁dog", ["▁dog"]),
        ("dog", ["dog"]),
        ("▁dogs", ["▁dog", "s"]),
        ("dogs", ["dog", "s"]),
        ("s", ["s"]),  # within a word
        ("▁s", ["▁", "s"]),  # and as a word
        ("▁running", ["▁run", "n", "ing"]),
        ("▁of▁the▁dogs", ["▁of", "▁the", "▁dog", "s"]),
        ("ﬁ", ["fi"]),  # a ligature that the estimator's normaliser takes apart
        ("▁ﬁs", ["▁", "fi", "s"]),
        ("s▁dog", ["s", "▁dog"]),
        ("ää", ["ä", "ä"]),
        ("▁字", None),
        ("▁dog字", None),  # known in part
        ("字", None),
        ("▁Dog", None),
    ],
)
def test_a_piece_is_what_the_estimator_makes_of_its_surface(piece: str, spelled: list[str] | None) -> None:
    words = translator(piece, "▁of", "e")
    bridge = Bridge(words, estimator())
    token = words.encode(piece)[0]
    assert words.piece(token) == piece
    wanted = [UNKNOWN] if spelled is None else [ROW[part] for part in spelled]
    assert bags(bridge)[piece] == wanted
    assert bool(bridge.covered_V[token]) == (spelled is not None)
    assert bridge.row_V[token] == ROW.get(piece, -1)
    rows_ED = distinct(len(ROW))
    torch.testing.assert_close(bridge.table(rows_ED)[token], rows_ED[wanted].mean(0), rtol=0, atol=1e-12)
    assert not bridge.table(rows_ED.requires_grad_()).requires_grad


def test_names_of_special_tokens_are_text_where_a_translator_can_write_them() -> None:
    """Else its `</s>` would end the estimator's input."""
    words = unigram(["</s>", "<s>", "▁dog"], ["[start]", "[pad]", "[end]", "[unknown]"])
    bridge = Bridge(words, estimator())
    assert bags(bridge)["</s>"] == bags(bridge)["<s>"] == [UNKNOWN]
    assert set(bridge.rows_N.tolist()) == {UNKNOWN, ROW["▁dog"]}


@pytest.mark.parametrize(
    "joiner, tokens, wanted",
    [
        ("@@", ["dog@@", "dogs", "s"], [["▁dog"], ["▁dog", "s"], ["▁", "s"]]),
        (None, ["dog", "dogs", "running"], [["▁dog"], ["▁dog", "s"], ["▁run", "n", "ing"]]),
    ],
)
def test_segmented_tokens_open_words(joiner: str | None, tokens: Sequence[str], wanted: list[list[str]]) -> None:
    found = bags(Bridge(translator(*tokens, joiner=joiner), estimator()))
    assert [found[token] for token in tokens] == [[ROW[part] for part in parts] for parts in wanted]


def test_a_word_is_split_as_the_estimator_splits_text(tmp_path: Path) -> None:
    """Against its tokenizer as anybody calls it: a word as a text, the rest of one behind a bracket."""
    reader = xlmr(tmp_path)
    words = SentencePieceVocabulary.train(GERMAN * 3 + ["ein Garten , ein Kind , eine Wiese"], 120, model_type="bpe")
    spelled = bags(Bridge(words, reader))
    compared = [0, 0]  # rests of words, words
    for piece, rows in spelled.items():
        if rows == [reader.unk_id] or [reader.piece(row) for row in rows] == [piece]:
            continue
        read = reader.encode(piece.replace("▁", " "))
        if not piece.startswith("▁"):
            bracket = reader.encode("(")  # the word's mark and an unknown character, which stands alone
            read = reader.encode("(" + piece)[len(bracket) :]
        assert rows == read, piece
        compared["▁" in piece] += 1
    assert min(compared) > 5


# ------------------------------------------------------------------------------------------- bytes and other special


def test_bytes_and_special_tokens_are_not_covered_and_do_not_count() -> None:
    out = io.BytesIO()
    options = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "control_symbols": "<mask>", "byte_fallback": True}
    SentencePieceTrainer.train(
        sentence_iterator=iter(["dogs dogs dog of the"] * 9),
        model_writer=out,
        vocab_size=290,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    words = SentencePieceVocabulary(out.getvalue())
    byte = words.processor.piece_to_id("<0xE4>")
    assert words.piece(byte) == "<0xE4>"
    bridge = Bridge(words, estimator())
    text = [token for token in range(words.size) if token > 4 and not words.processor.is_byte(token)]
    assert written(words)[byte] is None and not bridge.covered_V[byte]
    assert bags(bridge)["<0xE4>"] == [UNKNOWN] == bags(bridge)["<mask>"]
    assert 0 < bridge.coverage == bridge.covered_V.sum().item() / len(text)
    assert not bridge.identical


def test_byte_level_pieces_are_decoded(tokenizer_folder: Folders) -> None:
    bart = HubVocabulary.open(tokenizer_folder("bart"))
    bart.tokenizer.add_tokens(["Ã¤"])
    words = HubVocabulary(bart.tokenizer)
    own = {words.piece(token): name for token, name in enumerate(written(words))}
    assert own["Ġthe"] == "▁the" and own["the"] == "the"
    assert own["Ã¤"] == "ä" and own["Ã"] is None  # two bytes, and the first of them
    assert own["<s>"] is None and own["</s>"] is None
    found = bags(Bridge(words, estimator()))
    assert found["Ġthe"] == [ROW["▁the"]] and found["Ã¤"] == [ROW["ä"]] and found["Ã"] == [UNKNOWN]


# ----------------------------------------------------------------------------------------------- coverage and refusal


def test_coverage_is_the_share_of_pieces_and_too_little_is_refused() -> None:
    bridge = Bridge(translator("▁dog", "dogs", "▁字", "▁dog字"), estimator())
    assert bridge.coverage == 0.5
    bridge.require(0.5)
    with pytest.raises(
        ConfigurationError, match=r"knows 2 of the 4 pieces .*\(50\.0%, and 51\.0% .*'▁(字|dog字)', "
    ) as e:
        bridge.require(0.51)
    assert str(e.value).endswith("or lower least_coverage.")
    Bridge(translator("▁dog", "dogs"), estimator()).require(1.0)


def test_a_vocabulary_that_marks_no_words_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"numbers vocabulary of 16 tokens says where a word starts"):
        Bridge(tiny.Numbers(), estimator())


@pytest.mark.parametrize("family", ["m2m100", "marian"])
def test_an_estimator_without_a_fast_tokenizer_is_refused(family: str, tokenizer_folder: Folders) -> None:
    slow = HubVocabulary.open(tokenizer_folder(family))
    with pytest.raises(ConfigurationError, match=rf"\({type(slow.tokenizer).__name__}\), which has no fast tokenizer"):
        Bridge(translator("▁dog"), slow)
    with pytest.raises(ConfigurationError, match=r"\(sentencepiece\), which has no fast tokenizer"):
        Bridge(translator("▁dog"), translator("▁dog"))


# ------------------------------------------------------------------------------------------------------------- sources


def read(bridge: Bridge, words: Vocabulary, lines: Sequence[str]) -> list[list[int]]:
    """What the estimator reads of each line, padding taken away."""
    ids, mask = tiny.padded([words.encode_source(line) for line in lines], words.pad_id, width=40)
    found = bridge.source(Source(ids.masked_fill(~mask, 7), mask))  # padding may hold anything
    return [row[kept].tolist() for row, kept in zip(found.ids_BS, found.mask_BS, strict=True)]


@pytest.mark.parametrize("family", [*OPTIONS, "sentencepiece"])
def test_a_source_is_read_anew_from_its_text(family: str, tokenizer_folder: Folders, tmp_path: Path) -> None:
    """Task prefixes, language codes, end tokens and padding of the translator stay behind."""
    words: Vocabulary
    if family == "sentencepiece":
        words = SentencePieceVocabulary.train(GERMAN + ENGLISH, 80)
    else:
        options = {**OPTIONS[family], **({"source_prefix": "the woman reads a book "} if family == "t5" else {})}
        words = HubVocabulary.open(tokenizer_folder(family), **options)
    reader = xlmr(tmp_path)
    lines = [*GERMAN, "ein Hund", ""]
    assert read(Bridge(words, reader), words, lines) == [reader.encode_source(line) for line in lines]


def test_a_source_that_is_all_prefix_or_holds_it_again_loses_it_once(tokenizer_folder: Folders, tmp_path: Path) -> None:
    words = HubVocabulary.open(tokenizer_folder("t5"), source_prefix="a book ")
    reader = xlmr(tmp_path)
    assert read(Bridge(words, reader), words, ["a book", "ein Hund a book"]) == [
        reader.encode_source("a book"),
        reader.encode_source("ein Hund a book"),
    ]


def test_padding_is_not_read_where_no_end_token_stands_before_it(tmp_path: Path) -> None:
    reader, words = xlmr(tmp_path), SentencePieceVocabulary.train(GERMAN + ENGLISH, 80)
    ids, mask = tiny.padded([words.encode(line) for line in GERMAN], words.pad_id, width=50)
    found = Bridge(words, reader).source(Source(ids.masked_fill(~mask, words.encode("Hund")[-1]), mask))
    assert [row[kept].tolist() for row, kept in zip(found.ids_BS, found.mask_BS, strict=True)] == [
        reader.encode_source(line) for line in GERMAN
    ]


def test_a_long_source_is_read_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = xlmr(tmp_path)
    reader.tokenizer.model_max_length = 12
    words = SentencePieceVocabulary.train(GERMAN + ENGLISH, 80)
    with caplog.at_level("WARNING"):
        (row,) = read(Bridge(words, reader), words, [" ".join(GERMAN)])
    assert len(row) > 12 and not caplog.records


@pytest.mark.parametrize("family", ["t5", "sentencepiece"])
def test_task_prefixes_of_the_text_stay_behind(family: str, tokenizer_folder: Folders, tmp_path: Path) -> None:
    """Each source may have another one, or none, and one may begin another; the vocabulary's own stands before it."""
    words: Vocabulary
    if family == "sentencepiece":
        words = SentencePieceVocabulary.train(GERMAN + ENGLISH, 80)
    else:
        words = HubVocabulary.open(tokenizer_folder(family), source_prefix="the woman ")
    reader, prefixes = xlmr(tmp_path), ("a book ", "a book two ", "")
    pairs = [(prefix, line) for line in (*GERMAN, "ein a book") for prefix in prefixes]
    found = read(Bridge(words, reader, prefixes), words, [prefix + line for prefix, line in pairs])
    assert found == [reader.encode_source(line) for _, line in pairs]
