"""The CMLM as nodes of an ONNX graph: what `models/masked.py` computes, in the order that ONNX Runtime runs fastest."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from energymt.export.graph import Graph
from energymt.export.target import Target
from energymt.models.masked import Attention, Layer, MaskedTranslator


def encode(graph: Graph, model: MaskedTranslator, source_BS: str, mask_BS: str) -> tuple[str, str]:
    """Encoder states [B, S, D] and the vector [B, D] that the length head reads; the mask is int32."""
    width, heads = model.config.width, model.config.heads
    positions = model.source_positions.weight * model.scale
    shape = graph.node("Shape", source_BS)
    rows, length = (graph.node("Slice", shape, graph.vector(i), graph.vector(i + 1)) for i in range(2))
    words = graph.node("Gather", graph.constant(model.embedding.weight * model.scale), source_BS)
    words = graph.node("Add", words, first_rows(graph, positions[1:], length))
    first = graph.constant((model.length_token * model.scale + positions[0]).view(1, 1, width))
    first = graph.node("Expand", first, graph.node("Concat", rows, graph.vector(1, 1), axis=0))
    x = graph.node("Concat", first, words, axis=1)
    one = graph.constant(torch.ones((), dtype=torch.int32))
    mask = graph.node("Pad", mask_BS, graph.vector(0, 1, 0, 0), one)  # the length token in front

    layers: list[Layer] = list(model.encoder)  # type: ignore[arg-type]
    normed = graph.layer_norm(x, layers[0].attention_norm)
    for index, layer in enumerate(layers):
        mixed = graph.self_attention(normed, *_joined(layer.attention), mask, heads)
        x = graph.node("Add", x, _project(graph, mixed, layer.attention))
        after = layers[index + 1].attention_norm if index + 1 < len(layers) else model.encoder_norm
        x = _feed_forward(graph, x, layer)
        normed = graph.layer_norm(x, after)
    states = graph.node("Slice", normed, graph.vector(1), graph.vector(2**31), graph.vector(1))
    return states, graph.node("Gather", normed, graph.scalar(0), axis=1)


def decode(graph: Graph, model: MaskedTranslator, states_BSD: str, mask_BS: str, target: Target) -> str:
    """Hidden states [R, T, D] that the output layer reads."""
    width, heads = model.config.width, model.config.heads
    words = model.embedding.weight * model.scale
    positions = model.target_positions.weight * model.scale
    if target.tokens_RT is None:
        start = first_rows(graph, words[model.vocabulary.mask_id] + positions, target.length)
        x = graph.node("Expand", start, graph.node("Concat", target.shape_RT, graph.vector(width), axis=0))
    else:
        looked_up = graph.node("Gather", graph.constant(words), target.tokens_RT)
        x = graph.node("Add", looked_up, first_rows(graph, positions, target.length))
    mask_RT = graph.node("Cast", target.mask_RT, to=TensorProto.INT32)
    # Cross-attention mixes no two target positions: the K candidates of a sentence stand in one row, and the keys
    # and values of a source are projected once.
    one_row_a_source = graph.node("Concat", target.sentences, graph.vector(-1, width), axis=0)
    one_row_a_candidate = graph.node("Concat", target.shape_RT, graph.vector(width), axis=0)

    for layer in model.decoder:
        assert isinstance(layer, Layer) and layer.cross is not None and layer.cross_norm is not None
        normed = graph.layer_norm(x, layer.attention_norm)
        mixed = graph.self_attention(normed, *_joined(layer.attention), mask_RT, heads)
        x = graph.node("Add", x, _project(graph, mixed, layer.attention))
        cross = layer.cross
        query = graph.linear(graph.layer_norm(x, layer.cross_norm), cross.query.weight, cross.query.bias)
        query = graph.node("Reshape", query, one_row_a_source)
        weights, biases = cross.key_value.weight.chunk(2), cross.key_value.bias.chunk(2)
        key, value = (graph.linear(states_BSD, *part) for part in zip(weights, biases, strict=True))
        mixed = graph.attention(query, key, value, mask_BS, heads)
        mixed = graph.node("Reshape", mixed, one_row_a_candidate)
        x = _feed_forward(graph, graph.node("Add", x, _project(graph, mixed, cross)), layer)
    return graph.layer_norm(x, model.decoder_norm)


def first_rows(graph: Graph, table: Tensor, count: str) -> str:
    """The first `count` rows of a table of positions."""
    return graph.node("Slice", graph.constant(table), graph.vector(0), count, graph.vector(0))


def _joined(attention: Attention) -> tuple[Tensor, Tensor]:
    """Query, key and value as one layer."""
    query, key_value = attention.query, attention.key_value
    return torch.cat([query.weight, key_value.weight]), torch.cat([query.bias, key_value.bias])


def _project(graph: Graph, mixed: str, attention: Attention) -> str:
    return graph.linear(mixed, attention.output.weight, attention.output.bias)


def _feed_forward(graph: Graph, x: str, layer: Layer) -> str:
    wide = graph.linear(graph.layer_norm(x, layer.wide_norm), layer.wide.weight, layer.wide.bias)
    narrow = graph.linear(graph.node("Relu", wide), layer.narrow.weight, layer.narrow.bias)
    return graph.node("Add", x, narrow)
