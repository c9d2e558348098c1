"""A writer of ONNX graphs: nodes in their order, and constants in one file that all graphs of a model share.

A graph is written from the weights, not traced, so that it holds few and fast nodes whatever version of torch made the
model. Matrix products are float32, or int8: weights are quantised once, symmetrically, with a scale for each output;
their input is quantised by ONNX Runtime at each run, to 8 bits with one scale. Weights take 7 of the 8 bits: without
8-bit dot products (VNNI) an x86 processor adds products in pairs of 16 bits, and two of 8 by 8 bits do not fit.

Nodes of the domain `com.microsoft` exist in ONNX Runtime alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

WEIGHTS_FILE = "weights.bin"
MICROSOFT = "com.microsoft"
OPERATORS = 18  # version of the standard operators: LayerNormalization came with 17, ReduceMax over given axes with 18
FORMAT = 9  # version of the file format; ONNX Runtime reads it since 1.16
INLINE = 1024  # bytes; smaller constants stand in the graph itself
LARGEST = 63  # of a weight: 2 · 255 · 63 < 2^15
PAGE = 4096  # so that ONNX Runtime can map the file instead of reading it

Array = npt.NDArray[Any]


class Weights:
    """The constants of several graphs: each is stored once, whichever graphs use it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / WEIGHTS_FILE
        self.file.touch()
        self.known: dict[str, onnx.TensorProto] = {}

    def place(self, array: Array) -> onnx.TensorProto:
        """The array as an initialiser, named by its content."""
        array = np.asarray(array, order="C")
        content = array.tobytes()
        name = "w" + hashlib.sha256(f"{array.dtype}{array.shape}".encode() + content).hexdigest()[:16]
        if name not in self.known:
            small = len(content) <= INLINE
            self.known[name] = numpy_helper.from_array(array, name) if small else self._outside(array, content, name)
        return self.known[name]

    def _outside(self, array: Array, content: bytes, name: str) -> onnx.TensorProto:
        start = -(-self.file.stat().st_size // PAGE) * PAGE
        with self.file.open("r+b") as file:
            file.seek(start)
            file.write(content)
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", WEIGHTS_FILE), ("offset", start), ("length", len(content))):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class Graph:
    """One graph. Every method adds nodes and returns the name of their output."""

    def __init__(self, weights: Weights, *, int8: bool) -> None:
        self.weights = weights
        self.int8 = int8
        self.constants: dict[str, onnx.TensorProto] = {}
        self.parts: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: int, shape: list[str]) -> str:
        """An input of the graph; dimensions have names."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, value: str, kind: int, shape: list[str]) -> None:
        """Give a value to the outside under another name."""
        self.parts.append(helper.make_node("Identity", [value], [name], name=name))
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def constant(self, value: Tensor | Array) -> str:
        """A tensor of weights or numbers."""
        tensor = self.weights.place(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
        self.constants[tensor.name] = tensor
        return str(tensor.name)

    def scalar(self, value: int) -> str:
        """An int64 without dimensions."""
        return self.constant(np.array(value, dtype=np.int64))

    def vector(self, *values: int) -> str:
        """A one-dimensional int64 tensor: a shape, axes, sizes."""
        return self.constant(np.array(values, dtype=np.int64))

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output."""
        return self.nodes(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def nodes(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """A node with several outputs."""
        name = f"{kind}_{len(self.parts)}"
        names = [f"{name}.{index}" for index in range(outputs)]
        self.parts.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes))
        return names

    def linear(self, x: str, weight_OI: Tensor, bias_O: Tensor) -> str:
        """x · weightᵀ + bias."""
        if not self.int8:
            return self.node("Add", self.node("MatMul", x, self.constant(weight_OI.t())), self.constant(bias_O))
        values_IO, scale_O = quantised(weight_OI)
        zero_O = self.constant(np.zeros(len(scale_O), dtype=np.int8))
        parts = (self.constant(values_IO), self.constant(scale_O), zero_O, self.constant(bias_O))
        return self.node("DynamicQuantizeMatMul", x, *parts, domain=MICROSOFT)

    def layer_norm(self, x: str, norm: nn.LayerNorm) -> str:
        """Layer normalisation over the last dimension."""
        # Kept apart from the addition before it: ONNX Runtime's fused node is three times slower than the two.
        return self.node(
            "LayerNormalization", x, self.constant(norm.weight), self.constant(norm.bias), epsilon=norm.eps, axis=-1
        )

    def attention(self, query: str, key: str, value: str, mask_BS: str, heads: int) -> str:
        """Multi-head attention of projected queries, keys and values; `mask_BS` is int32, 1 where it may look."""
        return self.node("MultiHeadAttention", query, key, value, "", mask_BS, domain=MICROSOFT, num_heads=heads)

    def self_attention(self, x: str, weight_OI: Tensor, bias_O: Tensor, mask_BT: str, heads: int) -> str:
        """Attention of x to itself; the weight holds the rows of query, key and value."""
        if not self.int8:
            width = weight_OI.shape[1]
            joined, sizes = self.linear(x, weight_OI, bias_O), self.vector(width, width, width)
            query, key, value = self.nodes("Split", joined, sizes, outputs=3, axis=-1)
            return self.attention(query, key, value, mask_BT, heads)
        values_IO, scale_O = quantised(weight_OI)
        x_values, x_scale, x_zero = self.nodes("DynamicQuantizeLinear", x, outputs=3)
        zero_O = self.constant(np.zeros(len(scale_O), dtype=np.int8))
        weight = self.constant(values_IO), self.constant(bias_O), x_scale, self.constant(scale_O)
        return self.node("QAttention", x_values, *weight, mask_BT, x_zero, zero_O, domain=MICROSOFT, num_heads=heads)

    def save(self, file: Path) -> None:
        """Write the graph; its weights lie beside it already."""
        graph = helper.make_graph(self.parts, file.stem, self.inputs, self.outputs, list(self.constants.values()))
        versions = [helper.make_opsetid("", OPERATORS), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=FORMAT, producer_name="energymt")
        file.write_bytes(model.SerializeToString(deterministic=True))


def quantised(weight_OI: Tensor) -> tuple[Array, Array]:
    """int8 values [I, O], at most LARGEST, and a scale for each output: weight[o, i] ≈ values[i, o] · scale[o]."""
    weight_IO = weight_OI.detach().cpu().float().numpy().T
    largest_O = np.abs(weight_IO).max(axis=0)
    scale_O = np.where(largest_O > 0, largest_O / LARGEST, 1).astype(np.float32)
    return np.rint(weight_IO / scale_O).astype(np.int8), scale_O
