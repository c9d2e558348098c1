import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from energymt.export.graph import LARGEST, Graph, Weights, quantised


@pytest.fixture
def run(tmp_path):
    """`run(build, x, int8)`: the value of a graph with the input x."""

    def make(build, x, int8=False):
        graph = Graph(Weights(tmp_path), int8=int8)
        graph.output("y", build(graph, graph.input("x", TensorProto.FLOAT, ["A", "B", "C"])), TensorProto.FLOAT, [])
        graph.outputs[0].type.tensor_type.ClearField("shape")
        graph.save(tmp_path / "graph.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "graph.onnx", providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])

    return make


def test_quantised_weights_are_within_half_a_step():
    weight = torch.randn(30, 20) * torch.logspace(-3, 3, 30)[:, None]
    weight[7] = 0
    values, scale = quantised(weight)
    assert values.dtype == np.int8 and values.shape == (20, 30)
    step = weight.abs().amax(1) / LARGEST
    assert torch.allclose(torch.from_numpy(scale)[step > 0], step[step > 0])
    gap = (torch.from_numpy(values * scale).t() - weight).abs()
    assert (gap <= 0.5001 * step[:, None] + 1e-12).all()
    assert np.abs(values).max() == LARGEST


@pytest.mark.parametrize(("int8", "tolerance"), [(False, 1e-5), (True, 0.03)])
def test_linear(run, int8, tolerance):
    x, layer = torch.randn(3, 5, 64), torch.nn.Linear(64, 32)
    found = run(lambda graph, x: graph.linear(x, layer.weight, layer.bias), x, int8)
    assert (found - layer(x)).abs().max() < tolerance


@pytest.mark.parametrize(("int8", "tolerance"), [(False, 1e-5), (True, 0.05)])
def test_self_attention(run, int8, tolerance):
    x, layer = torch.randn(2, 6, 32), torch.nn.Linear(32, 96)
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    query, key, value = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in layer(x).chunk(3, -1))
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])

    def build(graph, x):
        return graph.self_attention(x, layer.weight, layer.bias, graph.constant(mask.int()), heads=4)

    assert (run(build, x, int8) - wanted.transpose(1, 2).flatten(2)).abs().max() < tolerance


def test_a_constant_is_stored_once(tmp_path):
    weights = Weights(tmp_path)
    first, second = Graph(weights, int8=False), Graph(weights, int8=False)
    table = torch.randn(100, 100)
    names = {graph.constant(values) for graph in (first, second) for values in (table, table.clone().numpy())}
    assert len(names) == 1
    assert (tmp_path / "weights.bin").stat().st_size == 40_000
    assert first.constant(table.t()) not in names
    assert (tmp_path / "weights.bin").stat().st_size == 40_960 + 40_000
    first.vector(1, 2, 3)
    assert (tmp_path / "weights.bin").stat().st_size == 40_960 + 40_000
