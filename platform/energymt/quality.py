"""A quality estimator as a training uses it, here or in a pool: it judges text, serves an energy, and learns.

An address is a folder of an estimator, or `pool:NAME` for a pool that is up. What asks cannot tell which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from energymt.decoding.rerank import TextScore
from energymt.errors import ConfigurationError, DataError
from energymt.models.estimator import Estimator, QualityEstimator
from energymt.models.estimator_folder import load_estimator
from energymt.models.learning import EstimatorLearner, Learns, Lesson, LessonOptions
from energymt.models.scoring import score_lines
from energymt.storage import fetch

POOL = "pool:"

Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
"""(sources, translations, references) -> scores, higher is better."""

Learnt = Callable[[], dict[str, float]]
"""Waits for a lesson that has begun; gives what to log."""

LEARNER_FOLDER = "learner"


class Pupil(Protocol):
    """What a lesson is given to."""

    def begin(self) -> None:
        """Start from the estimator as it was: a run that goes on from no checkpoint."""
        ...

    def learn(self, lesson: Lesson, step: int, part: int, parts: int, options: LessonOptions) -> Learnt:
        """Begin one step with all the parts of a lesson; before it has been waited for nothing may be asked."""
        ...

    def save_state(self, folder: Path) -> None:
        """Write what was learnt into a checkpoint."""
        ...

    def load_state(self, folder: Path) -> None:
        """Go on from there."""
        ...

    def taught(self) -> QualityEstimator:
        """The estimator as it is now, in this process."""
        ...


class Quality:
    """An estimator at work in a training.

    Attributes:
        estimator: for `QualityEnergy`.
        score: of texts (sources, translations), higher is better.
        pupil: teaches the estimator; None where it is static.
        close: gives back what is held.
    """

    def __init__(
        self,
        estimator: Estimator,
        score: TextScore,
        pupil: Pupil | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.estimator, self.score, self.pupil, self.close = estimator, score, pupil, close


def open_quality(
    address: str,
    device: torch.device,
    *,
    run: str = "",
    learns: Learns | None = None,
    deterministic: bool = False,
) -> Quality:
    """The estimator at an address.

    Args:
        address: a folder, or `pool:NAME`.
        device: of one in this process.
        run: the name of the run that teaches it.
        learns: which weights of one in this process are learnt; those of a pool were chosen when it was started. None:
            it is static.
        deterministic: a pool computes every request alone, so that runs can be compared bit by bit.

    Raises:
        ConfigurationError: one that cannot serve as an energy.
    """
    if address.startswith(POOL):
        return _pooled(address.removeprefix(POOL), run if learns is not None else "", deterministic)
    estimator = load_estimator(fetch(address)).to(device)
    if not estimator.differentiable:
        raise ConfigurationError(
            f"{address} needs references or counts error spans: it scores text but is no energy; use an estimator that "
            f"reads the source alone, like COMET-KIWI."
        )
    pupil = None if learns is None else _Own(EstimatorLearner(estimator, learns))
    return Quality(estimator, partial(score_lines, estimator), pupil)


def open_judge(address: str, device: torch.device) -> Judge:
    """What scores text and nothing else: any metric of the COMET family, with references where it reads them."""
    if address.startswith(POOL):
        quality = open_quality(address, device)
        return lambda sources, translations, references: quality.score(sources, translations)
    estimator: QualityEstimator = load_estimator(fetch(address)).to(device)
    compares = "ref" in estimator.config.parts
    return lambda sources, translations, references: score_lines(
        estimator, sources, translations, references if compares else None
    )


def open_original(address: str, device: torch.device) -> Judge:
    """The estimator that an address began with, as it was before anybody taught it; here, and for text alone."""
    if address.startswith(POOL):
        from energymt.pool.opening import frozen_address

        address = frozen_address(address.removeprefix(POOL))
    return open_judge(address, device)


def resolve(address: str) -> str:
    """Where an address leads to: two that give the same are one estimator.

    A pool leads to what it began with. What is no path and nothing that is fetched stays as it is.
    """
    if address.startswith(POOL):
        from energymt.pool.opening import served_address

        address = served_address(address.removeprefix(POOL))
    path = Path(address).expanduser()
    if not path.exists():
        return str(fetch(address)) if ":/" in address else address
    return str(path.resolve())


def _pooled(name: str, run: str, deterministic: bool) -> Quality:
    from energymt.pool.opening import open_pool, require_learning

    require_learning(name, bool(run))
    estimator, learner = open_pool(name, run, alone=deterministic)
    pupil = None if learner is None else _Pooled(name, estimator, learner)

    def score(sources: Sequence[str], translations: Sequence[str]) -> Sequence[float]:
        return estimator.score_lines(sources, translations)

    def close() -> None:
        if pupil is not None:
            pupil.thread.shutdown(wait=False, cancel_futures=True)
        estimator.close()

    return Quality(estimator, score, pupil, close)


class _Own:
    """An estimator of this process that learns: one worker alone."""

    def __init__(self, learner: EstimatorLearner) -> None:
        self.learner = learner

    def begin(self) -> None:
        """It was loaded a moment ago."""

    def learn(self, lesson: Lesson, step: int, part: int, parts: int, options: LessonOptions) -> Learnt:
        from energymt.pool.lessons import combine, gradient_to_wire

        if parts > 1:
            raise ConfigurationError(
                f"{parts} workers teach an estimator that each has for itself: serve it in a pool (`energymt pool up "
                f"ESTIMATOR --set learns=head`) and set quality to pool:default."
            )
        if not len(lesson):
            raise DataError(
                f"The lesson of step {step} holds no sentence: look for special tokens in the labelled translations."
            )
        lesson = lesson.to(self.learner.start_P.device)
        mean, metrics = combine([gradient_to_wire(self.learner.differentiate(lesson, options.form))])
        version = self.learner.version + 1
        self.learner.prepare(version, torch.from_numpy(mean).to(lesson.log_probs_C.device), options, {"step": step})
        self.learner.activate(version)
        return lambda: metrics

    def save_state(self, folder: Path) -> None:
        from energymt.pool.lessons import save_state, to_wire

        save_state(to_wire(self.learner.state), folder / LEARNER_FOLDER)

    def load_state(self, folder: Path) -> None:
        from energymt.pool.lessons import from_wire, load_state

        self.learner.install(from_wire(load_state(folder / LEARNER_FOLDER)))

    def taught(self) -> QualityEstimator:
        return self.learner.estimator


class _Pooled:
    """The estimator of a pool that learns."""

    def __init__(self, name: str, estimator: Any, learner: Any) -> None:
        self.name, self.estimator, self.learner = name, estimator, learner
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="lesson")  # the caller computes while the pool learns

    def begin(self) -> None:
        """A run of this name may have taught the pool before. Every worker asks before it gives its first part."""
        self.estimator.version = self.learner.restore(None)

    def learn(self, lesson: Lesson, step: int, part: int, parts: int, options: LessonOptions) -> Learnt:
        begun = self.thread.submit(self.learner.learn, lesson, step, part=part, parts=parts, options=options)

        def learnt() -> dict[str, float]:
            reply = begun.result()
            self.estimator.version = reply.version
            return dict(reply.metrics)

        return learnt

    def save_state(self, folder: Path) -> None:
        from energymt.pool.lessons import save_state

        save_state(self.learner.state(), folder / LEARNER_FOLDER)

    def load_state(self, folder: Path) -> None:
        from energymt.pool.lessons import load_state

        self.estimator.version = self.learner.restore(load_state(folder / LEARNER_FOLDER))

    def taught(self) -> QualityEstimator:
        from energymt.pool.lessons import from_wire
        from energymt.pool.opening import frozen_address, learnt_part

        copy, part = load_estimator(fetch(frozen_address(self.name))), learnt_part(self.name)
        assert part is not None, "who teaches was refused a static pool"
        EstimatorLearner(copy, part).install(from_wire(self.learner.state()))
        return copy
