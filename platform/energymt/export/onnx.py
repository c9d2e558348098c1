"""Non-autoregressive translators in ONNX Runtime, float32 or int8.

float32 gives the tokens that PyTorch gives. int8 is fastest on a processor with 8-bit dot products (x86 with VNNI,
since 2019, or Arm), and as exact on others.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor

from energymt.data.vocabulary import load_vocabulary
from energymt.decoding import mask_predict
from energymt.decoding.rerank import Rank
from energymt.errors import ConfigurationError, DivergenceError
from energymt.export.folder import read_description, write_description
from energymt.models.translator import Memory, NonautoregressiveModel
from energymt.records import Hypothesis, Input, Source, text_of

Array = npt.NDArray[Any]

TOKENS_AT_ONCE = 384
"""Target tokens that a thread takes in one pass, more or less: with more, their logits no longer fit its cache."""


def export_onnx(model: object, folder: Path, *, int8: bool) -> None:
    """Write graphs, weights, vocabulary and a description into an empty folder.

    Raises:
        ConfigurationError: if the model is autoregressive.
    """
    from energymt.export.passes import Exportable, write_graphs

    if not isinstance(model, Exportable):
        raise ConfigurationError(
            "ONNX takes non-autoregressive translators (masked, tagger), and this model is autoregressive: "
            "export it to ctranslate2."
        )
    write_graphs(model, folder, int8=int8)
    model.vocabulary.save(folder)
    write_description(folder, "onnx", int8=int8, architecture=model.architecture, longest=model.longest)


class OnnxTranslator(NonautoregressiveModel):
    """A non-autoregressive translator whose networks run in ONNX Runtime, on the CPU.

    It takes the place of the model in `mask_predict.decode`; its own `search` gives the same and is faster for a
    single pass, which it makes in one call of the runtime.

    Args:
        folder: what `export_onnx` wrote.
        threads: of one call.
    """

    architecture = "onnx"
    autoregressive = False

    def __init__(self, folder: Path, threads: int = 1) -> None:
        super().__init__()
        self.folder = folder
        self.threads = threads
        self.vocabulary = load_vocabulary(folder)
        self._description = read_description(folder)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._only_these = onnxruntime.RunOptions()
        self._only_these.only_execute_path_to_fetches = True

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def longest(self) -> int:
        return int(self._description["longest"])

    def encode(self, source: Input) -> Memory:
        source = text_of(source)
        inputs = {"source": source.ids_BS.numpy(), "source_mask": source.mask_BS.numpy()}
        states, length_logp = self._run("encoder", ["states", "length_logp"], inputs)
        return Memory(torch.from_numpy(states), source.mask_BS, torch.from_numpy(length_logp))

    def predict(self, memory: Memory, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        (logits_NW,) = self._run("decoder", ["logits"], _decoder_inputs(memory, tokens_BT, mask_BT))
        return torch.from_numpy(logits_NW)[:, : self.vocabulary.size].unflatten(0, tuple(tokens_BT.shape))

    def choose(self, memory: Memory, tokens_BT: Tensor, mask_BT: Tensor, wanted_BT: Tensor) -> tuple[Tensor, Tensor]:
        best_BT, logp_BT = self._run("decoder", ["best", "logp"], _decoder_inputs(memory, tokens_BT, mask_BT))
        return torch.from_numpy(best_BT)[wanted_BT], torch.from_numpy(logp_BT)[wanted_BT]

    def search(
        self,
        source: Source,
        *,
        length_beam: int = 5,
        iterations: int = 10,
        lengths_B: Tensor | Sequence[int] | None = None,
        n_best: int = 1,
        rank: Rank | None = None,
    ) -> list[list[Hypothesis]]:
        """The same as `mask_predict.decode` of this model."""
        impossible = not 1 <= n_best <= length_beam or (lengths_B is not None and len(lengths_B) != len(source))
        if iterations != 1 or rank is not None or impossible:
            options: dict[str, Any] = {"lengths_B": lengths_B, "n_best": n_best, "rank": rank}
            return mask_predict.decode(self, source, length_beam=length_beam, iterations=iterations, **options)
        count = min(length_beam, self.longest)
        wanted_BK = np.zeros((len(source), count), dtype=np.int64)
        if lengths_B is not None:
            first_B = np.asarray(lengths_B) - (count - 1) // 2
            wanted_BK += np.clip(first_B, 1, self.longest - count + 1)[:, None] + np.arange(count)
        rows = max(1, TOKENS_AT_ONCE * self.threads // (count * source.ids_BS.shape[1]))
        return [
            hypotheses
            for start in range(0, len(source), rows)
            for hypotheses in self._one_pass(
                Source(source.ids_BS[start : start + rows], source.mask_BS[start : start + rows]),
                wanted_BK[start : start + rows],
                n_best,
            )
        ]

    def description(self) -> dict[str, Any]:
        return dict(self._description)

    def save(self, folder: Path) -> None:
        """Copy the export."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)

    def _one_pass(self, source: Source, wanted_BK: Array, n_best: int) -> list[list[Hypothesis]]:
        """The best `n_best` of the K lengths, by mean log-probability."""
        inputs = {"source": source.ids_BS.numpy(), "source_mask": source.mask_BS.numpy(), "lengths_wanted": wanted_BK}
        outputs = ["tokens", "logp", "lengths", "length_logp"]
        tokens_RT, logp_RT, lengths_BK, length_logp_BK = self._run("one_pass", outputs, inputs)
        real_RT = np.arange(tokens_RT.shape[1]) < lengths_BK.reshape(-1, 1)
        total_BK = np.where(real_RT, logp_RT, 0).sum(1, dtype=np.float32).reshape(lengths_BK.shape)
        score_BK = total_BK / lengths_BK
        if not np.isfinite(score_BK).all():
            raise DivergenceError("The translator's scores are not finite: its weights hold NaN or infinity.")
        order_BK = np.argsort(-score_BK, axis=1, kind="stable")[:, :n_best]
        tokens_BKT = tokens_RT.reshape(*lengths_BK.shape, -1)
        return [
            [
                Hypothesis(
                    tuple(tokens_BKT[b, k, : lengths_BK[b, k]].tolist()),
                    float(score_BK[b, k]),
                    float(total_BK[b, k]),
                    {"length_logp": float(length_logp_BK[b, k])},
                )
                for k in best_K
            ]
            for b, best_K in enumerate(order_BK)
        ]

    def _run(self, graph: str, outputs: list[str], inputs: dict[str, Array]) -> list[Array]:
        if graph not in self._sessions:
            self._sessions[graph] = open_session(self.folder / f"{graph}.onnx", self.threads)
        found: list[Array] = self._sessions[graph].run(outputs, inputs, self._only_these)
        return found


def _decoder_inputs(memory: Memory, tokens_BT: Tensor, mask_BT: Tensor) -> dict[str, Array]:
    return {
        "states": memory.states_BSD.numpy(),
        "source_mask": memory.mask_BS.numpy(),
        "tokens": tokens_BT.numpy(),
        "mask": mask_BT.numpy(),
    }


def open_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """One graph, ready to run on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The graphs are written as they should run; what higher levels fuse (addition, layer normalisation) is slower.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
