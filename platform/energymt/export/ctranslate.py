"""Autoregressive transformers that run in CTranslate2, float32 or int8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import torch

from energymt.data.vocabulary import load_vocabulary
from energymt.errors import ConfigurationError, DivergenceError
from energymt.export.folder import read_description
from energymt.export.specification import token_names
from energymt.records import Hypothesis, Source

MOST_PATIENCE = 1000.0
"""CTranslate2 counts hypotheses in whole numbers and has no infinity."""
LEAST_PENALTY = 1e-9
"""With exactly 0 CTranslate2 ends a search by another rule."""


class CTranslateTranslator:
    """An autoregressive translator that runs in CTranslate2.

    Its scores are log-probabilities among the allowed tokens: CTranslate2 takes the others out before the softmax, and
    PyTorch after it. In a trained model that is about 1e-4 a token.

    Args:
        folder: what `export_ctranslate` wrote.
        threads: of one call; two make small models slower than one.
        device: "cpu" or "cuda".
    """

    autoregressive = True

    def __init__(self, folder: Path, threads: int = 1, device: str = "cpu") -> None:
        description = read_description(folder)
        self.vocabulary = load_vocabulary(folder)
        self.longest: int | None = description["longest"]
        self.device = torch.device("cpu")  # of the tensors that come in
        self.names = token_names(self.vocabulary)
        self.ids = {name: token_id for token_id, name in enumerate(self.names)}
        self.forced = [self.names[token_id] for token_id in description["prefix_ids"][1:]]
        self.never = [[self.names[token_id]] for token_id in self.vocabulary.never_ids if token_id < len(self.names)]
        self.runtime = ctranslate2.Translator(
            str(folder),
            device=device,
            compute_type="int8" if description["precision"] == "int8" else "float32",
            intra_threads=threads,
            inter_threads=1,
        )

    def search(
        self,
        source: Source,
        *,
        beam: int = 1,
        max_length: int | Sequence[int] | None = None,
        length_penalty: float = 1.0,
        n_best: int = 1,
        patience: float = 1.0,
    ) -> list[list[Hypothesis]]:
        """The same as `autoregressive.decode` of the model that was exported."""
        if not 1 <= n_best <= beam:
            raise ConfigurationError(
                f"A beam of {beam} holds no {n_best} best translations: choose 1 <= n_best <= beam."
            )
        if length_penalty < 0:
            raise ConfigurationError(f"The length penalty is {length_penalty} and must be at least 0.")
        if not patience >= 1:
            raise ConfigurationError(f"The patience is {patience} and must be at least 1.")
        rows = [
            self._names(ids_S[mask_S].tolist()) for ids_S, mask_S in zip(source.ids_BS, source.mask_BS, strict=True)
        ]
        limits = self._limits(rows, max_length)
        found = self._search(rows, max(limits, default=0), beam, length_penalty, patience)
        for row, limit in enumerate(limits):  # CTranslate2 has one limit for the whole batch
            if any(len(hypothesis.ids) > limit for hypothesis in found[row]):
                found[row] = self._search([rows[row]], limit, beam, length_penalty, patience)[0]
        return [hypotheses[:n_best] for hypotheses in found]

    def _limits(self, rows: list[list[str]], max_length: int | Sequence[int] | None) -> list[int]:
        """The most tokens of each translation, as in `autoregressive.decode`."""
        if max_length is None:
            limits = [2 * (len(row) - 1) + 10 for row in rows]
        else:
            limits = [max_length] * len(rows) if isinstance(max_length, int) else list(max_length)
        if len(limits) != len(rows) or min(limits, default=0) < 0:
            raise ConfigurationError("Give one greatest length, at least 0, or one for each sentence of the batch.")
        return limits if self.longest is None else [min(limit, self.longest) for limit in limits]

    def _search(
        self, rows: list[list[str]], limit: int, beam: int, length_penalty: float, patience: float
    ) -> list[list[Hypothesis]]:
        """Up to `beam` hypotheses a row, best first."""
        if limit == 0:
            return [[self._hypothesis(row, self.forced, 0.0, length_penalty)] for row in rows]
        results = self.runtime.translate_batch(
            rows,
            target_prefix=[self.forced] * len(rows) if self.forced else None,
            beam_size=beam,
            patience=min(patience, MOST_PATIENCE) if beam > 1 else 1,
            num_hypotheses=beam,
            length_penalty=max(length_penalty, LEAST_PENALTY),
            return_scores=True,
            return_end_token=True,
            suppress_sequences=self.never,
            max_input_length=0,
            min_decoding_length=0,
            max_decoding_length=limit + len(self.forced),
        )
        found = []
        for row, result in zip(rows, results, strict=True):
            hypotheses = [
                self._hypothesis(row, names, score * len(names) ** length_penalty, length_penalty)
                for names, score in zip(result.hypotheses, result.scores, strict=True)
            ]
            found.append(sorted(hypotheses, key=lambda hypothesis: -hypothesis.score))
        if not all(math.isfinite(hypothesis.total) for hypotheses in found for hypothesis in hypotheses):
            raise DivergenceError("The translator's scores are not finite: its weights hold NaN or infinity.")
        return found

    def _hypothesis(self, source: list[str], names: list[str], total: float, length_penalty: float) -> Hypothesis:
        """Without forced tokens and end token; one that was cut at its greatest length gets the end token's part."""
        ids = [self.ids[name] for name in names[len(self.forced) :]]
        if ids and ids[-1] == self.vocabulary.eos_id:
            ids.pop()
        else:
            total += self.runtime.score_batch([source], [names], max_input_length=0)[0].log_probs[-1]
        return Hypothesis(tuple(ids), total / (len(ids) + 1) ** length_penalty, total)

    def _names(self, ids: Sequence[int]) -> list[str]:
        return [self.names[token_id] for token_id in ids]
