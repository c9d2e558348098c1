"""What a run would do, without doing it (`energymt train --dry-run`)."""

from __future__ import annotations

from typing import Any

from energymt import runs
from energymt.configuration import TrainingConfig
from energymt.data.corpus import read_corpus
from energymt.data.speech import SpeechDataConfig, read_speech
from energymt.shards import pretending


def describe(name: str, config: TrainingConfig, workers: int) -> str:
    """Read the data, make the networks, and say what training would come to.

    Raises:
        EnergymtError: whatever would stop the run before its first step.
    """
    read = _heard(config) if isinstance(config.train, SpeechDataConfig) else _read(config)
    fabric = runs.make_fabric(config)
    lines = [
        f"trainable      {name}",
        *read,
        f"device         {fabric.device.type}, {fabric.strategy.precision.precision}, {workers} worker(s)",
    ]
    with pretending() as notes:
        _, trainable = runs.start(name, config)
    lines += [f"made first     {note}" for note in notes]
    parameters = sum(p.numel() for p in trainable.model.parameters() if p.requires_grad)
    epochs = config.steps / trainable.plan.steps_per_epoch
    kept = trainable.plan.encoded
    words = getattr(trainable.model, "vocabulary", None)  # a proxy has none
    lines += [] if words is None else [f"vocabulary     {words.size:,} pieces"]
    lines += [
        f"within limits  {len(kept):,} pairs ({kept.dropped:,} are too long or empty)",
        f"model          {trainable.model.architecture}, {parameters:,} parameters",
        f"budget         {config.steps:,} steps of about {config.tokens_per_step:,} tokens = {epochs:.1f} epochs",
        f"checkpoint by  {trainable.METRIC} ({'higher' if trainable.HIGHER_IS_BETTER else 'lower'} is better)",
        "Nothing was trained and nothing was written.",
    ]
    return "\n".join(lines)


def _read(config: TrainingConfig) -> list[str]:
    # Who needs targets says so when the trainable is made: a proxy may do without.
    train, dev = (read_corpus(data, need_target=False) for data in (config.train, config.dev))
    return [
        f"training text  {len(train):,} sentences of {train.origin}",
        f"dev text       {len(dev):,} {'sentences' if dev.target is None else 'pairs'} of {dev.origin}",
    ]


def _heard(config: Any) -> list[str]:
    """The same of a recogniser's configuration, whose data are sound."""
    named = {"training sound": config.train, "dev sound": config.dev}
    parts = {name: read_speech(data, need_text=False) for name, data in named.items()}
    return [
        f"{name:15}{len(corpus):,} recordings, {corpus.seconds / 3600:.1f} hours, of {corpus.origin}"
        for name, corpus in parts.items()
    ]
