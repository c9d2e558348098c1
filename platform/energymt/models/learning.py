"""An estimator that learns while it serves: gradients of a lesson here or elsewhere, one step, and then a new version.

A step has two phases, so that copies of an estimator in several processes change together: `prepare` computes the new
weights beside the old ones, `activate` puts them in place. Every copy that has taken the same steps holds the same
weights, bit by bit.

Axes of this room: G groups (sources), C candidates of all groups, P learnt weights in one row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from energymt.energies.contrastive import Form, contrastive_loss, first_of
from energymt.errors import ConfigurationError
from energymt.models.adapters import ADAPTER, add_adapters
from energymt.models.estimator import QualityEstimator
from energymt.records import SoftTarget, Source

Learns = Literal["head", "lora", "all"]


@dataclass(frozen=True)
class LessonOptions:
    """How a step is taken (QE-EBM's published code: rate 3e-4, clip 0.5, betas 0.9 and 0.98, decay 1e-5)."""

    rate: float = 3e-4
    clip: float = 0.5
    """Largest L2 norm of the gradient."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 1e-5
    form: Form = "binary"


@dataclass(frozen=True)
class Lesson:
    """Groups of candidates, the gold first in each; ids are the estimator's own, without special tokens."""

    source: Source  # G sentences
    ids_CT: Tensor
    mask_CT: Tensor
    sizes_G: Tensor
    log_probs_C: Tensor  # of the translator

    def to(self, device: torch.device) -> Lesson:
        return Lesson(
            self.source.to(device),
            self.ids_CT.to(device),
            self.mask_CT.to(device),
            self.sizes_G.to(device),
            self.log_probs_C.to(device),
        )

    def __len__(self) -> int:
        return len(self.sizes_G)

    def fault(self, tokens: int) -> str:
        """Why an estimator of so many tokens cannot learn from it, if anything."""
        texts = (("source", self.source.ids_BS, self.source.mask_BS), ("translation", self.ids_CT, self.mask_CT))
        for word, ids, mask in texts:
            foreign = ids[mask & ((ids < 0) | (ids >= tokens))]
            if len(foreign):
                return (
                    f"a {word} holds the token id {int(foreign[0])}, and the estimator has {tokens:,} tokens: encode "
                    f"it with the estimator's own vocabulary"
                )
        if not self.log_probs_C.isfinite().all():
            return "the log-probability of a translation is not finite: leave out what the translator cannot say"
        return ""


@dataclass(frozen=True)
class LessonGradient:
    """Sums over (a part of) a lesson."""

    gradient_P: Tensor
    loss: float
    count: int
    """What the loss is a mean over."""
    totals: dict[str, tuple[float, int]]
    """Of scores: sum and number."""


@dataclass
class LearnerState:
    """Everything that a copy needs to go on as the others do."""

    version: int
    weights_P: Tensor
    moments: dict[str, Tensor] = field(default_factory=dict)  # AdamW's exp_avg_P, exp_avg_sq_P and step
    last: dict[str, Any] = field(default_factory=dict)  # what the last step was, and came to


class EstimatorLearner:
    """Learns some weights of an estimator. Dropout stays off, so that copies agree.

    Args:
        estimator: it is changed in place by `activate`, and by nothing else.
        learns: `head` (regression head and layer mix); `lora` (both, and low-rank adapters in the encoder's attention,
            which are put in here); `all` but the token embeddings, of which callers have copies.
        rank: of the adapters.
        budget: most positions, padding included, that go through the encoder at once.
        version: at the start.
    """

    def __init__(
        self, estimator: QualityEstimator, learns: Learns, *, rank: int = 8, budget: int = 4096, version: int = 0
    ) -> None:
        if learns == "lora":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # every copy begins with the same
                add_adapters(estimator.encoder, ["query", "value"], rank, alpha=rank)
        self.estimator, self.budget = estimator.eval().requires_grad_(False), budget
        self.parameters = {name: p for name, p in estimator.named_parameters() if _is_learnt(name, learns, estimator)}
        if not self.parameters:
            raise ConfigurationError(f"Nothing of this estimator is learnt by {learns!r}.")
        self.sizes = [p.numel() for p in self.parameters.values()]
        self.start_P = torch.cat([p.detach().float().flatten() for p in self.parameters.values()])
        self.state = LearnerState(version, self.start_P.clone())
        self.prepared: LearnerState | None = None

    @property
    def version(self) -> int:
        """Of the weights that the estimator has now."""
        return self.state.version

    def differentiate(self, lesson: Lesson, form: Form) -> LessonGradient:
        """The gradient of a lesson's summed loss in the learnt weights of the current version.

        Raises:
            ConfigurationError: the lesson is not one for this estimator.
        """
        if fault := lesson.fault(len(self.estimator.table_VD)):
            raise ConfigurationError(f"The lesson cannot be learnt: {fault}.")
        weights_P = self.state.weights_P.detach().requires_grad_()
        gradient_P, loss, count = torch.zeros_like(weights_P), 0.0, 0
        gold: list[Tensor] = []
        samples: list[Tensor] = []
        for piece in _pieces(lesson, self.budget):
            target = SoftTarget(piece.ids_CT, self.estimator.lookup(piece.ids_CT), piece.mask_CT)
            rows_C = torch.arange(len(piece), device=piece.sizes_G.device).repeat_interleave(piece.sizes_G)
            arguments = (piece.source.select(rows_C), target)
            scores_C = functional_call(self.estimator, self._named(weights_P), arguments)
            total, number = contrastive_loss(scores_C, piece.log_probs_C, piece.sizes_G, form)
            gradient_P += torch.autograd.grad(total, weights_P)[0]
            loss, count = loss + total.item(), count + number
            is_gold_C = torch.zeros(len(rows_C), dtype=torch.bool, device=scores_C.device)
            is_gold_C[first_of(piece.sizes_G)] = True
            gold.append(scores_C.detach()[is_gold_C])
            samples.append(scores_C.detach()[~is_gold_C])
        totals = {
            name: (float(sum(part.double().sum() for part in parts)), sum(map(len, parts)))
            for name, parts in (("gold", gold), ("sample", samples))
        }
        return LessonGradient(gradient_P, loss, count, totals)

    def prepare(self, version: int, mean_P: Tensor, options: LessonOptions, last: dict[str, Any]) -> str:
        """Compute the weights of a new version beside the present ones; returns their digest.

        Args:
            version: the new one.
            mean_P: the gradient, averaged over all parts of the lesson.
            options: of the step.
            last: what to remember of the step.
        """
        weights_P = nn.Parameter(self.state.weights_P.clone())
        optimizer = torch.optim.AdamW(
            [weights_P], lr=options.rate, betas=options.betas, weight_decay=options.weight_decay, foreach=False
        )
        if self.state.moments:
            group = optimizer.state_dict()["param_groups"]
            moments = {name: tensor.clone() for name, tensor in self.state.moments.items()}
            optimizer.load_state_dict({"state": {0: moments}, "param_groups": group})
        weights_P.grad = mean_P.to(weights_P)
        torch.nn.utils.clip_grad_norm_([weights_P], options.clip)
        optimizer.step()
        moments = {name: tensor.detach() for name, tensor in optimizer.state[weights_P].items()}
        self.prepared = LearnerState(version, weights_P.detach(), moments, last)
        return digest(self.prepared)

    def activate(self, version: int) -> bool:
        """Put a prepared version in place; False if this copy has not got it."""
        if self.state.version == version:
            return True
        if self.prepared is None or self.prepared.version != version:
            return False
        self.install(self.prepared)
        return True

    @torch.no_grad()
    def install(self, state: LearnerState) -> None:
        """Take over the state of another copy, or of a checkpoint.

        Raises:
            ConfigurationError: of an estimator with other learnt weights.
        """
        if len(state.weights_P) != len(self.start_P):
            raise ConfigurationError(
                f"The state holds {len(state.weights_P):,} learnt weights and this estimator learns "
                f"{len(self.start_P):,}: it was saved by a pool of another estimator, or one that learns other parts."
            )
        device = self.start_P.device
        moments = {name: tensor.to(device) for name, tensor in state.moments.items()}
        self.state = LearnerState(state.version, state.weights_P.to(device), moments, dict(state.last))
        self.prepared = None
        for name, values in self._named(self.state.weights_P).items():
            self.parameters[name].copy_(values)

    def first(self, version: int) -> LearnerState:
        """The state before the first step, under a new version."""
        return LearnerState(version, self.start_P)

    def _named(self, weights_P: Tensor) -> dict[str, Tensor]:
        parts = weights_P.split(self.sizes)
        return {
            name: part.view_as(parameter).to(parameter.dtype)
            for (name, parameter), part in zip(self.parameters.items(), parts, strict=True)
        }


def digest(state: LearnerState) -> str:
    """sha256 of weights and moments: two copies that agree have the same."""
    found = hashlib.sha256(str(state.version).encode())
    for tensor in (state.weights_P, *(state.moments[name] for name in sorted(state.moments))):
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _is_learnt(name: str, learns: Learns, estimator: QualityEstimator) -> bool:
    if learns == "all":
        table = estimator.encoder.get_input_embeddings().weight
        return estimator.get_parameter(name) is not table
    return name.startswith(("head.", "mix.")) or (learns == "lora" and ADAPTER in name)


def _pieces(lesson: Lesson, budget: int) -> Iterator[Lesson]:
    """Whole groups, as many as fit the budget of padded positions; a larger group goes alone."""
    sources_G = lesson.source.mask_BS.sum(1).tolist()
    targets_C = lesson.mask_CT.sum(1).tolist()
    starts_G, sizes_G = first_of(lesson.sizes_G).tolist(), lesson.sizes_G.tolist()
    widths_G = [
        source + max(targets_C[start : start + size], default=0)
        for source, start, size in zip(sources_G, starts_G, sizes_G, strict=True)
    ]
    first = 0
    while first < len(widths_G):
        last, widest, rows = first, 0, 0
        while last < len(widths_G):
            wide, more = max(widest, widths_G[last]), rows + sizes_G[last]
            if last > first and wide * more > budget:
                break
            last, widest, rows = last + 1, wide, more
        yield select_groups(lesson, first, last)
        first = last


def select_groups(lesson: Lesson, first: int, last: int) -> Lesson:
    """The groups from `first` on, `last` not among them."""
    starts_G = first_of(lesson.sizes_G)
    begin = int(starts_G[first]) if first < len(lesson) else len(lesson.ids_CT)
    end = int(starts_G[last]) if last < len(lesson) else len(lesson.ids_CT)
    width = int(lesson.mask_CT[begin:end].sum(1).max()) if end > begin else 0
    return Lesson(
        Source(lesson.source.ids_BS[first:last], lesson.source.mask_BS[first:last]),
        lesson.ids_CT[begin:end, :width],
        lesson.mask_CT[begin:end, :width],
        lesson.sizes_G[first:last],
        lesson.log_probs_C[begin:end],
    )
