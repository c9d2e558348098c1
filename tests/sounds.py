"""Recordings that tests make: words are tones. And small models of speech: one of ours, and a Whisper checkpoint with a
tokenizer of its own.
"""

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from energymt.configuration import validate
from energymt.data.audio import Clip
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.models.speech import SpeechConfig, SpeechTransformer
from tests import tiny
from trainables import speech

RATE = 8000
TONES = {"low": 250.0, "mid": 700.0, "high": 1500.0, "top": 3000.0}
SECONDS = 0.15  # of a word
SIZES = {"width": 16, "feedforward": 24, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "dropout": 0.0}
SMALL = {**SIZES, "mel_bins": 12, "seconds": 1, "longest": 16}


def sentences(count: int, seed: int = 0, most: int = 4) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(list(TONES), size=draw.integers(1, most + 1))) for _ in range(count)]


def wave(text: str, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A tone for each word, in a little noise; float32."""
    time = np.arange(round(SECONDS * rate)) / rate
    tones = [0.4 * np.sin(2 * np.pi * TONES[word] * time) for word in text.split()]
    noise = np.random.default_rng(seed).normal(0, 0.01, len(time) * len(tones))
    return np.asarray(np.concatenate(tones) + noise, dtype=np.float32)


def clips(texts: Sequence[str]) -> list[Clip]:
    waves = [wave(text, seed=number) for number, text in enumerate(texts)]
    return [Clip(f"clip {number}", RATE, len(found), found) for number, found in enumerate(waves)]


def arrays(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """What an .npz of these recordings holds."""
    waves = [np.rint(wave(text, seed=number) * 32767).astype(np.int16) for number, text in enumerate(texts)]
    return {
        "samples": np.concatenate(waves),
        "offsets": np.array([0, *accumulate(map(len, waves))]),
        "sample_rate": np.array(RATE),
        "text": np.array(texts),
    }


def write(path: Path, texts: Sequence[str], **changes: Any) -> Path:
    """An .npz of these recordings; arrays in `changes` are added, or replaced, or left out where they are None."""
    held = {**arrays(texts), **changes}
    np.savez(path, **{name: values for name, values in held.items() if values is not None})
    return path


def vocabulary() -> SentencePieceVocabulary:
    return SentencePieceVocabulary.train([" ".join(TONES)] * 4, 20, model_type="word")


def recogniser(**changes: Any) -> SpeechTransformer:
    """A small one of ours with random weights that are not small."""
    torch.manual_seed(5)
    model = SpeechTransformer.from_config(SpeechConfig(**{**SMALL, **changes}), vocabulary())
    tiny.shake(model)
    return model.eval()


def world(folder: Path, train: int = 24, dev: int = 6) -> Path:
    """Recordings to learn from, and a model to start from."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "train.npz", sentences(train, seed=1))
    write(folder / "dev.npz", sentences(dev, seed=2))
    recogniser().save(folder / "model")
    return folder


def config(folder: Path, **changes: Any) -> Any:
    """The configuration of a small run."""
    values: dict[str, Any] = {
        "train": {"path": str(folder / "train.npz"), "text": "text"},
        "dev": {"path": str(folder / "dev.npz"), "text": "text"},
        "model": {"init": str(folder / "model")},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 2},
        "steps": 6,
        "tokens_per_step": 24,
        "tokens_per_micro_batch": 200,
        "evaluate_every": 3,
        "checkpoint_every": 2,
        "log_every": 1,
        "precision": "fp32",
        "device": "cpu",
    }
    return validate(speech.Config, {**values, **changes}, "a test")


def make(settings: Any) -> Any:
    """The trainable, initial weights a function of the seed."""
    torch.manual_seed(settings.seed)
    return speech.TRAINABLE(settings)


# ------------------------------------------------------------------------------------------------ a Whisper checkpoint

END = "<|endoftext|>"
LANGUAGES = ("en", "de")
SPECIAL = (
    *("<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>", "<|transcribe|>"),
    *("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)
STAMPS = tuple(f"<|{0.02 * number:.2f}|>" for number in range(51))


def whisper(folder: Path, *, multilingual: bool = True, **generation: Any) -> Path:
    """A checkpoint as Hugging Face keeps one: windows of a second, byte-level pieces, two languages."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder)
    torch.manual_seed(7)
    special = {"pad_token_id": ids[END], "bos_token_id": ids[END], "eos_token_id": ids[END]}
    network = WhisperForConditionalGeneration(
        WhisperConfig(
            **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2},
            **{"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "init_std": 0.5},
            **{"vocab_size": len(ids), "num_mel_bins": 12, "max_source_positions": 50, "max_target_positions": 24},
            **special,
            decoder_start_token_id=ids[SPECIAL[0]],
            begin_suppress_tokens=None,
        )
    )
    tiny.shake(network, 0.3)
    settings = {
        **special,
        "decoder_start_token_id": ids[SPECIAL[0]],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "is_multilingual": multilingual,
        "lang_to_id": {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        "suppress_tokens": [ids["!"], *(ids[token] for token in SPECIAL)],
        "begin_suppress_tokens": [ids["Ġ"], ids[END]],
        "max_length": 24,
        **generation,
    }
    network.generation_config = GenerationConfig(**settings)
    network.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=12, chunk_length=1).save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path) -> dict[str, int]:
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bytes_.train_from_iterator([" low mid high top", " Don't, high! low."] * 4, trainer)
    bytes_.add_special_tokens([END, *SPECIAL])
    bytes_.add_tokens([AddedToken(stamp, normalized=False) for stamp in STAMPS])
    bytes_.save(str(folder / "tokenizer.json"))
    parts = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(parts["vocab"], ensure_ascii=False), "utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in parts["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    settings = {
        "tokenizer_class": "WhisperTokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END),
        "additional_special_tokens": list(SPECIAL),
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return bytes_.get_vocab()
