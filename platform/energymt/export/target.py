"""The target side of an ONNX graph: which lengths, which positions are real, which token stands there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from onnx import TensorProto

from energymt.export.graph import Graph
from energymt.models.masked import MaskedTranslator
from energymt.models.recurrent import TaggerTranslator
from energymt.models.translator import LengthHead

BLOCK = 128  # tokens of the vocabulary whose maximum is taken at once


@dataclass(frozen=True)
class Target:
    """Names of values in a graph: R = B · K rows of T positions."""

    sentences: str  # [1], B
    shape_RT: str  # [2]
    length: str  # [1], T
    mask_RT: str  # bool
    lengths_R1: str  # real positions of each row
    tokens_RT: str | None  # None where no token is known


def of_tokens(graph: Graph, tokens_RT: str, mask_RT: str) -> Target:
    """One candidate a sentence, some of whose tokens may be known."""
    shape = graph.node("Shape", tokens_RT)
    rows, length = (graph.node("Slice", shape, graph.vector(i), graph.vector(i + 1)) for i in range(2))
    counted = graph.node("Cast", mask_RT, to=TensorProto.INT64)
    lengths = graph.node("ReduceSum", counted, graph.vector(1), keepdims=1)
    return Target(rows, shape, length, mask_RT, lengths, tokens_RT)


def of_lengths(graph: Graph, lengths_BK: str) -> Target:
    """K candidates a sentence of which only the lengths are known."""
    sentences = graph.node("Slice", graph.node("Shape", lengths_BK), graph.vector(0), graph.vector(1))
    lengths_R1 = graph.node("Reshape", lengths_BK, graph.vector(-1, 1))
    longest = graph.node("ReduceMax", lengths_BK, keepdims=0)
    positions = graph.node("Range", graph.scalar(0), longest, graph.scalar(1))
    mask = graph.node("Less", positions, lengths_R1)
    length = graph.node("Reshape", longest, graph.vector(1))
    return Target(sentences, graph.node("Shape", mask), length, mask, lengths_R1, None)


def length_log_probabilities(graph: Graph, head: LengthHead, vector_BD: str) -> str:
    """[B, longest + 1]; kept in float32, for a length that tips over changes the whole translation."""
    weight_LD = head.lengths.weight
    logits = graph.node("MatMul", vector_BD, graph.constant(weight_LD.t()))
    no_zero = torch.zeros(len(weight_LD))
    no_zero[0] = -torch.inf
    return graph.node("LogSoftmax", graph.node("Add", logits, graph.constant(no_zero)), axis=-1)


def choose_lengths(graph: Graph, logp_BL: str, lengths_BK: str) -> tuple[str, str]:
    """The K most probable lengths where `lengths_BK` is 0, else those; and their log-probabilities."""
    shape = graph.node("Shape", lengths_BK)
    count = graph.node("Slice", shape, graph.vector(1), graph.vector(2))
    probable = graph.nodes("TopK", logp_BL, count, outputs=2, axis=-1)[1]
    given = graph.node("Greater", lengths_BK, graph.scalar(0))
    # At least 1, also where the weights are not numbers: the scores tell.
    chosen = graph.node("Max", graph.node("Where", given, lengths_BK, probable), graph.scalar(1))
    return chosen, graph.node("GatherElements", logp_BL, chosen, axis=1)


def choose_tokens(
    graph: Graph, model: MaskedTranslator | TaggerTranslator, hidden_RTD: str, target: Target
) -> tuple[str, str, str]:
    """The output layer: logits [N, W], the best token of each position and its log-probability, both [R, T].

    N = R · T; W is V rounded up to whole blocks. Tokens that cannot stand have the bias -inf.
    """
    size, width = model.vocabulary.size, model.embedding.weight.shape[1]
    blocks = -(-size // BLOCK)
    weight_WD, bias_1W = torch.zeros(blocks * BLOCK, width), torch.full((1, blocks * BLOCK), -torch.inf)
    weight_WD[:size], bias_1W[0, :size] = model.embedding.weight[:size], model.bias
    hidden_ND = graph.node("Reshape", hidden_RTD, graph.vector(-1, width))
    logits_NW = graph.linear(hidden_ND, weight_WD, model.forbid(bias_1W)[0])

    # The argmax of a long row is slow in ONNX Runtime and its maximum is fast: find the block, then the token in it.
    blocks_NKW = graph.node("Reshape", logits_NW, graph.vector(-1, blocks, BLOCK))
    block_N = graph.node(
        "ArgMax", graph.node("ReduceMax", blocks_NKW, graph.vector(-1), keepdims=0), axis=-1, keepdims=0
    )
    count = graph.node("ReduceProd", target.shape_RT, keepdims=0)
    row_N = graph.node("Range", graph.scalar(0), count, graph.scalar(1))
    block_row_N = graph.node("Add", graph.node("Mul", row_N, graph.scalar(blocks)), block_N)
    candidates = graph.node("Gather", graph.node("Reshape", logits_NW, graph.vector(-1, BLOCK)), block_row_N)
    first_N = graph.node("Mul", block_N, graph.scalar(BLOCK))
    token_N = graph.node("Add", first_N, graph.node("ArgMax", candidates, axis=-1, keepdims=0))

    place_N = graph.node("Add", graph.node("Mul", row_N, graph.scalar(blocks * BLOCK)), token_N)
    probabilities = graph.node("Reshape", graph.node("Softmax", logits_NW, axis=-1), graph.vector(-1))
    logp_N = graph.node("Log", graph.node("Gather", probabilities, place_N))
    return logits_NW, graph.node("Reshape", token_N, target.shape_RT), graph.node("Reshape", logp_N, target.shape_RT)
