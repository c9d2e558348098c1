"""`energymt alpha-curve`, and the options of a perturbation that other commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from energymt.commands.outputs import require_place
from energymt.errors import ConfigurationError

if TYPE_CHECKING:
    from energymt.perturbation import PerturbationOptions

Proxy = Annotated[
    str | None, typer.Option(help="Proxy whose gradient nudges the encoder states before decoding (with --alpha).")
]
Alpha = Annotated[
    list[float] | None,
    typer.Option(
        help="How far, in lengths of a state; of several, each line takes that of which most gain is expected."
    ),
]
Norms = Annotated[
    Literal["relative", "sequence", "unit"],
    typer.Option(help="What alpha is measured in: a state's length, all states' of the line, or 1."),
]
Steps = Annotated[int, typer.Option(min=1, help="Gradient steps that alpha is divided into.")]
Trust = Annotated[
    float,
    typer.Option(min=0, help="Nudge only lines whose expected gain is above so many held-out errors."),
]


def perturbation_options(
    proxy: str | None, alpha: list[float] | None, norm: Any, steps: int, trust: float
) -> PerturbationOptions | None:
    """What the options of a command say together; None where they ask for no perturbation."""
    if proxy is None:
        if alpha or trust or steps != 1 or norm != "relative":
            raise ConfigurationError("--alpha, --norm, --alpha-steps and --trust need a gradient: name a --proxy.")
        return None
    if not alpha:
        raise ConfigurationError(
            "--proxy needs --alpha: how far the states are moved (0.1, say; `energymt alpha-curve` finds a value)."
        )
    from energymt.perturbation import PerturbationOptions

    return PerturbationOptions(proxy, tuple(alpha), norm, steps, trust)


def alpha_curve(
    model: Annotated[str, typer.Argument(help="Address of the model.")],
    proxy: Annotated[str, typer.Option(help="Address of its proxy.")],
    data: Annotated[str, typer.Option("--data", "-d", help="Pairs (TSV, JSONL, text), or recordings (TSV, .npz).")],
    alpha: Annotated[list[float], typer.Option(help="A value to try; repeatable. 0 is always there.")],
    source: Annotated[str | None, typer.Option(help="Column of the source text.")] = None,
    target: Annotated[str | None, typer.Option(help="Column of the references.")] = None,
    target_path: Annotated[str | None, typer.Option(help="File of references, for a pair of text files.")] = None,
    prefix: Annotated[str, typer.Option(help="Task prefix before each source (T5); spaces included.")] = "",
    text: Annotated[str | None, typer.Option(help="Recordings: column of the transcripts.")] = None,
    audio: Annotated[str | None, typer.Option(help="Recordings: column of the audio files of a TSV.")] = None,
    index: Annotated[str | None, typer.Option(help="Recordings: TSV beside an .npz, a line a clip.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Only so many from the start.")] = None,
    beam: Annotated[
        list[int] | None, typer.Option(min=1, help="Beam, or lengths of a non-autoregressive model; repeatable.")
    ] = None,
    iterations: Annotated[
        int,
        typer.Option(min=1, help="Mask-predict passes of a non-autoregressive model; its proxy has learnt from one."),
    ] = 1,
    judge: Annotated[
        list[str] | None, typer.Option(help="Address of an estimator that scores each translation; repeatable.")
    ] = None,
    norm: Norms = "relative",
    alpha_steps: Steps = 1,
    calibrate: Annotated[
        bool,
        typer.Option(help="Note beside the proxy how much of its promises came true here: use held-out data, no test."),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything to this file.")] = None,
) -> int:
    """Score outputs for every alpha and beam, with 95 % intervals and the paired difference to alpha 0."""
    from energymt.alpha_curve import OfSpeech, OfText, show_curve
    from energymt.alpha_curve import alpha_curve as curve
    from energymt.calibration import calibrate as gains_of
    from energymt.calibration import require_calibratable, show_gains
    from energymt.data.corpus import DataConfig, read_corpus
    from energymt.data.speech import SpeechDataConfig, read_speech
    from energymt.devices import choose_device
    from energymt.quality import open_judge

    require_place("--json", json_file)
    if calibrate and len(beam or [1]) > 1:
        raise ConfigurationError("--calibrate learns from the outputs of one beam: name one --beam.")
    options = perturbation_options(proxy, alpha, norm, alpha_steps, 0.0)
    assert options is not None
    if calibrate:
        require_calibratable(options)
    device = choose_device("auto")
    on: OfSpeech | OfText
    if text is not None:
        if source or target or target_path or prefix or judge:
            raise ConfigurationError(
                "--text names transcripts of recordings: drop --source, --target, --target-path, --prefix, --judge."
            )
        on = OfSpeech(read_speech(SpeechDataConfig(path=data, text=text, audio=audio, index=index, rows=rows)))
    else:
        if audio or index:
            raise ConfigurationError("--audio and --index belong to recordings: name their transcripts in --text.")
        config = DataConfig(path=data, source=source, target=target, target_path=target_path, prefix=prefix, rows=rows)
        corpus = read_corpus(config)
        judges = {f"judge {address}": open_judge(address, device) for address in judge or []}
        on = OfText(corpus, judges, iterations)
    points = curve(model, options, on, beam or [1], device)
    typer.echo(show_curve(points))
    if json_file is not None:
        content = [point.to_dict() for point in points]
        json_file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if calibrate:
        found = gains_of(model, options, on, points, device)
        typer.echo(
            f"\nOf what the proxy promises ({found[0].sentences:,} sentences; noted beside it):\n{show_gains(found)}"
        )
    return 0


COMMANDS: list[Any] = [alpha_curve]
