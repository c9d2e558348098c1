"""`energymt translate`, `score` and `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from energymt.errors import ConfigurationError

Engine = Literal["torch", "ctranslate2", "onnx"]
Beam = Annotated[int, typer.Option(min=1, help="Beam of an autoregressive model; 1 is greedy.")]
LengthBeam = Annotated[int, typer.Option(min=1, help="Lengths that a non-autoregressive model tries.")]
Iterations = Annotated[int, typer.Option(min=1, help="Mask-predict iterations of a non-autoregressive model.")]


def translate(
    model: Annotated[str, typer.Argument(help="Address of a model: folder, s3://, runs:/, models:/name@alias.")],
    beam: Beam = 5,
    length_beam: LengthBeam = 5,
    iterations: Iterations = 10,
    n_best: Annotated[int, typer.Option(min=1, help="Translations a line: `number ||| text ||| score`.")] = 1,
    length_penalty: Annotated[float, typer.Option(min=0, help="Exponent of the length in a beam's score.")] = 1.0,
    patience: Annotated[
        float,
        typer.Option(min=1, help="Ended hypotheses, in beams, after which a line is done; inf: search to the end."),
    ] = 1.0,
    rerank: Annotated[str | None, typer.Option(help="Address of a teacher whose energy picks the translation.")] = None,
    engine: Annotated[Engine, typer.Option(help="torch, or an export made by `energymt models export`.")] = "torch",
    precision: Annotated[Literal["fp32", "int8"], typer.Option(help="Precision of the export.")] = "fp32",
    tokens_per_batch: Annotated[int, typer.Option(min=1, help="Tokens translated at once.")] = 8192,
) -> int:
    """Translate stdin to stdout, line by line, in order."""
    from energymt.decoding.console import translate_stream
    from energymt.decoding.translate import DecodingOptions

    options = DecodingOptions(
        beam=beam,
        length_beam=length_beam,
        iterations=iterations,
        n_best=n_best,
        length_penalty=length_penalty,
        patience=patience,
        tokens_per_batch=tokens_per_batch,
    )
    translate_stream(model, options, rerank=rerank, engine=engine, precision=precision)
    return 0


def score(
    energy: Annotated[str, typer.Argument(help="Address of an autoregressive teacher.")],
    source: Annotated[Path, typer.Option(help="Source sentences, one a line.")],
    target: Annotated[Path, typer.Option(help="Translations, one a line.")],
) -> int:
    """Print the energy of each translation, in nats per sentence (lower is better)."""
    from energymt.data.corpus import DataConfig, read_corpus
    from energymt.evaluation import energies_of, load_teacher

    corpus = read_corpus(DataConfig(path=str(source), target_path=str(target), format="text"))
    assert corpus.target is not None
    for value in energies_of(load_teacher(energy), corpus.source, corpus.target):
        typer.echo(f"{value:.4f}")
    return 0


def evaluate(
    model: Annotated[str, typer.Argument(help="Address of the model.")],
    data: Annotated[str, typer.Option("--data", "-d", help="Test pairs: TSV, JSONL or source text.")],
    source: Annotated[str | None, typer.Option(help="Column of the source text.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the references.")] = None,
    target_path: Annotated[str | None, typer.Option(help="File of references, for a pair of text files.")] = None,
    against: Annotated[str | None, typer.Option(help="Address of a second model, compared pairwise.")] = None,
    energy: Annotated[str | None, typer.Option(help="Address of a teacher: adds its energy of each output.")] = None,
    beam: Beam = 5,
    length_beam: LengthBeam = 5,
    iterations: Iterations = 10,
    oracle_lengths: Annotated[
        bool, typer.Option("--oracle-lengths", help="Lengths of the references; --length-beam tries those around them.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write everything to this file; repetition as a share.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the translations to this file.")] = None,
) -> int:
    """BLEU, chrF, energy, repetition and length ratio with 95 % intervals, overall and by source length."""
    from energymt.data.corpus import DataConfig, read_corpus
    from energymt.decoding.translate import DecodingOptions
    from energymt.evaluation import evaluate_models, show

    for option, file in (("--json", json_file), ("--output", output)):
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigurationError(f"The folder of {option} {file} does not exist; make it first.")
    corpus = read_corpus(DataConfig(path=data, source=source, target=target, target_path=target_path))
    options = DecodingOptions(beam=beam, length_beam=length_beam, iterations=iterations)
    addresses = [model] if against is None else [model, against]
    result = evaluate_models(addresses, corpus, options, energy=energy, oracle_lengths=oracle_lengths)
    typer.echo(show(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if output is not None:
        output.write_text("".join(f"{line}\n" for line in result.systems[0].outputs), encoding="utf-8")
    return 0


COMMANDS: list[Any] = [translate, score, evaluate]
