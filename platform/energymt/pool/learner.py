"""A trainer's end of a pool that learns: `learn` takes a step together with the other trainers of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from energymt.errors import ConfigurationError, EnergyTimeout, EnergyUnavailable
from energymt.models.learning import Lesson, LessonOptions
from energymt.pool import actors, lifecycle
from energymt.pool.connection import Connection
from energymt.pool.lessons import LearnPart, LearnRefusal, LearnReply, WireState, pack_lesson
from energymt.pool.naming import command, missing

PAUSE = 0.5  # seconds until a supervisor that is started again is asked again
GRACE = 5.0  # seconds for an answer that is on its way when the time is over


class PooledLearner:
    """Teaches the estimator of a pool.

    Args:
        connection: to the pool, made with the name of the run.
        seconds: until a step is given up; None: the pool's `lesson_seconds`.

    Raises:
        EnergyUnavailable: the pool does not say them.
    """

    def __init__(self, connection: Connection, seconds: float | None = None) -> None:
        if not connection.run:
            raise ConfigurationError("A pool learns for one run at a time: connect with `run`, the name of the run.")
        self.connection = connection
        self.seconds: float = (
            lifecycle.status(connection.transport.name)["lesson_seconds"] if seconds is None else seconds
        )

    def learn(
        self, lesson: Lesson, step: int, *, part: int = 0, parts: int = 1, options: LessonOptions | None = None
    ) -> LearnReply:
        """Give one part of a step and wait until the step was taken; ask for `reply.version` from then on.

        The same part again, after a crash or a lost answer, is no second step.

        Args:
            lesson: gold and samples with their log-probabilities.
            step: of the run, from 0.
            part, parts: of the trainers, this one and how many; every one must give its part.
            options: of the step, the same for all parts.

        Raises:
            EnergyTimeout: parts or replicas did not come in time; nothing has changed.
            EnergyUnavailable: no replica, another run learns here, or the step raised; nothing has changed.
        """
        chosen = options or LessonOptions()
        sent = LearnPart(self.connection.run, step, part, parts, *pack_lesson(lesson), self.seconds, chosen)
        reply: LearnReply = self._ask(lambda supervisor: supervisor.learn.remote(sent), f"step {step}")
        return reply

    def state(self) -> WireState:
        """Learnt weights and moments, for the checkpoint of the run (`lessons.save_state`)."""
        state: WireState = self._ask(lambda supervisor: supervisor.learnt.remote(self.seconds), "its state")
        return state

    def restore(self, state: WireState | None) -> int:
        """Go back to a state, or, with None, to the estimator as it was; returns the version that holds it."""
        run = self.connection.run
        version: int = self._ask(lambda s: s.restore.remote(run, state, self.seconds), "a restored state")
        return version

    def _ask(self, call: Callable[[Any], Any], what: str) -> Any:
        name, until = self.connection.transport.name, time.monotonic() + self.seconds + GRACE
        trouble = "it does not answer"
        while True:
            supervisor = actors.find(actors.supervisor_name(name))
            if supervisor is None:
                raise EnergyUnavailable(missing(name, lifecycle.names()))
            try:
                answer = ray.get(call(supervisor), timeout=max(0.001, until - time.monotonic()))
            except RayTaskError as error:
                raise EnergyUnavailable(f"The energy pool {name} failed at {what}: {error.cause or error}") from error
            except GetTimeoutError:
                raise EnergyTimeout(
                    f"The energy pool {name} did not come to {what} within {self.seconds:g} s ({trouble}); see "
                    f"{command('status', name)}."
                ) from None
            except RayError as error:  # it is being started again, and has forgotten the question
                trouble = " ".join(str(error).split())[:200]
                time.sleep(min(PAUSE, max(0.0, until - time.monotonic())))
            else:
                if isinstance(answer, LearnRefusal):
                    raise _error(name, what, answer)
                return answer


def _error(name: str, what: str, refusal: LearnRefusal) -> EnergyTimeout | EnergyUnavailable:
    if refusal.reason == "late":
        return EnergyTimeout(
            f"The energy pool {name} did not come to {what}: {refusal.detail}. Nothing was learnt; see "
            f"{command('status', name)}."
        )
    return EnergyUnavailable(f"The energy pool {name} did not come to {what}: {refusal.detail}. Nothing was learnt.")
