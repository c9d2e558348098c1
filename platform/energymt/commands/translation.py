"""`energymt translate`, `score` and `evaluate`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from energymt.commands.outputs import require_place
from energymt.commands.perturbation import Alpha, Norms, Proxy, Steps, Trust, perturbation_options
from energymt.errors import ConfigurationError, DataError, StorageError

if TYPE_CHECKING:
    from energymt.data.hub import HubVocabulary

Engine = Literal["torch", "ctranslate2", "onnx"]
Beam = Annotated[int, typer.Option(min=1, help="Beam of an autoregressive model; 1 is greedy.")]
LengthBeam = Annotated[int, typer.Option(min=1, help="Lengths that a non-autoregressive model tries.")]
Iterations = Annotated[int, typer.Option(min=1, help="Mask-predict iterations of a non-autoregressive model.")]
Prefix = Annotated[str, typer.Option(help="Task prefix before each source (T5); spaces included.")]
Samples = Annotated[int | None, typer.Option(min=1, help="Draw so many candidates instead of searching.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the draws.")]
Temperature = Annotated[float, typer.Option(min=0.01, help="Of the draws; below 1 they are nearer to the likeliest.")]
TopP = Annotated[
    float, typer.Option(min=0.01, max=1, help="Draw from the fewest tokens that have this probability together.")
]
Rerank = Annotated[
    str | None,
    typer.Option(help="Teacher or estimator that picks among the candidates; `chrf`, or one that compares: MBR."),
]

logger = logging.getLogger(__name__)


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
    samples: Samples = None,
    seed: Seed = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    rerank: Rerank = None,
    engine: Annotated[Engine, typer.Option(help="torch, or an export made by `energymt models export`.")] = "torch",
    precision: Annotated[Literal["fp32", "int8"], typer.Option(help="Precision of the export.")] = "fp32",
    tokens_per_batch: Annotated[int, typer.Option(min=1, help="Tokens translated at once.")] = 8192,
    prefix: Prefix = "",
    proxy: Proxy = None,
    alpha: Alpha = None,
    norm: Norms = "relative",
    alpha_steps: Steps = 1,
    trust: Trust = 0.0,
) -> int:
    """Translate stdin to stdout, line by line, in order."""
    from energymt.decoding.console import translate_stream
    from energymt.decoding.translate import DecodingOptions

    options = DecodingOptions(
        beam=beam,
        length_beam=length_beam,
        iterations=iterations,
        samples=samples,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        n_best=n_best,
        length_penalty=length_penalty,
        patience=patience,
        tokens_per_batch=tokens_per_batch,
        prefix=prefix,
    )
    change = perturbation_options(proxy, alpha, norm, alpha_steps, trust)
    translate_stream(model, options, rerank=rerank, change=change, engine=engine, precision=precision)
    return 0


def score(
    energy: Annotated[str, typer.Argument(help="Address of a teacher or of a quality estimator, or pool:NAME.")],
    source: Annotated[Path, typer.Option(help="Source sentences, one a line.")],
    target: Annotated[Path, typer.Option(help="Translations, one a line; an estimator scores an empty one too.")],
    reference: Annotated[
        Path | None, typer.Option(help="References, one a line, for a metric that compares with them.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Task prefix before each source that a teacher reads.")] = "",
) -> int:
    """Print a number a line: a teacher's energy (nats, lower is better) or an estimator's score (higher is better)."""
    from energymt.models.comet_settings import SETTINGS_FILE
    from energymt.models.estimator_folder import ESTIMATOR_FILE
    from energymt.quality import POOL
    from energymt.storage import fetch

    if energy.startswith(POOL):
        if reference is not None:
            raise ConfigurationError(f"{energy} serves an estimator that reads no references: drop --reference.")
        values = _pooled(energy, {"source": source, "translation": target})
    elif ((folder := fetch(energy)) / ESTIMATOR_FILE).is_file():
        sides = {"source": source, "translation": target, **({} if reference is None else {"reference": reference})}
        values = _qualities(folder, sides)
    elif (folder / SETTINGS_FILE).is_file():
        raise StorageError(
            f"{energy} is a COMET checkpoint: make an estimator of it first (energymt models import {energy} FOLDER)."
        )
    elif reference is not None:
        raise ConfigurationError(
            f"{energy} is no quality estimator, and nothing else reads references: drop --reference."
        )
    else:
        values = _energies(energy, source, target, prefix)
    for value in values:
        typer.echo(f"{value:.4f}")
    return 0


def _energies(address: str, source: Path, target: Path, prefix: str) -> Iterator[float]:
    from energymt.data.corpus import DataConfig, read_corpus
    from energymt.evaluation import energies_of, load_teacher

    corpus = read_corpus(DataConfig(path=str(source), target_path=str(target), format="text", prefix=prefix))
    assert corpus.target is not None
    yield from energies_of(load_teacher(address), corpus.inputs, corpus.target)


def _qualities(folder: Path, files: dict[str, Path]) -> Iterator[float]:
    """Scores of an estimator, a window of lines at a time; the files are read and checked before it is loaded."""
    from energymt.devices import choose_device
    from energymt.models.estimator_folder import load_estimator
    from energymt.models.scoring import WINDOW, score_lines

    sides = _sides(files)
    lines = len(sides["source"])
    estimator = load_estimator(folder).to(choose_device("auto"))
    if "reference" in sides and "ref" not in estimator.config.parts:
        raise ConfigurationError(f"The metric in {folder} reads no references: drop --reference.")
    for name, texts in sides.items():
        _tell_of_cuts(files[name], texts, estimator.vocabulary, estimator.longest_text)
    for start in range(0, lines, WINDOW):
        yield from score_lines(estimator, *(texts[start : start + WINDOW] for texts in sides.values()))


def _pooled(address: str, files: dict[str, Path]) -> Iterator[float]:
    """The same by the replicas of a pool."""
    import torch

    from energymt.data.hub import HubVocabulary
    from energymt.models.scoring import WINDOW
    from energymt.pool.estimator import PooledEstimator
    from energymt.quality import open_quality

    sides = _sides(files)
    quality = open_quality(address, torch.device("cpu"))
    estimator, vocabulary = quality.estimator, quality.estimator.vocabulary
    assert isinstance(estimator, PooledEstimator)
    assert isinstance(vocabulary, HubVocabulary)  # no estimator has another
    try:
        for name, texts in sides.items():
            _tell_of_cuts(files[name], texts, vocabulary, estimator.longest_text)
        for start in range(0, len(sides["source"]), WINDOW):
            yield from quality.score(*(texts[start : start + WINDOW] for texts in sides.values()))
    finally:
        quality.close()


def _sides(files: dict[str, Path]) -> dict[str, list[str]]:
    sides = {name: _lines(name, file) for name, file in files.items()}
    for name, texts in sides.items():
        if len(texts) != len(sides["source"]):
            raise DataError(
                f"{files['source']} has {len(sides['source']):,} lines and {files[name]} has {len(texts):,}: line n of "
                f"all files must belong together."
            )
    return sides


def _tell_of_cuts(file: Path, texts: Sequence[str], vocabulary: HubVocabulary, limit: float) -> None:
    for number, text in enumerate(texts, 1):
        if len(text) > limit:  # a token is a character at least
            tokens = len(vocabulary.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
            if tokens > limit:
                logger.warning(
                    "%s:%d has %d tokens and the limit is %d: its end is cut off.", file, number, tokens, limit
                )


def _lines(name: str, file: Path) -> list[str]:
    """All lines of a side; a translation may be empty."""
    from energymt.data.lines import read_lines

    texts = []
    for number, text in read_lines(file):
        if name != "translation" and not text.strip():
            raise DataError(
                f"{file}:{number} is empty, and a score needs every {name}; fill the line, or remove it from all files."
            )
        texts.append(text)
    if not texts:
        raise DataError(f"{file} holds no line; check that it was written to its end.")
    return texts


def evaluate(
    model: Annotated[str, typer.Argument(help="Address of the model.")],
    data: Annotated[str, typer.Option("--data", "-d", help="Test pairs: TSV, JSONL or source text.")],
    source: Annotated[str | None, typer.Option(help="Column of the source text.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the references.")] = None,
    target_path: Annotated[str | None, typer.Option(help="File of references, for a pair of text files.")] = None,
    prefix: Prefix = "",
    against: Annotated[
        str | None,
        typer.Option(help="Address of a second model, perhaps the same; it searches, and nothing re-ranks it."),
    ] = None,
    energy: Annotated[str | None, typer.Option(help="Address of a teacher: adds its energy of each output.")] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="Address of an estimator (or pool:NAME) that scores each output; repeatable."),
    ] = None,
    beam: Beam = 5,
    length_beam: LengthBeam = 5,
    iterations: Iterations = 10,
    samples: Samples = None,
    seed: Seed = 1,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    rerank: Rerank = None,
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

    require_place("--json", json_file)
    require_place("--output", output)
    corpus = read_corpus(DataConfig(path=data, source=source, target=target, target_path=target_path, prefix=prefix))
    options = DecodingOptions(
        beam=beam,
        length_beam=length_beam,
        iterations=iterations,
        samples=samples,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
    )
    addresses = [model] if against is None else [model, against]
    result = evaluate_models(
        addresses, corpus, options, energy=energy, oracle_lengths=oracle_lengths, judges=judge or (), rerank=rerank
    )
    typer.echo(show(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if output is not None:
        output.write_text("".join(f"{line}\n" for line in result.systems[0].outputs), encoding="utf-8")
    return 0


COMMANDS: list[Any] = [translate, score, evaluate]
