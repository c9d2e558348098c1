"""What a translator must offer, autoregressive or not, and how one is kept in a folder."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from energymt.data.vocabulary import Vocabulary
from energymt.errors import ConfigurationError
from energymt.models.network import Network
from energymt.models.publishing import push_folder
from energymt.records import Input, Projection

ARCHITECTURE_FILE = "translator.json"
WEIGHTS_FILE = "model.safetensors"
HEADS = "heads."  # what weights of `TranslationModel.add_head` are called in a state


@dataclass(frozen=True)
class Memory:
    """What an encoder says of a batch of sources."""

    states_BSD: Tensor
    mask_BS: Tensor  # bool
    length_logp_BL: Tensor | None = None  # log-probability of each target length 0..L-1, end token not counted

    def select(self, rows_R: Tensor) -> Memory:
        """Rows of this memory, in the order given and possibly repeated."""
        length = None if self.length_logp_BL is None else self.length_logp_BL[rows_R]
        return Memory(self.states_BSD[rows_R], self.mask_BS[rows_R], length)


class State(Protocol):
    """The decoder's cache between two steps of generation; R rows."""

    def select(self, rows_R: Tensor) -> State:
        """Rows of memory and cache, repeated or dropped."""
        ...

    def reorder(self, rows_R: Tensor) -> State:
        """As many rows as before, each taken from a row of the same source sentence: the memory stays as it is."""
        ...


class TranslationModel(Network):
    """A translator, autoregressive or not."""

    FILE = ARCHITECTURE_FILE
    vocabulary: Vocabulary
    heads: nn.ModuleDict

    @abstractmethod
    def encode(self, source: Input) -> Memory:
        """Encoder states of a batch of sources, text or sound.

        Raises:
            ConfigurationError: if it is the other of the two.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What `load_translator` needs besides weights and vocabulary, as JSON."""

    @property
    def longest(self) -> int | None:
        """Most tokens of a source sentence and of a translation; None where nothing bounds them."""
        return None

    def add_head(self, name: str, head: nn.Module) -> None:
        """Put a layer beside the translator that a method needs in training: in checkpoints, not in the saved model."""
        self.heads = nn.ModuleDict({name: head})

    def save_weights(self, folder: Path) -> None:
        """Write the weights alone (safetensors)."""
        kept = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(HEADS)}
        safetensors.torch.save_file({name: part.contiguous() for name, part in kept.items()}, folder / WEIGHTS_FILE)

    def load_weights(self, folder: Path) -> None:
        """Read weights that `save_weights` wrote, strictly."""
        self.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE), strict=True)

    def save(self, folder: Path) -> None:
        """Write weights, architecture and vocabulary; `energymt.models.load_translator` reads them back."""
        folder.mkdir(parents=True, exist_ok=True)
        self.save_weights(folder)
        text = json.dumps({"architecture": self.architecture, "config": self.description()}, indent=2, sort_keys=True)
        (folder / ARCHITECTURE_FILE).write_text(text + "\n", encoding="utf-8")
        self.vocabulary.save(folder)

    @classmethod
    def from_pretrained(cls, address: Path | str) -> Self:
        """The translator at an address (a folder, `owner/name@revision` on the hub, s3://, models:/), in eval mode.

        Raises:
            StorageError: nothing whole is there.
            ConfigurationError: it is of another class than this one.
        """
        from energymt.models.loading import load_translator
        from energymt.storage import fetch

        model = load_translator(fetch(address))
        if not isinstance(model, cls):
            raise ConfigurationError(f"{address} is a {type(model).__name__} and no {cls.__name__}; load it as such.")
        return model

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload what `save_pretrained` writes to `owner/name` on the Hugging Face hub; returns its address."""
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder)
            return push_folder(folder, repository, private=private)


class AutoregressiveModel(TranslationModel):
    """p(y | x) = Π p(y_t | y_<t, x). Logits have U = T + 1 positions: y_1 .. y_T and the end of the sentence."""

    @property
    @abstractmethod
    def embedding_VD(self) -> Tensor:
        """The decoder's input embeddings, as raw rows; `decode_soft` takes mixtures of them."""

    @abstractmethod
    def decode(self, memory: Memory, target_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Teacher forcing on discrete tokens: logits_BUV."""

    @abstractmethod
    def decode_projection(self, memory: Memory, target_BT: Tensor, mask_BT: Tensor) -> Projection:
        """What the logits of `decode` are made from, hidden_BUH first: for vocabularies too large for logits_BUV."""

    @abstractmethod
    def decode_soft(self, memory: Memory, emb_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The same on expected embeddings Σ_v p(v) · embedding_VD[v]: logits_BUV."""

    @abstractmethod
    def start(self, memory: Memory) -> tuple[State, Tensor]:
        """Read the start tokens, one row a sentence: the cache and the logits_RV of the first token."""

    @abstractmethod
    def step(self, state: State, ids_R: Tensor) -> tuple[State, Tensor]:
        """Read one more token a row: the cache and the logits_RV of the next."""


class NonautoregressiveModel(TranslationModel):
    """p(y | x, T) = Π p(y_t | x, T, observed tokens): all positions at once."""

    @abstractmethod
    def predict(self, memory: Memory, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits_BTV given the tokens seen so far (`mask_id` where none is); tokens that cannot stand get -inf."""

    def choose(self, memory: Memory, tokens_BT: Tensor, mask_BT: Tensor, wanted_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The best token of each of the N wanted positions, and its log-probability; ids_N and logp_N."""
        logits_NV = self.predict(memory, tokens_BT, mask_BT)[wanted_BT].float()
        best_N, ids_N = logits_NV.max(-1)
        return ids_N, best_N - logits_NV.logsumexp(-1)

    def unseen(self, mask_BT: Tensor) -> Tensor:
        """The input of a single pass: `<mask>` everywhere (padding where the mask is False)."""
        tokens = torch.full(mask_BT.shape, self.vocabulary.mask_id, device=mask_BT.device)
        return tokens.masked_fill(~mask_BT, self.vocabulary.pad_id)

    def forbid(self, logits_BTV: Tensor) -> Tensor:
        """-inf for every token that cannot stand inside a translation: start, padding, mask and end tokens."""
        return logits_BTV.masked_fill(self._forbidden_V(logits_BTV.shape[-1], logits_BTV.device), float("-inf"))

    def _forbidden_V(self, size: int, device: torch.device) -> Tensor:
        ids: Sequence[int] = [*self.vocabulary.never_ids, self.vocabulary.eos_id]
        forbidden = torch.zeros(size, dtype=torch.bool, device=device)
        forbidden[[i for i in ids if i < size]] = True
        return forbidden


class LengthHead(nn.Module):
    """log p(T | x) by the dot product of one encoder vector with an embedding of each length (Mask-Predict, §3.3).

    The length does not count the end token; length 0 has no mass.
    """

    def __init__(self, width: int, longest: int) -> None:
        super().__init__()
        self.lengths = nn.Embedding(longest + 1, width)
        nn.init.normal_(self.lengths.weight, std=width**-0.5)

    def forward(self, vector_BD: Tensor) -> Tensor:
        """Log-probabilities [B, longest + 1], float32."""
        logits_BL = nn.functional.linear(vector_BD, self.lengths.weight).float()
        zero = torch.arange(logits_BL.shape[1], device=logits_BL.device) == 0
        return logits_BL.masked_fill(zero, float("-inf")).log_softmax(-1)
