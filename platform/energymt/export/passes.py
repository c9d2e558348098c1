"""The three graphs of a non-autoregressive translator.

`one_pass` goes from source to tokens in one call: encoder, K most probable lengths, decoder, best token of each
position. `encoder` and `decoder` are the two halves that refinement calls.
"""

from __future__ import annotations

from pathlib import Path

import torch
from onnx import TensorProto

from energymt.export import masked, tagger
from energymt.export.graph import Graph, Weights
from energymt.export.target import (
    Target,
    choose_lengths,
    choose_tokens,
    length_log_probabilities,
    of_lengths,
    of_tokens,
)
from energymt.models.masked import MaskedTranslator
from energymt.models.recurrent import TaggerTranslator

Exportable = MaskedTranslator | TaggerTranslator
INTEGERS, BOOLEANS, FLOATS = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT


@torch.no_grad()
def write_graphs(model: Exportable, folder: Path, *, int8: bool) -> None:
    """Write `one_pass.onnx`, `encoder.onnx`, `decoder.onnx` and the weights that they share."""
    weights = Weights(folder)
    for name, build in (("one_pass", _one_pass), ("encoder", _encoder), ("decoder", _decoder)):
        graph = Graph(weights, int8=int8)
        build(graph, model)
        graph.save(folder / f"{name}.onnx")


def _one_pass(graph: Graph, model: Exportable) -> None:
    """`lengths_wanted` is 0 where the length is to be predicted; its width is the length beam."""
    mask, states, length_logp = _encode(graph, model)
    wanted = graph.input("lengths_wanted", INTEGERS, ["B", "K"])
    lengths, logp = choose_lengths(graph, length_logp, wanted)
    target = of_lengths(graph, lengths)
    _, tokens, token_logp = choose_tokens(graph, model, _decode(graph, model, states, mask, target), target)
    graph.output("tokens", tokens, INTEGERS, ["R", "T"])
    graph.output("logp", token_logp, FLOATS, ["R", "T"])
    graph.output("lengths", lengths, INTEGERS, ["B", "K"])
    graph.output("length_logp", logp, FLOATS, ["B", "K"])


def _encoder(graph: Graph, model: Exportable) -> None:
    _, states, length_logp = _encode(graph, model)
    graph.output("states", states, FLOATS, ["B", "S", "D"])
    graph.output("length_logp", length_logp, FLOATS, ["B", "L"])


def _decoder(graph: Graph, model: Exportable) -> None:
    """One candidate a row; logits have N = R · T rows."""
    states = graph.input("states", FLOATS, ["R", "S", "D"])
    mask = graph.node("Cast", graph.input("source_mask", BOOLEANS, ["R", "S"]), to=TensorProto.INT32)
    tokens = graph.input("tokens", INTEGERS, ["R", "T"])
    target = of_tokens(graph, tokens, graph.input("mask", BOOLEANS, ["R", "T"]))
    logits, best, logp = choose_tokens(graph, model, _decode(graph, model, states, mask, target), target)
    graph.output("logits", logits, FLOATS, ["N", "W"])
    graph.output("best", best, INTEGERS, ["R", "T"])
    graph.output("logp", logp, FLOATS, ["R", "T"])


def _encode(graph: Graph, model: Exportable) -> tuple[str, str, str]:
    """The source's mask, the encoder's states, and the log-probabilities of lengths."""
    source = graph.input("source", INTEGERS, ["B", "S"])
    mask = graph.node("Cast", graph.input("source_mask", BOOLEANS, ["B", "S"]), to=TensorProto.INT32)
    if isinstance(model, MaskedTranslator):
        states, vector = masked.encode(graph, model, source, mask)
    else:
        states, vector = tagger.encode(graph, model, source, mask)
    return mask, states, length_log_probabilities(graph, model.length, vector)


def _decode(graph: Graph, model: Exportable, states: str, mask: str, target: Target) -> str:
    if isinstance(model, MaskedTranslator):
        return masked.decode(graph, model, states, mask, target)
    return tagger.decode(graph, model, states, mask, target)
