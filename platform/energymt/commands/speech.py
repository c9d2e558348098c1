"""`energymt transcribe`, and `energymt data digits`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from energymt.commands.perturbation import Alpha, Norms, Proxy, Steps, Trust, perturbation_options
from energymt.errors import ConfigurationError

if TYPE_CHECKING:
    from energymt.data.audio import Clip
    from energymt.metrics.translation import Statistics
    from energymt.models.speech import SpeechTransformer


def transcribe(
    model: Annotated[str, typer.Argument(help="Address of a model of speech.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Recordings: WAV, FLAC, ...")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="TSV of recordings, or .npz, instead.")] = None,
    audio: Annotated[str | None, typer.Option(help="Column of the TSV that names the audio files.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of the transcripts, to score by.")] = None,
    index: Annotated[str | None, typer.Option(help="TSV beside an .npz, a line a clip.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="column=value: only these rows; repeatable.")] = None,
    beam: Annotated[int, typer.Option(min=1, help="Running hypotheses; 1 is greedy.")] = 5,
    n_best: Annotated[int, typer.Option(min=1, help="Transcripts a recording: `number ||| text ||| score`.")] = 1,
    score: Annotated[bool, typer.Option("--score", help="Say WER and CER on stderr, with 95 % intervals.")] = False,
    tokens_per_batch: Annotated[int, typer.Option(min=1, help="Encoder states decoded at once.")] = 8192,
    proxy: Proxy = None,
    alpha: Alpha = None,
    norm: Norms = "relative",
    alpha_steps: Steps = 1,
    trust: Trust = 0.0,
) -> int:
    """Write down what recordings say, a line each, in order."""
    from energymt.decoding.transcribe import Transcriber
    from energymt.decoding.translate import DecodingOptions

    if score and (data is None or text is None):
        raise ConfigurationError("--score compares with transcripts: name their file in --data and column in --text.")
    clips, references = _recordings(files or [], data, audio=audio, text=text, index=index, only=only or [])
    options = DecodingOptions(beam=beam, n_best=n_best, tokens_per_batch=tokens_per_batch)
    change = perturbation_options(proxy, alpha, norm, alpha_steps, trust)
    recogniser = open_recogniser(model)
    if change is not None:
        from energymt.decoding.perturbed import perturbed
        from energymt.perturbation import open_perturbation

        recogniser = perturbed(recogniser, open_perturbation(change, recogniser, model))
    transcriber = Transcriber(recogniser, options)
    best = []
    for number, transcripts in enumerate(transcriber.stream(clips)):
        best.append(transcripts[0][0])
        for line, hypothesis in transcripts:
            typer.echo(line if n_best == 1 else f"{number} ||| {line} ||| {hypothesis.score:.4f}")
    if score:
        typer.echo(_table(best, references), err=True)
    return 0


def _recordings(
    files: Sequence[Path],
    data: str | None,
    *,
    audio: str | None,
    text: str | None,
    index: str | None,
    only: Sequence[str],
) -> tuple[list[Clip], list[str]]:
    """Recordings, and their transcripts where a column of them is named."""
    from energymt.data.audio import open_file
    from energymt.data.speech import SpeechDataConfig, read_speech

    if bool(files) == (data is not None):
        raise ConfigurationError("Name the recordings: either audio files, or a TSV or .npz in --data.")
    if data is None:
        if audio or text or index or only:
            raise ConfigurationError("Columns are those of --data: drop them, or name a file there.")
        return [open_file(file) for file in files], []
    chosen: dict[str, list[str | int | float]] = {}
    for part in only:
        name, separator, value = part.partition("=")
        if not separator:
            raise ConfigurationError(f"--only {part!r}: write column=value, for example --only split=test.")
        chosen.setdefault(name, []).append(value)
    config = SpeechDataConfig(path=data, audio=audio, text=text, index=index, only=dict(chosen))
    corpus = read_speech(config, need_text=False)
    return corpus.clips, corpus.text or []


def open_recogniser(address: str) -> SpeechTransformer:
    """A model of speech on the best device there is."""
    from energymt.devices import choose_device
    from energymt.models import load_translator
    from energymt.models.speech import SpeechTransformer
    from energymt.storage import fetch

    model = load_translator(fetch(address))
    if not isinstance(model, SpeechTransformer):
        raise ConfigurationError(f"{address} reads text and hears nothing: use `energymt translate`.")
    return model.to(choose_device("auto"))


def _table(transcripts: Sequence[str], references: Sequence[str]) -> str:
    """Rates with their intervals, the kinds of errors below."""
    from energymt.metrics.significance import interval
    from energymt.metrics.speech import character_errors, error_report, word_errors

    found: dict[str, Statistics] = {
        "WER": word_errors(transcripts, references),
        "CER": character_errors(transcripts, references),
    }
    report = error_report(found["WER"], found["CER"])
    lines = [f"{report.recordings:,} recordings, {report.words:,} words"]
    for name, errors in found.items():
        rate = interval(errors)
        lines.append(f"  {name} {rate.value:7.2f} %   95 % [{rate.low:.2f}, {rate.high:.2f}]")
    kinds = {name: getattr(report, name) for name in ("substitutions", "insertions", "deletions")}
    lines.append("  of words: " + ", ".join(f"{name} {value:.2f} %" for name, value in kinds.items()))
    return "\n".join(lines)


def digits(
    data: Annotated[str, typer.Argument(help="An .npz of single digits (the Free Spoken Digit Dataset).")],
    out: Annotated[Path, typer.Argument(help="Folder to write: train.npz, dev.npz, test.npz, and proxy.npz.")],
    index: Annotated[str, typer.Option(help="TSV with a line a clip: speaker, digit, word, take, split.")],
    train: Annotated[int, typer.Option(min=1, help="Strings to learn from.")] = 4000,
    dev: Annotated[int, typer.Option(min=1, help="Strings of takes that train strings do not hold.")] = 200,
    test: Annotated[int, typer.Option(min=1, help="Strings of the takes of the test split.")] = 400,
    proxy: Annotated[
        int, typer.Option(min=0, help="Strings for a proxy, of takes that are then taken from the train strings.")
    ] = 0,
    noise: Annotated[
        list[str] | None,
        typer.Option(help="`clean`, or decibels of speech over white noise; repeatable. Default: clean 20 10 5 0."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the strings and their noise.")] = 1,
) -> None:
    """Join spoken digits of one speaker into strings of 1 to 5, in white noise."""
    from energymt.data.digits import COLUMNS, make_digits, write_parts
    from energymt.data.formats import missing_column
    from energymt.data.speech import SpeechDataConfig, read_speech
    from energymt.errors import DataError

    corpus = read_speech(SpeechDataConfig(path=data, index=index, text="word"))
    for name in COLUMNS:
        if name not in corpus.columns:
            raise DataError(missing_column(index, name, name, list(corpus.columns)))
    counts = {"train": train, "dev": dev, "test": test} | ({"proxy": proxy} if proxy else {})
    made = make_digits(corpus, counts, noise or ["clean", "20", "10", "5", "0"], seed)
    rate = corpus.clips[0].rate
    write_parts(made, rate, out)
    for part, found in made.items():
        seconds = sum(len(string.wave) for string in found) / rate
        typer.echo(f"{out / part}.npz holds {len(found):,} strings, {seconds / 60:.1f} minutes.")


COMMANDS: list[Any] = [transcribe]
DATA_COMMANDS: dict[str, Any] = {"digits": digits}
