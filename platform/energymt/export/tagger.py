"""The BiLSTM tagger as nodes of an ONNX graph: what `TaggerTranslator` of `models/recurrent.py` computes.

The LSTM itself stays float32 in an int8 export; only the layers behind it are quantised.
"""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor, nn

from energymt.export.graph import Graph
from energymt.export.target import Target
from energymt.models.recurrent import TaggerTranslator


def encode(graph: Graph, model: TaggerTranslator, source_BS: str, mask_BS: str) -> tuple[str, str]:
    """Source embeddings [B, S, E] and their sum [B, E], which the length head reads; the mask is int32."""
    states = graph.node("Gather", graph.constant(model.embedding.weight), source_BS)
    real = graph.node("Unsqueeze", graph.node("Cast", mask_BS, to=TensorProto.FLOAT), graph.vector(-1))
    return states, graph.node("ReduceSum", graph.node("Mul", states, real), graph.vector(1), keepdims=0)


def decode(graph: Graph, model: TaggerTranslator, states_BSE: str, mask_BS: str, target: Target) -> str:
    """Hidden states [R, T, E] that the output layer reads; known tokens are ignored."""
    width = model.config.embedding
    x = graph.node(
        "Gather", graph.node("Reshape", states_BSE, graph.vector(-1, width)), _stretch(graph, mask_BS, target)
    )
    lengths_R = graph.node("Cast", graph.node("Reshape", target.lengths_R1, graph.vector(-1)), to=TensorProto.INT32)
    x = graph.node("Transpose", x, perm=[1, 0, 2])
    for forwards, backwards in zip(model.tagger.forwards, model.tagger.backwards, strict=True):
        assert isinstance(forwards, nn.LSTM) and isinstance(backwards, nn.LSTM)
        pair = (forwards, backwards)
        inner, outer, bias = (
            graph.constant(torch.stack([torch.cat([_reorder(getattr(lstm, name)) for name in names]) for lstm in pair]))
            for names in (["weight_ih_l0"], ["weight_hh_l0"], ["bias_ih_l0", "bias_hh_l0"])
        )
        hidden = model.config.hidden
        x = graph.node("LSTM", x, inner, outer, bias, lengths_R, direction="bidirectional", hidden_size=hidden)
        x = graph.node("Transpose", x, perm=[0, 2, 1, 3])  # T, direction, R, H -> T, R, direction, H
        x = graph.node("Reshape", x, graph.vector(0, 0, -1))
    return graph.linear(graph.node("Transpose", x, perm=[1, 0, 2]), model.output.weight, model.output.bias)


def _stretch(graph: Graph, mask_BS: str, target: Target) -> str:
    """Which row of the flattened source each target position reads: ⌊t · S / T⌋ of its own sentence, [R, T]."""
    shape = graph.node("Shape", mask_BS)
    width = graph.node("Slice", shape, graph.vector(1), graph.vector(2))
    rows = graph.node("Slice", target.shape_RT, graph.vector(0), graph.vector(1))
    row_R = graph.node("Range", graph.scalar(0), graph.node("Reshape", rows, graph.vector()), graph.scalar(1))
    sentence_R = graph.node("Div", row_R, graph.node("Div", rows, target.sentences))
    counted = graph.node("Cast", mask_BS, to=TensorProto.INT64)
    source_B1 = graph.node("ReduceSum", counted, graph.vector(1), keepdims=1)
    source_R1 = graph.node("Gather", source_B1, sentence_R)
    length = graph.node("Reshape", target.length, graph.vector())
    position_T = graph.node("Range", graph.scalar(0), length, graph.scalar(1))
    index = graph.node("Div", graph.node("Mul", position_T, source_R1), target.lengths_R1)
    index = graph.node("Min", index, graph.node("Sub", width, graph.scalar(1)))
    start_R1 = graph.node("Unsqueeze", graph.node("Mul", sentence_R, width), graph.vector(-1))
    return graph.node("Add", start_R1, index)


def _reorder(gates: Tensor) -> Tensor:
    """Gates in the order of ONNX (input, output, forget, cell); torch has input, forget, cell, output."""
    entry, forget, cell, output = gates.chunk(4)
    return torch.cat([entry, output, forget, cell])
