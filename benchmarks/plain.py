"""ENGINE training as one writes it by hand: the networks of `energymt.models` in `torch.nn` alone, and one step.

It is what `bench_engine_step` compares with, so it is written with care: one softmax serves both operators, and the
straight-through estimator makes no one-hot vector. The networks take their weights from ours and give the same loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from energymt.models.masked import Attention, MaskedTranslator
from energymt.models.transformer import TransformerTranslator
from energymt.records import Batch


class PlainStudent(nn.Module):
    """The CMLM out of `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer`."""

    def __init__(self, model: MaskedTranslator) -> None:
        super().__init__()
        config, words = model.config, model.vocabulary
        sizes = (config.width, config.heads, config.feedforward, 0.0)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True) for _ in model.encoder
        )
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(*sizes, batch_first=True, norm_first=True) for _ in model.decoder
        )
        for plain, ours in zip([*self.encoder, *self.decoder], [*model.encoder, *model.decoder], strict=True):
            _copy_masked_layer(plain, ours)
        self.embedding, self.bias = nn.Parameter(_copy(model.embedding.weight)), nn.Parameter(_copy(model.bias))
        self.source_positions = nn.Parameter(_copy(model.source_positions.weight))
        self.target_positions = nn.Parameter(_copy(model.target_positions.weight))
        self.length_token = nn.Parameter(_copy(model.length_token))
        self.lengths = nn.Parameter(_copy(model.length.lengths.weight))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.scale, self.mask_id, self.size = model.scale, words.mask_id, words.size
        forbidden = torch.zeros(words.size, dtype=torch.bool)
        forbidden[[*words.never_ids, words.eos_id]] = True
        self.register_buffer("forbidden", forbidden)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] of the fully masked pass, and log-probabilities of the lengths."""
        source, mask_BT = batch.source, batch.target_mask_BT
        x = torch.cat([self.length_token.expand(len(batch), 1, -1), self.embedding[source.ids_BS]], dim=1)
        x = (x + self.source_positions[: x.shape[1]]) * self.scale
        padding = torch.cat([torch.zeros_like(source.mask_BS[:, :1]), ~source.mask_BS], dim=1)
        for layer in self.encoder:
            x = layer(x, src_key_padding_mask=padding)
        x = self.encoder_norm(x)
        length_logits = linear(x[:, 0], self.lengths).float()
        length_logits[:, 0] = float("-inf")
        y = (self.embedding[self.mask_id] + self.target_positions[: mask_BT.shape[1]]) * self.scale
        y = y.expand(len(batch), -1, -1)
        for layer in self.decoder:
            y = layer(y, x[:, 1:], tgt_key_padding_mask=~mask_BT, memory_key_padding_mask=~source.mask_BS)
        logits = linear(self.decoder_norm(y), self.embedding[: self.size], self.bias)
        return logits.masked_fill(self.forbidden, float("-inf")), length_logits.log_softmax(-1)


class PlainTeacher(nn.Module):
    """The transformer teacher out of the same two layers, after-norm."""

    def __init__(self, model: TransformerTranslator) -> None:
        super().__init__()
        config, network = model.network.config, model.network.model
        sizes = (config.d_model, config.encoder_attention_heads, config.encoder_ffn_dim, 0.0)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(*sizes, batch_first=True) for _ in network.encoder.layers
        )
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(*sizes, batch_first=True) for _ in network.decoder.layers
        )
        for plain, ours in zip(self.encoder, network.encoder.layers, strict=True):
            _copy_marian_layer(plain, ours)
        for plain, ours in zip(self.decoder, network.decoder.layers, strict=True):
            _copy_marian_layer(plain, ours)
        self.embedding = nn.Parameter(_copy(model.embedding_VD))
        self.positions = nn.Parameter(_copy(network.encoder.embed_positions.weight))
        self.bias = nn.Parameter(_copy(model.network.final_logits_bias))
        self.scale, self.start_id = config.d_model**0.5, model.prefix_ids[0]
        self.eval().requires_grad_(False)

    def encode(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Encoder states [B, S, D]."""
        x = self.embedding[ids_BS] * self.scale + self.positions[: ids_BS.shape[1]]
        for layer in self.encoder:
            x = layer(x, src_key_padding_mask=~mask_BS)
        return x

    def decode(self, memory_BSD: Tensor, mask_BS: Tensor, emb_BTD: Tensor) -> Tensor:
        """Logits [B, T + 1, V] behind the start token and behind each embedding."""
        start = self.embedding[self.start_id].expand(len(emb_BTD), 1, -1)
        y = torch.cat([start, emb_BTD], dim=1) * self.scale
        y = y + self.positions[: y.shape[1]]
        causal = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool, device=y.device).triu(1)
        for layer in self.decoder:
            y = layer(y, memory_BSD, tgt_mask=causal, memory_key_padding_mask=~mask_BS)
        return linear(y, self.embedding, self.bias[0])


def engine_loss(student: PlainStudent, teacher: PlainTeacher, eos_id: int, batch: Batch) -> Tensor:
    """Energy (SX, ST) plus length loss, a mean over sentences."""
    mask_BT, lengths_B = batch.target_mask_BT, batch.target_lengths_B
    logits_BTV, length_logp_BL = student(batch)
    probs_BTV = logits_BTV.softmax(-1)
    with torch.no_grad():
        memory_BSD = teacher.encode(batch.source.ids_BS, batch.source.mask_BS)
    teacher_BUV = teacher.decode(memory_BSD, batch.source.mask_BS, probs_BTV @ teacher.embedding)
    logp_BUV = teacher_BUV.float().log_softmax(-1)
    logp_BTV = logp_BUV[:, :-1]
    soft_BT = (probs_BTV * logp_BTV.detach()).sum(-1)  # carries the gradient of the straight-through estimator
    hard_BT = logp_BTV.gather(-1, logits_BTV.argmax(-1, keepdim=True)).squeeze(-1)
    token_BT = (hard_BT + soft_BT - soft_BT.detach()).masked_fill(~mask_BT, 0.0)
    end_B = logp_BUV[..., eos_id].gather(1, lengths_B[:, None])
    length_B = length_logp_BL.gather(1, lengths_B[:, None])
    return -(token_BT.sum() + end_B.sum() + length_B.sum()) / len(batch)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _load(plain: nn.Module, weights: list[Tensor]) -> None:
    """Copy weights into the parameters of a module, in their order."""
    with torch.no_grad():
        for parameter, weight in zip(plain.parameters(), weights, strict=True):
            parameter.copy_(weight)


def _copy_masked_layer(plain: nn.Module, ours: nn.Module) -> None:
    def attention(module: Attention) -> list[Tensor]:
        packed = (module.query, module.key_value)
        return [
            torch.cat([part.weight for part in packed]),
            torch.cat([part.bias for part in packed]),
            *module.output.parameters(),
        ]

    crossed = ours.cross is not None
    feedforward = [*ours.wide.parameters(), *ours.narrow.parameters()]
    norms = [ours.attention_norm, *([ours.cross_norm] if crossed else []), ours.wide_norm]
    _load(
        plain,
        [
            *attention(ours.attention),
            *(attention(ours.cross) if crossed else []),
            *feedforward,
            *(weight for norm in norms for weight in norm.parameters()),
        ],
    )


def _copy_marian_layer(plain: nn.Module, ours: nn.Module) -> None:
    def attention(module: nn.Module) -> list[Tensor]:
        packed = (module.q_proj, module.k_proj, module.v_proj)
        return [
            torch.cat([part.weight for part in packed]),
            torch.cat([part.bias for part in packed]),
            *module.out_proj.parameters(),
        ]

    crossed = hasattr(ours, "encoder_attn")
    feedforward = [*ours.fc1.parameters(), *ours.fc2.parameters()]
    norms = [ours.self_attn_layer_norm, *([ours.encoder_attn_layer_norm] if crossed else []), ours.final_layer_norm]
    _load(
        plain,
        [
            *attention(ours.self_attn),
            *(attention(ours.encoder_attn) if crossed else []),
            *feedforward,
            *(weight for norm in norms for weight in norm.parameters()),
        ],
    )
