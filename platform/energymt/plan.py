"""What a run would do, without doing it (`energymt train --dry-run`)."""

from __future__ import annotations

from energymt import runs
from energymt.configuration import TrainingConfig
from energymt.data.corpus import read_corpus
from energymt.distillation import pretending


def describe(name: str, config: TrainingConfig, workers: int) -> str:
    """Read the data, make the networks, and say what training would come to.

    Raises:
        EnergymtError: whatever would stop the run before its first step.
    """
    train, dev = read_corpus(config.train, need_target=False), read_corpus(config.dev)
    fabric = runs.make_fabric(config)
    lines = [
        f"trainable      {name}",
        f"training text  {len(train):,} sentences of {train.origin}",
        f"dev text       {len(dev):,} pairs of {dev.origin}",
        f"device         {fabric.device.type}, {fabric.strategy.precision.precision}, {workers} worker(s)",
    ]
    with pretending() as pseudo_corpora:
        _, trainable = runs.start(name, config)
    lines += [f"pseudo-corpus  {note}" for note in pseudo_corpora]
    parameters = sum(p.numel() for p in trainable.model.parameters() if p.requires_grad)
    epochs = config.steps / trainable.plan.steps_per_epoch
    kept = trainable.plan.encoded
    lines += [
        f"vocabulary     {trainable.model.vocabulary.size:,} pieces",
        f"within limits  {len(kept):,} pairs ({kept.dropped:,} are too long or empty)",
        f"model          {trainable.model.architecture}, {parameters:,} parameters",
        f"budget         {config.steps:,} steps of about {config.tokens_per_step:,} tokens = {epochs:.1f} epochs",
        f"checkpoint by  {trainable.METRIC} ({'higher' if trainable.HIGHER_IS_BETTER else 'lower'} is better)",
        "Nothing was trained and nothing was written.",
    ]
    return "\n".join(lines)
