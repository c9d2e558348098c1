"""How a request reaches a replica's actor: large arrays through memory that both share, all else by Ray."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from energymt.pool.client import GoneError
from energymt.pool.shared import Place, Slot, Slots
from energymt.pool.wire import Ragged, Refusal, Reply, Request


@dataclass
class RayCall:
    """A request at a replica's actor."""

    reference: Any

    def wait(self, seconds: float) -> Reply | Refusal | None:
        """See `client.Call`."""
        try:
            answer: Reply | Refusal = ray.get(self.reference, timeout=max(0.001, seconds))
        except GetTimeoutError:
            return None
        except RayError as error:  # the actor, its node, or an object of the reply is gone
            raise GoneError(str(error)) from error
        return answer


@dataclass
class Post:
    """Sends requests; many threads may share it.

    Attributes:
        slots: of this process.
        far: actors that do not see the memory of this process.
    """

    slots: Slots = field(default_factory=Slots)
    far: set[Any] = field(default_factory=set)

    def send(self, actor: Any, request: Request) -> RayCall | PostedCall:
        """Send without waiting."""
        values = request.target.values
        slot = None if values.ndim != 2 or actor in self.far else self.slots.take(values)
        if slot is None:
            return RayCall(actor.serve.remote(request))
        place = slot.post(values)
        bare = replace(request, target=Ragged(np.empty(0, values.dtype), request.target.lengths))
        return PostedCall(self, actor, request, place, slot, RayCall(actor.serve_posted.remote(bare, place)))


@dataclass(eq=False)
class PostedCall:
    """A request whose embeddings, and the gradient that comes back, stand in a slot of shared memory."""

    post: Post
    actor: Any
    request: Request
    place: Place
    slot: Slot | None  # None when it was answered
    call: RayCall

    def wait(self, seconds: float) -> Reply | Refusal | None:
        """See `client.Call`."""
        answer, slot = self.call.wait(seconds), self.slot
        if answer is None or slot is None:
            return answer
        self.slot = None
        if isinstance(answer, Reply) and self.request.gradient and answer.gradient is None:
            gradient = slot.returned(self.place)
            weakref.finalize(gradient, self.post.slots.give, slot)  # and whatever is made from it, without a copy
            return replace(answer, gradient=gradient)
        self.post.slots.give(slot)
        if isinstance(answer, Refusal) and answer.reason == "far":
            self.post.far.add(self.actor)
            self.call = RayCall(self.actor.serve.remote(self.request))
            return None
        return answer

    def __del__(self) -> None:
        if self.slot is not None:
            self.post.slots.drop(self.slot)
