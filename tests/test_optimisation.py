"""One optimizer step: what is divided by what, however the sentences are cut, and nothing happens when it diverges."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from lightning.fabric import Fabric

from energymt.configuration import OptimizerConfig
from energymt.data.batching import collate
from energymt.devices import bf16_on_cpu
from energymt.errors import DivergenceError
from energymt.optimisation import make_optimizer, optimise, seed_dropout
from energymt.records import Mixture, Step, StepBatch, Term
from energymt.training import fit
from tests import tiny, toy
from tests.ranks import run_two
from tests.toy import METHODS

# ------------------------------------------------------------------------------------------------------- a made-up step


class Line(torch.nn.Module):
    """Two weights; a loss linear in them has a gradient that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor([[1.0, 2.0]]))
        self.offset = torch.nn.Parameter(torch.tensor([0.5]))


@pytest.fixture
def model() -> Line:
    return Line()


@pytest.fixture
def settings(tmp_path: Path):
    data = {"path": "unread.tsv"}
    return toy.config("supervised", tmp_path, train=data, dev=data, optimizer={"clip_norm": 1e9, "weight_decay": 0.0})


def batches(*sizes: int):
    pairs = [([6, 7], [8, 9])] * sum(sizes)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [tiny.batch_of(pairs[:size], tiny.Numbers(), first=start) for start, size in zip(starts, sizes, strict=True)]


def step_of(micro_batches, losses, counts=None, terms=("a",)) -> Step:
    return Step(terms, micro_batches, losses, counts or (lambda batch: {"a": float(len(batch))}))


def run(step: Step, model: Line, settings, rate: float = 0.0):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return optimise(step, model, optimizer, toy.fabric(), settings, 4, rate)


def test_each_term_is_divided_by_its_own_global_count(model: Line, settings) -> None:
    def losses(batch):
        sentences = len(batch)
        return [
            Term("a", sentences * model.slope.sum(), float(sentences)),
            Term("b", 10.0 * model.offset.sum() * sentences, 2.0 * sentences, weight=0.3),
        ]

    def counts(batch):
        return {"a": float(len(batch)), "b": 2.0 * len(batch)}

    report = run(step_of(batches(3, 1), losses, counts, ("a", "b")), model, settings)
    assert report["train/a"] == pytest.approx(3.0)  # (1 + 2) a sentence, whatever the number of sentences
    assert report["train/b"] == pytest.approx(2.5)  # 10 · 0.5 / 2, without the weight
    assert model.slope.grad.tolist() == [[pytest.approx(1.0)] * 2]
    assert model.offset.grad.item() == pytest.approx(0.3 * 10.0 / 2)
    assert report["train/gradient_norm"] == pytest.approx((1.0 + 1.0 + 1.5**2) ** 0.5)
    assert report["time/tokens"] == 4 * 3


def test_a_term_that_nothing_counts_for_is_left_out(model: Line, settings) -> None:
    def losses(batch):
        return [Term("a", model.slope.sum(), 1.0), Term("b", model.offset.sum() * 0.0, 0.0)]

    report = run(step_of(batches(1), losses, lambda batch: {"a": 1.0, "b": 0.0}, ("a", "b")), model, settings)
    assert "train/b" not in report
    assert report["train/a"] == pytest.approx(3.0)


def test_the_weights_move_against_the_gradient_at_the_rate_given(model: Line, settings) -> None:
    run(step_of(batches(2), lambda batch: [Term("a", len(batch) * model.slope.sum(), 2.0)]), model, settings, rate=0.25)
    assert model.slope.tolist() == [[0.75, 1.75]]
    assert model.offset.tolist() == [0.5]


def test_gradients_of_the_step_before_are_forgotten(model: Line, settings) -> None:
    step = step_of(batches(2), lambda batch: [Term("a", len(batch) * model.slope.sum(), 2.0)])
    assert run(step, model, settings)["train/gradient_norm"] == run(step, model, settings)["train/gradient_norm"]


def test_the_norm_of_the_whole_gradient_is_clipped(model: Line, settings) -> None:
    settings = settings.model_copy(update={"optimizer": OptimizerConfig(clip_norm=0.5)})

    def losses(batch):
        return [Term("a", (3.0 * model.slope[0, 0] + 4.0 * model.offset[0]) * len(batch), float(len(batch)))]

    report = run(step_of(batches(1, 1), losses), model, settings)
    assert report["train/gradient_norm"] == pytest.approx(5.0)  # as it was before
    assert model.slope.grad.tolist() == [[pytest.approx(0.3, rel=1e-4), 0.0]]
    assert model.offset.grad.item() == pytest.approx(0.4, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_changes_nothing_and_says_where(bad: float, model: Line, settings) -> None:
    def losses(batch):
        factor = bad if 3 in batch.sentence_ids_B else 1.0
        return [Term("a", model.slope.sum() * factor, float(len(batch)))]

    with pytest.raises(DivergenceError, match=r"step 5, micro-batch 2 .*a (nan|-?inf).*\[3, 4\]"):
        run(step_of(batches(3, 2), losses), model, settings, rate=0.1)
    assert model.slope.tolist() == [[1.0, 2.0]]


def test_a_gradient_that_is_not_finite_changes_nothing(model: Line, settings) -> None:
    def losses(batch):  # the value is 0, its derivative is infinite
        return [Term("a", (model.slope - model.slope.detach()).abs().sqrt().sum(), 1.0)]

    with pytest.raises(DivergenceError, match="gradient is not finite at step 5"):
        run(step_of(batches(1), losses), model, settings, rate=0.1)
    assert model.slope.tolist() == [[1.0, 2.0]]


def test_only_matrices_decay(model: Line) -> None:
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    decays = {tuple(group["params"]): group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {(model.slope,): 0.5, (model.offset,): 0.0}


def test_frozen_weights_are_not_optimised(model: Line) -> None:
    model.slope.requires_grad_(False)
    optimizer = make_optimizer(model, OptimizerConfig())
    assert [weight for group in optimizer.param_groups for weight in group["params"]] == [model.offset]


def test_dropout_is_named_by_seed_step_and_micro_batch() -> None:
    def drawn(*key: int) -> float:
        seed_dropout(*key)
        return torch.rand(()).item()

    assert drawn(1, 2, 3) == drawn(1, 2, 3)
    keys = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (0, 0, 0), (-1, 0, 0), (1, 0, 8191)]
    assert len({drawn(*key) for key in keys}) == len(keys)


# ------------------------------------------------------------------------------- 1 × 8 = 4 × 2 accumulated = 2 workers

# Steps as lists of micro-batches of sentences; the second is a single micro-batch, and one of two workers gets none.
WHOLE = [[list(range(8))], [[8, 9]], [list(range(10, 16))]]
CUT = [[[0, 1], [2, 3], [4, 5], [6, 7]], [[8, 9]], [[10, 11, 12], [13], [14, 15]]]
WORKERS = 2


def exact(name: str, folder: Path, **changes):
    """A run in double precision, where sums in another order differ by far less than what Adam would make of it."""
    operators = {"feed": "GX", "score": "SG", "masked_weight": 0.5} if name == "engine" else {}
    return toy.make(name, toy.config(name, folder, **operators, **changes), double=True)


def steps_of(trainable, cut, rank: int = 0, world: int = 1) -> list[StepBatch]:
    data = trainable.text.train
    return [
        StepBatch(number, 0, tuple(collate(data, chosen) for chosen in micro_batches[rank::world]))
        for number, micro_batches in enumerate(cut)
    ]


def mixed(folder: Path):
    """A run whose steps have a second part that waits, weighed by the gradients of both."""
    trainable = exact("supervised", folder)
    model, plain = trainable.model, trainable.steps

    def losses(batch):
        logits_BUV = model.decode(model.encode(batch.source), batch.target_BT, batch.target_mask_BT)
        total = logits_BUV[:, :-1][batch.target_mask_BT].square().sum()
        return lambda: [Term("square", total, float(len(batch)))]

    def steps(batch):
        [step] = plain(batch)
        other = Step(("square",), batch.micro_batches, losses, lambda micro: {"square": float(len(micro))})
        yield Mixture({"other": other, "own": step}, weigh)

    def weigh(gram_PP, means):
        return [0.3 * float(gram_PP[1, 1] / gram_PP[0, 0]) ** 0.5 + 0.01 * means["square"], 1.0]

    trainable.steps = steps
    return trainable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def one_worker(folder: Path):
    """Weights and reports of each method after the steps of CUT, by one worker."""
    found = {}
    for name in METHODS:
        trainable = exact(name, folder)
        found[name] = toy.train(trainable, steps_of(trainable, CUT)), toy.weights(trainable)
    return found


@pytest.fixture(scope="module")
def two_workers(folder: Path) -> Path:
    """The folder where two processes leave the same, rank by rank."""
    out = folder / "workers"
    out.mkdir()
    run_two("-m", "tests.workers", str(folder), str(out))
    return out


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float) -> bool:
    assert left.keys() == right.keys()
    return all(torch.allclose(left[name], right[name], rtol=0, atol=tolerance) for name in left)


@pytest.mark.parametrize("name", METHODS)
def test_one_batch_of_eight_is_four_of_two(name: str, folder: Path, one_worker) -> None:
    trainable = exact(name, folder)
    before = toy.weights(trainable)
    reports = toy.train(trainable, steps_of(trainable, WHOLE))
    cut_reports, cut_weights = one_worker[name]
    assert equal(toy.weights(trainable), cut_weights, 1e-9)
    assert not equal(before, cut_weights, 1e-3)
    for whole, cut in zip(reports, cut_reports, strict=True):
        assert whole == pytest.approx(cut, rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_holds_in_single_precision_to_float_error(name: str, folder: Path) -> None:
    runs = []
    for cut in (WHOLE, CUT):
        trainable = toy.make(name, toy.config(name, folder))
        runs.append(toy.train(trainable, steps_of(trainable, cut)))
    for whole, cut in zip(*runs, strict=True):
        assert whole == pytest.approx(cut, rel=1e-4)


@pytest.mark.skipif(not bf16_on_cpu(), reason="this processor has no bf16, and torch no LSTM of it there")
@pytest.mark.parametrize("name", METHODS)
def test_bf16_stays_close_to_float32(name: str, folder: Path) -> None:
    runs = []
    for precision in ("32-true", "bf16-mixed"):
        trainable = toy.make(name, toy.config(name, folder))
        on = Fabric(accelerator="cpu", devices=1, precision=precision)
        runs.append(toy.train(trainable, steps_of(trainable, CUT), on))
        assert {weight.dtype for weight in trainable.model.parameters()} == {torch.float32}
    for full, half in zip(*runs, strict=True):
        assert half == pytest.approx(full, rel=0.05)
    assert runs[0] != runs[1]


@pytest.mark.parametrize("name", METHODS)
def test_two_workers_are_one(name: str, two_workers: Path, one_worker) -> None:
    reports, weights = one_worker[name]
    for rank in (0, 1):
        assert equal(safetensors.torch.load_file(two_workers / f"{name}-{rank}.safetensors"), weights, 1e-9)
        theirs = json.loads((two_workers / f"{name}-{rank}.json").read_text())
        for one, two in zip(reports, theirs, strict=True):
            assert two == pytest.approx(one, rel=1e-6)


def test_two_workers_weigh_a_mixture_as_one(two_workers: Path, folder: Path) -> None:
    trainable = mixed(folder)
    reports = toy.train(trainable, steps_of(trainable, CUT))
    for rank in (0, 1):
        theirs = safetensors.torch.load_file(two_workers / f"mixture-{rank}.safetensors")
        assert equal(theirs, toy.weights(trainable), 1e-9)
        for one, two in zip(reports, json.loads((two_workers / f"mixture-{rank}.json").read_text()), strict=True):
            assert two == pytest.approx(one, rel=1e-6)


def test_two_workers_have_dropout_of_their_own_that_is_that_of_one(two_workers: Path, folder: Path) -> None:
    trainable = exact("masked", folder, vocabulary={"path": str(folder / "masked-toy")}, model=with_dropout())
    toy.train(trainable, steps_of(trainable, CUT))
    for rank in (0, 1):
        theirs = safetensors.torch.load_file(two_workers / f"dropout-{rank}.safetensors")
        assert equal(theirs, toy.weights(trainable), 1e-9)


def with_dropout() -> dict[str, object]:
    return {"variant": "masked-toy", "changes": {**toy.SMALL["masked-toy"], "dropout": 0.3}}


def test_two_workers_run_the_loop_as_one(two_workers: Path, folder: Path, tmp_path: Path) -> None:
    trainable = exact("supervised", folder)
    result = fit(trainable, toy.fabric(), tmp_path, lambda step, values: None)
    for rank in (0, 1):
        kept, best_step = json.loads((two_workers / f"fit-{rank}.json").read_text())
        assert (kept, best_step) == (pytest.approx(result.progress.kept), result.progress.best_step)
    left = sorted(path.name for path in (two_workers / "checkpoints").iterdir())
    assert left == sorted(path.name for path in tmp_path.iterdir())
    for path in tmp_path.glob("*/weights.safetensors"):
        theirs = safetensors.torch.load_file(two_workers / "checkpoints" / path.parent.name / path.name)
        assert equal(theirs, safetensors.torch.load_file(path), 1e-9)
    assert equal(safetensors.torch.load_file(two_workers / "fit-0.safetensors"), toy.weights(trainable), 1e-9)
