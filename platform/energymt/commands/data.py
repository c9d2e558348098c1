"""`energymt data judge`, and the group of all commands on data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from energymt.commands import selection, speech
from energymt.commands.outputs import require_place

app = typer.Typer(no_args_is_help=True)
for name, command in {**selection.COMMANDS, **speech.DATA_COMMANDS}.items():
    app.command(name)(command)


@app.callback()
def data() -> None:
    """Judge translators' outputs, keep good pairs, find the neighbours of sentences, make spoken digits."""


@app.command()
def judge(
    models: Annotated[list[str], typer.Argument(help="Addresses of translators.")],
    data: Annotated[str, typer.Option("--data", "-d", help="Pairs to translate: TSV, JSONL or source text.")],
    output: Annotated[Path, typer.Option(help="TSV file to write: source, translation, score, reference, system.")],
    source: Annotated[str | None, typer.Option(help="Column of the source text.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the references.")] = None,
    target_path: Annotated[str | None, typer.Option(help="File of references, for a pair of text files.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Only this many pairs from the start.")] = None,
    prefix: Annotated[str, typer.Option(help="Task prefix before each source (T5); spaces included.")] = "",
    damage: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Also a version of each translation with this share of damaged words."),
    ] = None,
    unrelated: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the sources that also get the translation of another one.")
    ] = 0.0,
    cut: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the sources that also get the beginning of theirs alone.")
    ] = 0.0,
    twice: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the sources that also get theirs two times over.")
    ] = 0.0,
    beam: Annotated[int, typer.Option(min=1, help="Beam of an autoregressive model.")] = 1,
    iterations: Annotated[int, typer.Option(min=1, help="Mask-predict iterations of a CMLM.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the damage.")] = 1,
) -> None:
    """Judge translators' own outputs by sentence chrF: training data of `energymt train estimator`."""
    from energymt.console import plain
    from energymt.data.corpus import DataConfig, read_corpus
    from energymt.decoding.translate import DecodingOptions
    from energymt.folders import write_atomically
    from energymt.judging import COLUMNS
    from energymt.judging import judge as judged

    require_place("--output", output)
    where = DataConfig(path=data, source=source, target=target, target_path=target_path, rows=rows, prefix=prefix)
    corpus = read_corpus(where)
    options = DecodingOptions(beam=beam, length_beam=1, iterations=iterations)
    lines = ["\t".join(COLUMNS)]
    for line in judged(models, corpus, options, damage or (), seed, unrelated=unrelated, cut=cut, twice=twice):
        lines.append(str(line))
        if len(lines) % 5000 == 1:
            plain(f"{len(lines) - 1:,} translations judged ({line.system})")
    write_atomically(output, "\n".join(lines) + "\n")
    typer.echo(f"{output} holds {len(lines) - 1:,} judged translations of {len(corpus):,} sentences.")
