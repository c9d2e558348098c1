"""`energymt data filter` and `energymt data neighbours`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from energymt.commands.outputs import require_place
from energymt.errors import ConfigurationError

if TYPE_CHECKING:
    from energymt.data.corpus import Corpus
    from energymt.data.sentence_vectors import SentenceEncoder
    from energymt.decoding.rerank import TextScore
    from energymt.models.estimator import QualityEstimator

Format = Literal["tsv", "jsonl", "text"]
Share = Annotated[float, typer.Option(help="Only a random share, as `train.share` of the run.")]
ShareSeed = Annotated[int, typer.Option(min=0, help="As `train.share_seed` of the run.")]
TrainFormat = Annotated[
    Format | None, typer.Option("--format", help="Where the name does not tell it; as `train.format` of the run.")
]
TrainRows = Annotated[
    int | None, typer.Option("--rows", min=1, help="Only so many from the start, as `train.rows` of the run.")
]


def filter_data(
    estimator: Annotated[str, typer.Argument(help="Address of a quality estimator, or pool:NAME.")],
    data: Annotated[str, typer.Option("--data", "-d", help="Pairs to choose from: TSV, JSONL or source text.")],
    output: Annotated[Path, typer.Option(help="TSV file to write: source, target, score.")],
    source: Annotated[str | None, typer.Option(help="Column of the source text.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the translations.")] = None,
    target_path: Annotated[str | None, typer.Option(help="File of translations, for a pair of text files.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Keep what scores this or more (QE-EBM: 0.7).")] = None,
    quantile: Annotated[float | None, typer.Option(help="Keep this share of the pairs, the best ones.")] = None,
    data_format: TrainFormat = None,
    rows: TrainRows = None,
    share: Share = 1.0,
    share_seed: ShareSeed = 1,
) -> None:
    """Keep the pairs that a quality estimator finds good. No pair is ever scored twice, also not by a second call."""
    from energymt.data.corpus import DataConfig, read_corpus
    from energymt.data.selection import Criterion, ScoreStore, filter_pairs, folder_fingerprint
    from energymt.folders import write_atomically
    from energymt.storage import runs_root

    criterion = Criterion(threshold, quantile)
    _require_share(share)
    require_place("--output", output)
    which: dict[str, Any] = {"format": data_format, "rows": rows, "share": share, "share_seed": share_seed}
    corpus = read_corpus(DataConfig(path=data, source=source, target=target, target_path=target_path, **which))
    with _opened(estimator) as (folder, score):
        store = ScoreStore(runs_root() / "scores", folder_fingerprint(folder))
        kept = filter_pairs(corpus, criterion, _told(score), store)
    assert kept.corpus.target is not None
    pairs = zip(kept.corpus.source, kept.corpus.target, kept.scores, strict=True)
    lines = ["source\ttarget\tscore", *(f"{original}\t{text}\t{value:.6f}" for original, text, value in pairs)]
    write_atomically(output, "\n".join(lines) + "\n")
    typer.echo(f"{output} holds {len(kept.scores):,} of {len(corpus):,} pairs, which score {kept.least:.4f} or more.")
    typer.echo(_quantiles(kept.scores_N))


def _require_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigurationError(f"--share is above 0 and at most 1, and not {share:g}.")


@contextmanager
def _opened(address: str) -> Iterator[tuple[Path, TextScore]]:
    """The folder of an estimator, or of the one that a pool serves, and its scores."""
    import torch

    from energymt.quality import POOL, open_quality
    from energymt.storage import fetch

    if not address.startswith(POOL):
        folder = fetch(address)
        yield folder, _scorer(address, folder)
        return
    from energymt.pool.opening import frozen_address

    with closing(open_quality(address, torch.device("cpu"))) as quality:  # joins the Ray that the name is asked in
        yield fetch(frozen_address(address.removeprefix(POOL))), quality.score


def _told(score: TextScore) -> TextScore:
    """The same scores, with a line for each chunk."""
    from energymt.console import plain

    scored = 0

    def told(sources: Sequence[str], translations: Sequence[str]) -> Sequence[float]:
        nonlocal scored
        if scored:
            plain(f"{scored:,} pairs scored")
        scored += len(sources)
        return score(sources, translations)

    return told


def _scorer(address: str, folder: Path) -> TextScore:
    """The scores of an estimator, which is loaded when the first pair is to be scored."""
    from energymt.devices import choose_device
    from energymt.models.estimator_folder import load_estimator
    from energymt.models.scoring import needs_references, score_lines

    @cache
    def load() -> QualityEstimator:
        estimator = load_estimator(folder).to(choose_device("auto"))
        if needs_references(estimator):
            raise ConfigurationError(
                f"The metric in {address} compares with references, and a filter has none: use an estimator that "
                f"reads the source alone, like COMET-KIWI."
            )
        return estimator

    return lambda sources, translations: score_lines(load(), sources, translations)


def _quantiles(scores: Any) -> str:
    """How all scores are spread, on one line."""
    import numpy as np

    shares = {"lowest": 0.0, "10 %": 0.1, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9, "highest": 1.0}
    values = np.quantile(scores, list(shares.values())).tolist()
    return "all scores: " + ", ".join(f"{name} {value:.4f}" for name, value in zip(shares, values, strict=True))


def neighbours(
    labelled: Annotated[
        list[str], typer.Option(help="Labelled text: TSV, JSONL or source text; repeatable, all are read alike.")
    ],
    unlabelled: Annotated[list[str], typer.Option(help="Unlabelled text, perhaps the same file; repeatable.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    model: Annotated[str | None, typer.Argument(help="Address of a translator, whose encoder is used.")] = None,
    sentence_transformer: Annotated[
        str | None, typer.Option(help="Address of a sentence-transformers model, instead of a translator.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Column of the source text, where a file has columns.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Neighbours of each labelled sentence.")] = 1,
    data_format: TrainFormat = None,
    rows: TrainRows = None,
    share: Share = 1.0,
    share_seed: ShareSeed = 1,
    unlabelled_format: Annotated[Format | None, typer.Option(help="As `unlabelled.format` of the run.")] = None,
    unlabelled_rows: Annotated[int | None, typer.Option(min=1, help="As `unlabelled.rows` of the run.")] = None,
) -> None:
    """Find the nearest unlabelled sources of every labelled one, by the vectors of a translator's encoder."""
    from energymt.data.neighbours import build_neighbours

    if (model is None) == (sentence_transformer is None):
        raise ConfigurationError("Vectors come from a translator or from --sentence-transformer: name one of the two.")
    _require_share(share)
    chosen = _sources(labelled, source, format=data_format, rows=rows, share=share, share_seed=share_seed)
    others = _sources(unlabelled, source, format=unlabelled_format, rows=unlabelled_rows)
    found = build_neighbours(output, chosen, others, _encoder(model, sentence_transformer), count)
    typer.echo(f"{output} holds the {count:,} nearest of {len(others):,} sentences for each of {len(found):,}.")


def _sources(paths: Sequence[str], column: str | None, **settings: Any) -> Corpus:
    """The source texts of all files, each of them read alike."""
    from energymt.data.corpus import FORMATS, DataConfig, joined, read_corpus

    def part(path: str) -> DataConfig:
        kind = settings["format"] or FORMATS.get(Path(path.removesuffix(".gz")).suffix)
        return DataConfig(path=path, source=None if kind == "text" else column, **settings)

    return read_corpus(joined([part(path) for path in paths]), need_target=False)


def _encoder(model: str | None, sentence_transformer: str | None) -> SentenceEncoder:
    from energymt.data import sentence_vectors
    from energymt.data.selection import folder_fingerprint
    from energymt.devices import choose_device
    from energymt.models import load_translator
    from energymt.storage import fetch

    device = choose_device("auto")
    if sentence_transformer is not None:
        folder = fetch(sentence_transformer)
        return sentence_vectors.sentence_transformer(folder, sentence_transformer, folder_fingerprint(folder), device)
    assert model is not None
    folder = fetch(model)
    return sentence_vectors.translator_encoder(load_translator(folder).to(device), model, folder_fingerprint(folder))


COMMANDS: dict[str, Any] = {"filter": filter_data, "neighbours": neighbours}
