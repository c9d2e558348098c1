"""Small tokenizers of the real classes, made from a few sentences, in the files that their checkpoints hold."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

GERMAN = ["ein Hund läuft über die Wiese .", "zwei Kinder spielen im Garten .", "eine Frau liest ein Buch ."]
ENGLISH = ["a dog runs over the meadow .", "two children play in the garden .", "a woman reads a book ."]


def pieces(lines: list[str], **options: object) -> bytes:
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=90, hard_vocab_limit=False, minloglevel=2, **options
    )
    return out.getvalue()


def names(model: bytes) -> list[str]:
    processor = SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def marian(folder: Path) -> None:
    models = {"source.spm": pieces(GERMAN), "target.spm": pieces(ENGLISH)}
    known = sorted({piece for model in models.values() for piece in names(model)[3:]})
    for file, model in models.items():
        (folder / file).write_bytes(model)
    vocabulary = ["</s>", "<unk>", ">>eng<<", *known, "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "deu", "target_lang": "eng"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def t5(folder: Path) -> None:
    model = pieces(GERMAN + ENGLISH, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "spiece.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 5}))


def bart(folder: Path) -> None:
    from tokenizers.implementations import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(GERMAN + ENGLISH, vocab_size=320, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BartTokenizer"}))


def mbart50(folder: Path) -> None:
    (folder / "sentencepiece.bpe.model").write_bytes(pieces(GERMAN + ENGLISH))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MBart50Tokenizer"}))


def nllb(folder: Path) -> None:
    (folder / "sentencepiece.bpe.model").write_bytes(pieces(GERMAN + ENGLISH))
    languages = ["deu_Latn", "eng_Latn", "ron_Latn"]
    settings = {"tokenizer_class": "NllbTokenizer", "additional_special_tokens": languages}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def m2m100(folder: Path) -> None:
    model = pieces(GERMAN + ENGLISH)
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *names(model)[3:]]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "M2M100Tokenizer"}))


FAMILIES: dict[str, Callable[[Path], None]] = {
    function.__name__: function for function in (marian, t5, bart, mbart50, nllb, m2m100)
}


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small tokenizer of a family: marian, t5, bart, mbart50, nllb, m2m100."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            FAMILIES[family](made[family])
        return made[family]

    return make
