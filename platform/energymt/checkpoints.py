"""What a run needs to go on where it stopped, and the best models so far. No pickles: safetensors and JSON."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import safetensors.torch
import torch
from torch import Tensor, nn

from energymt.errors import StorageError
from energymt.folders import atomic_folder, verify_manifest, write_manifest

WEIGHTS, OPTIMIZER, PROGRESS = "weights.safetensors", "optimizer.safetensors", "progress.json"


@dataclass
class Progress:
    """How far a run is: everything that the loop remembers between two steps."""

    step: int = 0
    best: float | None = None
    best_step: int = -1
    evaluations_without_gain: int = 0
    seconds: float = 0.0
    kept: dict[str, float] = field(default_factory=dict)  # step of a kept model -> its dev value
    stopped_early: bool = False
    budget: int = 0  # the steps that the run was given when it was last started


@runtime_checkable
class Stateful(Protocol):
    """A method that has to remember more than the weights of its model."""

    def save_state(self, folder: Path) -> None:
        """Write files of its own into a checkpoint."""
        ...

    def load_state(self, folder: Path) -> None:
        """Read them back."""
        ...


class Checkpoints:
    """The checkpoints of a run: `last-<step>` to resume from (the two newest), `kept-<step>` the k best models.

    Args:
        folder: where.
        keep_best: k.
        method: what else has a state, if anything.
    """

    def __init__(self, folder: Path, keep_best: int = 1, method: object = None) -> None:
        self.folder = folder
        self.keep_best = keep_best
        self.method = method if isinstance(method, Stateful) else None

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> Path:
        """Write a resumable checkpoint; older ones but the newest but one go, and the models that neither names."""
        path = self.folder / f"last-{progress.step:08d}"
        with atomic_folder(path) as part:
            safetensors.torch.save_file(_trainable(model), part / WEIGHTS)
            safetensors.torch.save_file(_optimizer_tensors(optimizer), part / OPTIMIZER)
            (part / PROGRESS).write_text(json.dumps(asdict(progress), indent=1), encoding="utf-8")
            if self.method is not None:
                self.method.save_state(part)
            write_manifest(part, {"step": progress.step})
        for old in self._numbered("last")[:-2]:
            shutil.rmtree(old)
        # Only now: a run that is killed between two checkpoints goes on from the former and needs its best models.
        named = set(progress.kept).union(*(_kept_by(last) for last in self._numbered("last")))
        for old in self._numbered("kept"):
            if str(_number(old)) not in named:
                shutil.rmtree(old)
        return path

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, str]:
        """Load the newest checkpoint that is whole; the second value says what was passed over, and why."""
        passed_over: list[str] = []
        for path in reversed(self._numbered("last")):
            try:
                verify_manifest(path)
            except StorageError as error:
                passed_over.append(str(error))
                continue
            model.load_state_dict(safetensors.torch.load_file(path / WEIGHTS), strict=False)
            _load_optimizer(optimizer, safetensors.torch.load_file(path / OPTIMIZER))
            if self.method is not None:
                self.method.load_state(path)
            return Progress(**json.loads((path / PROGRESS).read_text(encoding="utf-8"))), " ".join(passed_over)
        return Progress(), " ".join(passed_over)

    def leave_out_damaged(self, progress: Progress, higher_is_better: bool) -> str:
        """Take kept models that are not whole out of `progress`; the best of the others is the best. Says which."""
        left_out: list[str] = []
        for step in list(progress.kept):
            try:
                verify_manifest(self._kept(step))
            except StorageError as error:
                left_out.append(f"The kept model of step {step} is left out: {error}")
                del progress.kept[step]
        if left_out:
            best = next(iter(_ranked(progress.kept, higher_is_better)), None)
            progress.best, progress.best_step = (None, -1) if best is None else (best[1], int(best[0]))
        return " ".join(left_out)

    def keep(self, model: nn.Module, progress: Progress, value: float, higher_is_better: bool) -> None:
        """Keep the model of this step if it is among the k best; `progress.kept` is brought up to date."""
        ranked = _ranked(progress.kept, higher_is_better)
        if len(ranked) >= self.keep_best:
            worst = ranked[-1][1]
            if not (value > worst if higher_is_better else value < worst):
                return
        with atomic_folder(self._kept(progress.step)) as part:
            safetensors.torch.save_file(_trainable(model), part / WEIGHTS)
            write_manifest(part, {"step": progress.step, "dev": value})
        progress.kept[str(progress.step)] = value
        for step, _ in [*ranked, (str(progress.step), value)] if len(ranked) < self.keep_best else ranked[-1:]:
            if len(progress.kept) > self.keep_best:
                del progress.kept[step]

    def load_kept(self, model: nn.Module, steps: list[int]) -> None:
        """Load the mean of the kept models of these steps into `model` (one step: that model)."""
        total: dict[str, Tensor] = {}
        for step in steps:
            path = self._kept(step)
            verify_manifest(path)
            for name, tensor in safetensors.torch.load_file(path / WEIGHTS).items():
                total[name] = total[name] + tensor.double() if name in total else tensor.double()
        own = model.state_dict()
        mean = {name: (tensor / len(steps)).to(own[name].dtype) for name, tensor in total.items()}
        model.load_state_dict(mean, strict=False)

    def clear(self) -> None:
        """Remove every checkpoint of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kept(self, step: int | str) -> Path:
        return self.folder / f"kept-{int(step):08d}"

    def _numbered(self, kind: str) -> list[Path]:
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if re.fullmatch(rf"{kind}-\d+", path.name)]
        return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def _ranked(kept: dict[str, float], higher_is_better: bool) -> list[tuple[str, float]]:
    """Steps and dev values, the best first; of equals, the earliest."""
    return sorted(kept.items(), key=lambda item: item[1], reverse=higher_is_better)


def _kept_by(path: Path) -> set[str]:
    """The steps of the models that a checkpoint names; none if it cannot be read."""
    try:
        return set(json.loads((path / PROGRESS).read_text(encoding="utf-8"))["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _trainable(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tensor once (tied weights share memory, and safetensors refuses that)."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel() > 0:
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, entry in state.items()
        for key, value in entry.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
