"""The Gumbel noise of a batch, by name: nothing is stored, and the same numbers come out however a batch is cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noise:
    """The Gumbel noise of a batch, by name: a function of (seed, step, stream, sentence, position, token) alone.

    The same numbers come out however a batch is cut, padded or ordered, in vocabulary chunks or whole, on CPU and on
    CUDA; nothing is stored. `stream` tells two draws of one step apart (ENGINE draws for O1 and O2 independently).
    """

    seed: int
    step: int
    sentence_ids_B: Tensor  # int64
    stream: int = 0

    def draw(self, stream: int) -> Noise:
        """The same noise source, another independent draw."""
        return replace(self, stream=stream)

    def to(self, device: torch.device) -> Noise:
        return replace(self, sentence_ids_B=self.sentence_ids_B.to(device))

    def select(self, rows: slice) -> Noise:
        """The noise of some sentences of the batch."""
        return replace(self, sentence_ids_B=self.sentence_ids_B[rows])

    def gumbel(self, length: int, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Gumbel(0, 1) noise [B, length, stop - start] for the tokens start..stop-1 of the vocabulary."""
        return -torch.log(-torch.log(self.uniform(length, start, stop, dtype)))

    def uniform(
        self, length: int, start: int, stop: int, dtype: torch.dtype = torch.float32, *, first: int = 0
    ) -> Tensor:
        """Uniform noise in (0, 1), [B, length, stop - start], under the same key; of the positions from `first` on."""
        device = self.sentence_ids_B.device
        key_B = _mix64(self.sentence_ids_B ^ _mix64(torch.tensor(self.seed * 8191 + self.stream, device=device)))
        key_B = _mix64(key_B + self.step)
        positions_T = torch.arange(first, first + length, device=device)
        key_BT1 = _mix64(key_B[:, None] ^ (positions_T * 0x632BE59BD9B4E019))[..., None]
        low, high = _as_int32(key_BT1), _as_int32(key_BT1 >> 32)
        tokens_V = _as_int32(torch.arange(start, stop, device=device) * 0x9E3779B9)
        bits = _mix32(tokens_V ^ low, high)
        # 24 bits, shifted by a half: u is never 0 nor 1, and both logarithms are finite.
        return (_shift32(bits, 8).to(dtype) + 0.5) / float(1 << 24)


def _as_int32(value: Tensor) -> Tensor:
    """The low 32 bits, as a signed integer."""
    low = value & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)


def _shift32(value: Tensor, places: int) -> Tensor:
    """Logical shift to the right of a signed 32-bit integer (torch's own shift keeps the sign)."""
    return (value >> places) & ((1 << (32 - places)) - 1)


def _mix32(value: Tensor, offset: Tensor) -> Tensor:
    """A 32-bit finaliser (multiply and xor-shift), with a second key added between its rounds."""
    value = (value ^ _shift32(value, 16)) * 0x21F0AAAD
    value = value + offset
    value = (value ^ _shift32(value, 15)) * 0x735A2D97
    return value ^ _shift32(value, 15)


def _mix64(value: Tensor) -> Tensor:
    """A 64-bit finaliser on wrapping integers; the constants are odd and fit a signed 64-bit integer."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * 0x3F58476D1CE4E5B9
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * 0x14D049BB133111EB
    return value ^ ((value >> 31) & 0x1FFFFFFFF)
