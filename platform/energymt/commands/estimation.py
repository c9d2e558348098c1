"""`energymt meta-evaluate` and `energymt probe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from energymt.commands.outputs import require_place
from energymt.errors import ConfigurationError

Estimator = Annotated[str, typer.Argument(help="Address of a quality estimator.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.")]


def meta_evaluate(
    estimator: Estimator,
    data: Annotated[str, typer.Option("--data", "-d", help="Judged translations: TSV or JSONL.")],
    source: Annotated[str, typer.Option(help="Column of the source text.")],
    target: Annotated[str, typer.Option(help="Column of the translations.")],
    score: Annotated[str, typer.Option(help="Column of the judgements, higher is better.")],
    baseline: Annotated[list[str] | None, typer.Option(help="Column of another score; repeatable.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Translator whose log-probability is a baseline.")] = None,
    prefix: Annotated[str, typer.Option(help="Task prefix before each source that --teacher reads.")] = "",
    only: Annotated[str | None, typer.Option(help="column=value: only these lines.")] = None,
    json_file: Json = None,
) -> int:
    """Correlate an estimator with judgements: Pearson, Spearman, Kendall with 95 % intervals, beside baselines."""
    from energymt.data.corpus import DataConfig
    from energymt.meta_evaluation import meta_evaluate, show_agreements

    require_place("--json", json_file)
    column, separator, value = (only or "").partition("=")
    if only is not None and not separator:
        raise ConfigurationError(f"--only {only}: write column=value.")
    found = meta_evaluate(
        estimator,
        DataConfig(path=data, source=source, target=target, prefix=prefix),
        score,
        baselines=baseline or (),
        teacher=teacher,
        only=(column, value) if only else None,
    )
    typer.echo(show_agreements(found, data if only is None else f"{data}, {only}"))
    _write(json_file, [item.to_dict() for item in found])
    return 0


def probe(
    estimator: Estimator,
    data: Annotated[str, typer.Option("--data", "-d", help="Right pairs: TSV, JSONL or source text.")],
    source: Annotated[str | None, typer.Option(help="Column of the source text.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the right translations.")] = None,
    target_path: Annotated[str | None, typer.Option(help="File of translations, for a pair of text files.")] = None,
    wrong_language: Annotated[
        str | None, typer.Option(help="Column of the same sentences in a third language.")
    ] = None,
    json_file: Json = None,
) -> int:
    """Ask an estimator whether right translations score above empty, shuffled, copied, repeated ... ones."""
    from energymt.data.corpus import DataConfig, read_columns
    from energymt.data.formats import pick
    from energymt.meta_evaluation import probe, show_probes

    require_place("--json", json_file)
    extra = [] if wrong_language is None else [wrong_language]
    corpus, beside = read_columns(DataConfig(path=data, source=source, target=target, target_path=target_path), extra)
    other = None
    if wrong_language is not None:
        other = [pick({wrong_language: text}, wrong_language, place) for place, text in beside[wrong_language]]
    found = probe(estimator, corpus, other)
    typer.echo(show_probes(found))
    _write(json_file, [item.to_dict() for item in found])
    return 0


def _write(file: Path | None, content: list[dict[str, object]]) -> None:
    if file is not None:
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


COMMANDS: list[Any] = [meta_evaluate, probe]
