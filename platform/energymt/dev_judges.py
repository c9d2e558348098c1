"""Who judges on dev what an estimator trains: that estimator itself, and never it alone."""

from __future__ import annotations

import torch
from pydantic import Field

from energymt.configuration import TrainingConfig
from energymt.decoding.rerank import TextScore
from energymt.errors import ConfigurationError
from energymt.metrics.alarms import AlarmConfig
from energymt.preparation import Text
from energymt.quality import Judge, Quality, open_judge, resolve


class JudgedConfig(TrainingConfig):
    """What every method that an estimator trains can be told about it and its judges."""

    least_coverage: float = Field(default=0.95, ge=0, le=1)
    """Share of the translator's pieces that the estimator must know, or the run is refused; `dev/covered_mass` says how
    much of the probability of translations is on pieces that it knows."""

    judge: str | None = None
    """Address of another metric of the COMET family, which only judges, with references if it reads them; the one that
    trains never judges alone."""
    alarms: AlarmConfig = AlarmConfig()
    """When dev values look like gaming of the estimator (`metrics.alarms`); logged as `gaming/alarm/...`."""
    stop_at_alarm: bool = False
    """Whether an alarm ends the run, as running out of patience does."""


def require_other_judge(config: JudgedConfig, quality: str | None) -> None:
    """Raise a ConfigurationError if the judge is the estimator that trains, whatever each is called."""
    if config.judge is None or quality is None:
        return
    if config.judge == quality or resolve(config.judge) == resolve(quality):
        raise ConfigurationError(
            f"judge ({config.judge}) and quality ({quality}) are one estimator: what trains cannot judge as well; "
            f"name another, or leave judge out."
        )


def require_judge(config: JudgedConfig, choose_by: str) -> None:
    """Raise a ConfigurationError if a judge shall choose the checkpoint and there is none."""
    if choose_by == "judge" and config.judge is None:
        raise ConfigurationError("choose_by is judge and no judge is named: set judge to an estimator's address.")


def open_judges(config: JudgedConfig, text: Text, quality: Quality, device: torch.device) -> dict[str, TextScore]:
    """`quality`, the estimator that trains, and `judge` where one is named: scores of translations of the dev text."""
    judges = {"quality": quality.score}
    if config.judge is not None:
        judges["judge"] = on_dev(open_judge(config.judge, device), text)
    return judges


def on_dev(judge: Judge, text: Text) -> TextScore:
    """A judge of translations of the dev text, whose references it may read."""
    references = [text.vocabulary.as_plain_text(line) for line in text.dev_corpus.target or []]
    return lambda sources, translations: judge(sources, translations, references)
