"""Checkpoints come back bit by bit, the broken are passed over, and no model is lost that a resumed run still needs."""

import json
from pathlib import Path

import pytest
import torch

from energymt.checkpoints import Checkpoints, Progress
from energymt.configuration import OptimizerConfig
from energymt.errors import StorageError
from energymt.optimisation import make_optimizer
from tests import tiny

MAKERS = {"recurrent": tiny.recurrent, "transformer": tiny.scratch, "masked": tiny.masked, "tagger": tiny.tagger}


def trained(model, steps: int = 2):
    """An optimizer with a state, one weight left without a gradient."""
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=0.1))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for _ in range(steps):
        for weight in weights[1:]:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return optimizer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def step(number: int, **values) -> Progress:
    return Progress(step=number, **values)


@pytest.mark.parametrize("architecture", MAKERS)
def test_weights_and_optimizer_come_back_bit_by_bit(architecture: str, tmp_path: Path) -> None:
    model, other = MAKERS[architecture](), MAKERS[architecture]()
    optimizer = trained(model)
    progress = Progress(
        step=7, best=1.5, best_step=6, evaluations_without_gain=1, seconds=2.5, kept={"6": 1.5}, stopped_early=True
    )
    Checkpoints(tmp_path).save(model, optimizer, progress)
    again = make_optimizer(other, OptimizerConfig(learning_rate=0.1))
    found, passed_over = Checkpoints(tmp_path).resume(other, again)
    assert found == progress
    assert passed_over == ""
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    left, right = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert left.keys() == right.keys()
    for index, state in left.items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(right[index][key]), torch.as_tensor(value))
            assert right[index][key].dtype == value.dtype
    # And the next step is the same step.
    for weights, sgd in ((model, optimizer), (other, again)):
        torch.manual_seed(1)
        for weight in (w for w in weights.parameters() if w.requires_grad):
            weight.grad = torch.randn_like(weight)
        sgd.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


class Memory:
    """A method that remembers a number."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def save_state(self, folder: Path) -> None:
        (folder / "memory").mkdir()
        (folder / "memory" / "value.json").write_text(json.dumps(self.value))

    def load_state(self, folder: Path) -> None:
        self.value = json.loads((folder / "memory" / "value.json").read_text())


def test_what_a_method_remembers_comes_back(tmp_path: Path) -> None:
    model, method = tiny.recurrent(), Memory(1.5)
    checkpoints = Checkpoints(tmp_path, method=method)
    checkpoints.save(model, trained(model, 0), step(1))
    method.value = 2.5
    checkpoints.save(model, trained(model, 0), step(2))
    found = Memory()
    assert Checkpoints(tmp_path, method=found).resume(model, trained(model, 0))[0].step == 2
    assert found.value == 2.5


def test_what_a_method_remembers_is_checked_with_the_rest(tmp_path: Path) -> None:
    """One state goes with the weights of its step, or none does."""
    model = tiny.recurrent()
    for number, value in ((1, 1.5), (2, 2.5)):
        Checkpoints(tmp_path, method=Memory(value)).save(model, trained(model, 0), step(number))
    (tmp_path / "last-00000002" / "memory" / "value.json").write_text("9.0")
    found = Memory()
    progress, passed_over = Checkpoints(tmp_path, method=found).resume(model, trained(model, 0))
    assert (progress.step, found.value) == (1, 1.5)
    assert "value.json" in passed_over


def test_a_method_that_fails_to_save_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    model, method = tiny.recurrent(), Memory(1.5)
    checkpoints = Checkpoints(tmp_path, method=method)
    checkpoints.save(model, trained(model, 0), step(1))
    method.value = object()  # no JSON
    with pytest.raises(TypeError):
        checkpoints.save(model, trained(model, 0), step(2))
    found = Memory()
    assert Checkpoints(tmp_path, method=found).resume(model, trained(model, 0))[0].step == 1
    assert found.value == 1.5


def test_a_method_without_memory_is_not_asked(tmp_path: Path) -> None:
    model, found = tiny.recurrent(), Memory(4.0)
    path = Checkpoints(tmp_path, method=object()).save(model, trained(model, 0), step(1))
    assert sorted(file.name for file in path.iterdir()) == [
        "energymt.json",
        "optimizer.safetensors",
        "progress.json",
        "weights.safetensors",
    ]
    assert Checkpoints(tmp_path).resume(model, trained(model, 0))[0].step == 1
    assert Checkpoints(tmp_path / "none", method=found).resume(model, trained(model, 0)) == (Progress(), "")
    assert found.value == 4.0


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, other = tiny.scratch(), tiny.scratch()
    tiny.shake(model, seed=3)
    Checkpoints(tmp_path).save(model, trained(model, 0), step(1))
    Checkpoints(tmp_path).resume(other, make_optimizer(other, OptimizerConfig()))
    tables = [other.network.get_input_embeddings().weight, other.network.lm_head.weight, other.embedding_VD]
    assert len({table.data_ptr() for table in tables}) == 1
    assert torch.equal(tables[0], model.embedding_VD)


def test_the_two_newest_stay(tmp_path: Path) -> None:
    model, checkpoints = tiny.recurrent(), Checkpoints(tmp_path)
    for number in (2, 4, 10, 6):  # sorted by number, not by name or time
        checkpoints.save(model, trained(model, 0), step(number))
    assert names(tmp_path) == ["last-00000006", "last-00000010"]
    assert checkpoints.resume(model, trained(model, 0))[0].step == 10


def test_no_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    model = tiny.recurrent()
    assert Checkpoints(tmp_path / "none").resume(model, trained(model, 0)) == (Progress(), "")


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "progress.json", "energymt.json"])
@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_broken_checkpoint_is_passed_over_and_named(file: str, harm: str, tmp_path: Path) -> None:
    model, checkpoints = tiny.recurrent(), Checkpoints(tmp_path)
    optimizer = trained(model)
    checkpoints.save(model, optimizer, step(2))
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tiny.shake(model, seed=4)
    checkpoints.save(model, optimizer, step(4))
    path = tmp_path / "last-00000004" / file
    content = path.read_bytes()
    if harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "changed":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.unlink()
    progress, passed_over = checkpoints.resume(model, optimizer)
    if file == "energymt.json" and harm == "changed":  # one bit of a hash, or of a name: either is noticed
        assert progress.step in (2, 4)
        return
    assert progress.step == 2
    assert "last-00000004" in passed_over and file in passed_over
    for name, tensor in wanted.items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_if_all_are_broken_the_run_starts_anew_and_says_so(tmp_path: Path) -> None:
    model, checkpoints = tiny.recurrent(), Checkpoints(tmp_path)
    for number in (2, 4):
        checkpoints.save(model, trained(model), step(number))
        (tmp_path / f"last-{number:08d}" / "weights.safetensors").unlink()
    progress, passed_over = checkpoints.resume(model, trained(model, 0))
    assert progress == Progress()
    assert "last-00000002" in passed_over and "last-00000004" in passed_over


# ------------------------------------------------------------------------------------------------------ the best models


def constant(value: float) -> torch.nn.Module:
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


@pytest.mark.parametrize("higher, best", [(True, {"3": 9.0, "5": 8.0}), (False, {"1": 1.0, "4": 2.0})])
def test_the_k_best_are_kept(higher: bool, best: dict[str, float], tmp_path: Path) -> None:
    checkpoints, progress = Checkpoints(tmp_path, keep_best=2), Progress()
    for number, value in enumerate([1.0, 5.0, 9.0, 2.0, 8.0], start=1):
        progress.step = number
        checkpoints.keep(constant(value), progress, value, higher)
    assert progress.kept == best
    model = constant(0.0)
    checkpoints.load_kept(model, sorted(map(int, best)))
    assert model.weight.item() == pytest.approx(sum(best.values()) / 2)
    (first, value), *_ = best.items()
    checkpoints.load_kept(model, [int(first)])
    assert model.weight.item() == value


def test_of_equal_values_the_first_stays(tmp_path: Path) -> None:
    checkpoints, progress = Checkpoints(tmp_path), Progress()
    for number in (1, 2):
        progress.step = number
        checkpoints.keep(constant(number), progress, 7.0, True)
    assert progress.kept == {"1": 7.0}


def test_kept_models_stay_until_no_checkpoint_names_them(tmp_path: Path) -> None:
    """A run that is killed behind an evaluation goes on from a checkpoint that knows only the former best."""
    model, checkpoints, progress = constant(1.0), Checkpoints(tmp_path), Progress()
    optimizer = torch.optim.AdamW(model.parameters())
    for number, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
        progress.step = number
        checkpoints.keep(constant(value), progress, value, True)
        resumed, _ = checkpoints.resume(model, optimizer)  # as if killed here
        if resumed.kept:
            checkpoints.load_kept(model, [int(kept) for kept in resumed.kept])
            assert model.weight.item() == value - 1
        checkpoints.save(model, optimizer, progress)
    (tmp_path / "last-00000003" / "weights.safetensors").unlink()
    resumed, _ = checkpoints.resume(model, optimizer)
    assert resumed.kept == {"2": 2.0}
    checkpoints.load_kept(model, [2])
    for number in (4, 5):
        progress.step = number
        checkpoints.save(model, optimizer, progress)
    assert [name for name in names(tmp_path) if name.startswith("kept")] == ["kept-00000003"]


def test_a_broken_kept_model_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.keep(constant(1.0), step(1), 1.0, True)
    (tmp_path / "kept-00000001" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match="kept-00000001"):
        checkpoints.load_kept(constant(0.0), [1])


@pytest.mark.parametrize("higher, best", [(True, (8.0, 3)), (False, (1.0, 1))])
def test_a_broken_kept_model_is_left_out(higher: bool, best: tuple[float, int], tmp_path: Path) -> None:
    """The best one is broken: the best of the others takes its place."""
    checkpoints = Checkpoints(tmp_path, keep_best=3)
    progress = step(0)
    for number, value in enumerate([1.0, 9.0 if higher else 0.5, 8.0], start=1):
        progress.step = progress.best_step = number
        checkpoints.keep(constant(value), progress, value, higher)
    progress.best, progress.best_step = (9.0 if higher else 0.5), 2
    assert checkpoints.leave_out_damaged(progress, higher) == ""
    assert (progress.best_step, len(progress.kept)) == (2, 3)
    (tmp_path / "kept-00000002" / "weights.safetensors").write_bytes(b"")
    said = checkpoints.leave_out_damaged(progress, higher)
    assert "step 2 is left out" in said and "kept-00000002/weights.safetensors" in said and "step 1" not in said
    assert (progress.best, progress.best_step) == best
    assert progress.kept == {"1": 1.0, "3": 8.0}


def test_if_every_kept_model_is_broken_there_is_no_best_one(tmp_path: Path) -> None:
    checkpoints, progress = Checkpoints(tmp_path), step(1, best=1.0, best_step=1)
    checkpoints.keep(constant(1.0), progress, 1.0, True)
    (tmp_path / "kept-00000001" / "energymt.json").unlink()
    assert "kept-00000001" in checkpoints.leave_out_damaged(progress, True)
    assert (progress.best, progress.best_step, progress.kept) == (None, -1, {})
    checkpoints.keep(constant(2.0), progress, -5.0, True)
    checkpoints.load_kept(model := constant(0.0), [1])
    assert model.weight.item() == 2.0


def test_clear_forgets_everything(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.keep(constant(1.0), step(1), 1.0, True)
    checkpoints.clear()
    assert not (tmp_path / "run").exists()
    checkpoints.clear()


def test_progress_is_readable(tmp_path: Path) -> None:
    model = constant(1.0)
    path = Checkpoints(tmp_path).save(model, torch.optim.AdamW(model.parameters()), step(3, best=2.0))
    assert json.loads((path / "progress.json").read_text())["best"] == 2.0
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}
