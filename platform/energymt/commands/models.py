"""`energymt models import | average | export | push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from energymt.errors import ConfigurationError, StorageError

app = typer.Typer(no_args_is_help=True)

Out = Annotated[Path, typer.Argument(help="Folder to write.")]


@app.command("import")
def import_(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder or Hugging Face id of an encoder-decoder, Whisper or COMET checkpoint.")
    ],
    out: Out,
    source_language: Annotated[
        str | None, typer.Option(help="Code of the source language (mBART, M2M100, NLLB), or of that spoken (Whisper).")
    ] = None,
    target_language: Annotated[str | None, typer.Option(help="Code of the target language.")] = None,
    source_prefix: Annotated[
        str, typer.Option(help="Text before every source (T5: 'translate German to English: ').")
    ] = "",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Address of the encoder's tokenizer and config.json (COMET); default: as it names."),
    ] = None,
) -> None:
    """Make a model folder of a Hugging Face encoder-decoder (Marian, BART, mBART, T5, M2M100, NLLB) or COMET metric.

    Whisper is imported, too: it writes down what is spoken, or with the target language `en` translates it.
    """
    from energymt.data.hub import HubVocabulary
    from energymt.models.comet_settings import SETTINGS_FILE
    from energymt.models.transformer import TransformerTranslator
    from energymt.storage import fetch

    folder = fetch(checkpoint)
    if folder.suffix == ".ckpt" or (folder / SETTINGS_FILE).is_file():
        if source_language or target_language or source_prefix:
            raise ConfigurationError(f"{checkpoint} is a COMET checkpoint: drop the languages and the source prefix.")
        return _import_comet(checkpoint, out, tokenizer)
    if not folder.is_dir():
        raise StorageError(f"{folder} is a file; give the folder of a checkpoint, or its Hugging Face id.")
    if not (folder / "config.json").is_file():
        raise StorageError(
            f"{checkpoint} holds no checkpoint: neither config.json (Hugging Face) nor {SETTINGS_FILE} (COMET) is "
            f"there; name the folder that holds one."
        )
    if tokenizer is not None:
        raise ConfigurationError(f"{checkpoint} is no COMET checkpoint and has its own tokenizer: drop --tokenizer.")
    if _model_type(folder) == "whisper":
        if source_prefix:
            raise ConfigurationError(f"{checkpoint} hears sound: drop --source-prefix.")
        return _import_whisper(checkpoint, folder, out, source_language, target_language)
    vocabulary = HubVocabulary.open(
        folder, source_language=source_language, target_language=target_language, source_prefix=source_prefix
    )
    model = TransformerTranslator.from_checkpoint(folder, vocabulary, vocabulary.target_code)
    model.save_pretrained(out, {"imported": checkpoint})
    typer.echo(f"{out} holds {type(model.network).__name__} with {vocabulary.size:,} tokens.")


def _model_type(folder: Path) -> str | None:
    import json

    try:
        value = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):
        raise StorageError(f"{folder / 'config.json'} is damaged; copy the checkpoint again.") from None
    return value if isinstance(value, str) else None


def _import_whisper(checkpoint: str, folder: Path, out: Path, spoken: str | None, written: str | None) -> None:
    from energymt.models.speech import SpeechTransformer

    if written not in (None, "en", spoken):
        raise ConfigurationError(f"Whisper writes the language that is spoken, or English, and not {written!r}.")
    task: Literal["transcribe", "translate"] = "transcribe" if written in (None, spoken) else "translate"
    model = SpeechTransformer.from_checkpoint(folder, spoken, task)
    model.save_pretrained(out, {"imported": checkpoint})
    typer.echo(f"{out} holds {type(model.network).__name__} with {model.vocabulary.size:,} tokens.")


def _import_comet(checkpoint: str, out: Path, tokenizer: str | None) -> None:
    from energymt.models.comet_checkpoint import convert_comet
    from energymt.models.estimator_config import EstimatorConfig
    from energymt.models.estimator_folder import ESTIMATOR_FILE

    if out.exists():
        raise ConfigurationError(f"{out} is there already; name a new folder.")
    for note in convert_comet(checkpoint, out, tokenizer):
        typer.echo(note)
    config = EstimatorConfig.model_validate_json((out / ESTIMATOR_FILE).read_text(encoding="utf-8"))
    typer.echo(f"{out} holds a {config.metric} that reads {', '.join(config.parts)}.")


@app.command()
def average(
    models: Annotated[
        list[Path], typer.Argument(help="Model folders of the same architecture, then the folder to write.")
    ],
) -> None:
    """Average the weights of several models."""
    from energymt.models.averaging import average_models

    *sources, out = models
    average_models(sources, out)
    typer.echo(f"{out} holds the mean of {len(sources)} models.")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Address of the model.")],
    kind: Annotated[
        Literal["ctranslate2", "onnx"], typer.Option(help="Autoregressive models to ctranslate2, others to onnx.")
    ],
    precision: Annotated[Literal["fp32", "int8"], typer.Option(help="Of the exported weights.")] = "fp32",
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: inside the model's folder.")] = None,
) -> None:
    """Export for fast decoding (`energymt translate --engine`)."""
    from energymt.export import export_model
    from energymt.storage import fetch

    typer.echo(str(export_model(fetch(model), kind, precision, out)))


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="Address of the model.")],
    repository: Annotated[str, typer.Argument(help="owner/name on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Only you can see it there.")] = False,
) -> None:
    """Upload a model folder to the Hugging Face hub."""
    from energymt.models.publishing import push_folder
    from energymt.storage import fetch

    typer.echo(push_folder(fetch(model), repository, private=private))
