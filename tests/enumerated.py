"""A world small enough to enumerate: all sentences of a few words and at most T tokens, a translator that is a table of
logits, and the energy of a real estimator. What is a mean over samples elsewhere is a sum here.

Axes of this room: Y sentences; P prefixes, which are all sentences too; A choices behind a prefix: V words and the end,
which comes last; N draws of noise; R rows, each with a table of its own, so that each has a gradient of its own.
"""

from itertools import product

import torch
from torch import Tensor

from energymt.energies import QualityEnergy
from energymt.models.estimator import Estimator
from energymt.operators import Noise
from energymt.policy import leave_one_out, reinforce_loss, stop_log_probs, token_log_probs
from energymt.records import Prediction
from tests import bridged, estimators, tiny

NEVER = float("-inf")


class World:
    """p(y | x) of one source by a random table, in float64.

    Args:
        seed: of the table, the words, the source and the estimator's weights.
        words: V.
        longest: T; a sentence that has as many tokens must end.
        fixed: every sentence has T tokens; else it may end wherever it wants.
        estimator: instead of a random COMET-KIWI.
    """

    def __init__(
        self, seed: int = 0, words: int = 3, longest: int = 3, fixed: bool = False, estimator: Estimator | None = None
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.estimator = random_estimator(seed) if estimator is None else estimator
        self.vocabulary = self.estimator.vocabulary
        special = {*self.vocabulary.never_ids, self.vocabulary.eos_id, self.vocabulary.unk_id}
        writable = torch.tensor([token for token in range(self.vocabulary.size) if token not in special])
        word_ids_V = writable[torch.randperm(len(writable), generator=draw)[:words]]
        self.choice_ids_A = torch.cat([word_ids_V, torch.tensor([self.vocabulary.eos_id])])
        prefixes = [row for length in range(longest + 1) for row in product(range(words), repeat=length)]
        sentences = [row for row in prefixes if len(row) == longest or not fixed]
        number = {row: place for place, row in enumerate(prefixes)}
        full_P = torch.tensor([len(row) == longest for row in prefixes])
        self.allowed_PA = (~full_P).unsqueeze(1).repeat(1, words + 1)
        self.allowed_PA[:, -1] = full_P if fixed else True
        self.table_PA = torch.randn(len(prefixes), words + 1, generator=draw, dtype=torch.float64)
        choices = [[*row, words] for row in sentences]
        self.choice_YU, self.mask_YU = tiny.padded(choices, 0)
        self.prefix_YU, _ = tiny.padded([[number[row[:end]] for end in range(len(row) + 1)] for row in sentences], 0)
        self.mask_YT = torch.arange(longest) < torch.tensor([len(row) for row in sentences])[:, None]
        self.ids_YT = self.choice_ids_A[self.choice_YU[:, :-1]].masked_fill(~self.mask_YT, self.vocabulary.pad_id)
        self.source = bridged.source_of(self.vocabulary, [bridged.SOURCES[seed % len(bridged.SOURCES)]])
        self.everyone_Y = torch.arange(len(sentences))
        discrete = QualityEnergy(self.estimator, self.vocabulary)
        self.energy_Y = discrete.discrete(self._sources(self.everyone_Y), self.ids_YT, self.mask_YT)

    # ------------------------------------------------------------------------------------------------- the translator

    def log_probs(self, table_PA: Tensor) -> Tensor:
        """log p(y) of every sentence, [Y]: from the definition."""
        logp_PA = table_PA.masked_fill(~self.allowed_PA, NEVER).log_softmax(-1)
        return logp_PA[self.prefix_YU, self.choice_YU].masked_fill(~self.mask_YU, 0.0).sum(1)

    @property
    def probs_Y(self) -> Tensor:
        return self.log_probs(self.table_PA).exp()

    def logits(self, table_RPA: Tensor, sentence_R: Tensor) -> Tensor:
        """Teacher-forced logits over the whole vocabulary, [R, U, V], as a translator gives them."""
        prefix_RU = self.prefix_YU[sentence_R]
        choice_RUA = table_RPA[torch.arange(len(sentence_R)).unsqueeze(1), prefix_RU]
        choice_RUA = choice_RUA.masked_fill(~self.allowed_PA[prefix_RU], NEVER)
        logits_RUV = choice_RUA.new_full((*prefix_RU.shape, self.vocabulary.size), NEVER)
        logits_RUV[..., self.choice_ids_A] = choice_RUA
        return logits_RUV

    def tables(self, rows: int) -> Tensor:
        """A copy of the table for each row."""
        return self.table_PA.repeat(rows, 1, 1).requires_grad_()

    def _sources(self, sentence_R: Tensor):
        return self.source.select(torch.zeros_like(sentence_R))

    # -------------------------------------------------------------------------------------------------- its gradients

    def expected_energy(self, table_PA: Tensor) -> Tensor:
        """Σ_y p(y) E(y)."""
        return (self.log_probs(table_PA).exp() * self.energy_Y).sum()

    def exact_gradient(self) -> Tensor:
        """Of the expected energy, [P, A]."""
        table_PA = self.table_PA.clone().requires_grad_()
        return torch.autograd.grad(self.expected_energy(table_PA), table_PA)[0]

    def relaxed(self, feed: str, sampled: bool, draws: int = 1, end: bool = True) -> tuple[Tensor, Tensor]:
        """Energies [N, Y] and gradients [N, Y, P, A] of QE-EBM, had each sentence been the sample.

        The prefix is the sample's, and the operator works on the logits that follow; a hard operator takes the token
        that was `sampled`, or the argmax. `end` keeps the end token among the choices of a relaxed token.
        """
        sentence_R = self.everyone_Y.repeat(draws)
        table_RPA, mask_RT = self.tables(len(sentence_R)), self.mask_YT[sentence_R]
        logits_RTV = self.logits(table_RPA, sentence_R)[:, :-1]
        if not end:
            is_end_V = torch.arange(self.vocabulary.size) == self.vocabulary.eos_id
            logits_RTV = logits_RTV.masked_fill(is_end_V, NEVER)
        noise = Noise(7, 0, torch.arange(len(sentence_R)))
        prediction = Prediction(logits_RTV, mask_RT, self.ids_YT[sentence_R] if sampled else None, noise)
        energy_R = QualityEnergy(self.estimator, self.vocabulary, feed)(self._sources(sentence_R), prediction)
        (grad_RPA,) = torch.autograd.grad(energy_R.sum(), table_RPA)
        return energy_R.detach().view(draws, -1), grad_RPA.view(draws, -1, *self.table_PA.shape)

    def stops(self) -> Tensor:
        """The gradient of log p of every sentence's decisions to go on and to stop, [Y, P, A]."""
        table_YPA = self.tables(len(self.everyone_Y))
        logits_YUV, lengths_Y1 = self.logits(table_YPA, self.everyone_Y), self.mask_YT.sum(1, keepdim=True)
        free_YU = self.mask_YU & (torch.arange(self.mask_YU.shape[1]) < self.mask_YT.shape[1])  # where it may choose
        end_YU = torch.full_like(self.choice_YU, self.vocabulary.eos_id)
        end_logp_YU = token_log_probs(logits_YUV, end_YU, free_YU)
        logp_YU = stop_log_probs(end_logp_YU, torch.arange(end_YU.shape[1]) == lengths_Y1)
        return torch.autograd.grad(logp_YU[free_YU].sum(), table_YPA)[0]

    def reinforce(self, sentence_GK: Tensor) -> Tensor:
        """The gradient of REINFORCE with leave-one-out for each group of sentences, [G, P, A]; reward is −E."""
        groups, count = sentence_GK.shape
        sentence_R, table_GPA = sentence_GK.flatten(), self.tables(groups)
        logits_RUV = self.logits(table_GPA.repeat_interleave(count, 0), sentence_R)
        mask_RU = self.mask_YU[sentence_R]
        logp_RU = token_log_probs(logits_RUV, self.choice_ids_A[self.choice_YU[sentence_R]], mask_RU)
        advantage_R = leave_one_out(-self.energy_Y[sentence_GK]).flatten()
        return torch.autograd.grad(reinforce_loss(logp_RU, mask_RU, advantage_R) / count, table_GPA)[0]

    def sample(self, groups: int, count: int, seed: int = 0) -> Tensor:
        """Sentences by their probability, [G, K]."""
        draw = torch.Generator().manual_seed(seed)
        return torch.multinomial(self.probs_Y, groups * count, replacement=True, generator=draw).view(groups, count)

    def mean(self, value_Yx: Tensor) -> Tensor:
        """Σ_y p(y) value_y, over the first axis."""
        return torch.tensordot(self.probs_Y, value_Yx, dims=1)


def random_estimator(seed: int):
    """A tiny COMET-KIWI in float64."""
    estimator = estimators.estimator("kiwi")
    tiny.shake(estimator, 0.1, seed)
    return estimator.double()
