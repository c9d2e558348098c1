"""`energymt translate`: stdin to stdout in order, a progress bar where a person looks on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from energymt.data.vocabulary import require_same
from energymt.decoding.perturbed import perturbed
from energymt.decoding.rerank import chrf_utility
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.devices import choose_device
from energymt.errors import ConfigurationError, DataError
from energymt.models import load_translator
from energymt.models.comet_settings import SETTINGS_FILE
from energymt.models.estimator_folder import ESTIMATOR_FILE, load_estimator
from energymt.models.scoring import needs_references, score_lines
from energymt.perturbation import PerturbationOptions, open_perturbation
from energymt.quality import POOL, open_quality
from energymt.storage import fetch

CHRF = "chrf"  # in the place of an address; a folder of that name is ./chrf


def translate_stream(
    address: str,
    options: DecodingOptions,
    *,
    rerank: str | None,
    change: PerturbationOptions | None = None,
    engine: str,
    precision: str,
) -> None:
    """Translate the lines of stdin; with `n_best` above 1 each is written as `number ||| text ||| score`."""
    with ExitStack() as held:
        translator = open_translator(
            fetch(address), options, held, rerank=rerank, change=change, engine=engine, precision=precision
        )
        lines = read_lines(sys.stdin.buffer)
        for number, translations in enumerate(_with_progress(translator.stream(lines))):
            for text, hypothesis in translations:
                print(text if options.n_best == 1 else f"{number} ||| {text} ||| {hypothesis.score:.4f}", flush=True)


def open_translator(
    folder: Path,
    options: DecodingOptions,
    held: ExitStack,
    *,
    rerank: str | None,
    change: PerturbationOptions | None = None,
    engine: str,
    precision: str,
) -> Translator:
    """A model folder with one of the engines; `rerank` is the address of a teacher, estimator or pool that chooses.

    An estimator that compares with references is given the other candidates for them (minimum Bayes risk), and so is
    chrF (`rerank="chrf"`). `change` nudges the encoder states. `held` closes the connection to a pool.
    """
    if engine == "torch":
        model: Any = load_translator(folder)
        if change is not None:
            model = perturbed(model, open_perturbation(change, model, str(folder)))
    elif change is not None:
        raise ConfigurationError(f"A proxy reads encoder states, and the {engine} engine shows none: drop --engine.")
    else:
        from energymt.export import load_export

        model = load_export(folder, engine, precision)
    if rerank is None:
        return Translator(model, options)
    if rerank == CHRF:
        return Translator(model, options, utility=chrf_utility)
    if rerank.startswith(POOL):
        quality = held.enter_context(closing(open_quality(rerank, torch.device("cpu"))))  # it computes elsewhere
        return Translator(model, options, quality=quality.score)
    judge = fetch(rerank)
    if (judge / ESTIMATOR_FILE).is_file() or (judge / SETTINGS_FILE).is_file():
        estimator = load_estimator(judge).to(choose_device("auto"))
        if needs_references(estimator):
            return Translator(model, options, utility=partial(score_lines, estimator))
        return Translator(model, options, quality=partial(score_lines, estimator))
    from energymt.energies import AutoregressiveEnergy
    from energymt.evaluation import load_teacher

    teacher = load_teacher(rerank)
    require_same(teacher.vocabulary, model.vocabulary, f"the energy {rerank}", f"the translator {folder}")
    return Translator(model, options, energy=AutoregressiveEnergy(teacher))


def read_lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines of UTF-8; a line that is none stops the translation with its number."""
    for number, line in enumerate(stream, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"Line {number} of the input is not UTF-8 (byte {error.start + 1}); convert it.") from None


def _with_progress(translations: Iterator[Any]) -> Iterator[Any]:
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield from translations
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("translating"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("translating", total=None)
        for item in translations:
            progress.advance(task)
            yield item
