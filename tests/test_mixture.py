"""A step whose parts are differentiated one by one: its gradient is the weighted sum, however it is cut and awaited."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from energymt.errors import DivergenceError
from energymt.optimisation import AHEAD, optimise
from energymt.records import Batch, Mixture, Step, Term
from tests import toy
from tests.test_optimisation import Line, batches

SIZES = (4, 4)  # sentences of micro-batches: counts are powers of two, which divide without a remainder
Loss = Callable[[Line, Batch], Tensor]


@pytest.fixture
def model() -> Line:
    return Line().double()


@pytest.fixture
def settings(tmp_path: Path):
    data = {"path": "unread.tsv"}
    return toy.config("supervised", tmp_path, train=data, dev=data, optimizer={"clip_norm": 1e9, "weight_decay": 0.0})


def first_loss(model: Line, batch: Batch) -> Tensor:
    """Σ over sentences; each has a gradient of its own."""
    ids_B = batch.sentence_ids_B.double()
    return (torch.sin(ids_B * model.slope[0, 0]) + ids_B * model.slope[0, 1].square()).sum()


def second_loss(model: Line, batch: Batch) -> Tensor:
    ids_B = batch.sentence_ids_B.double()
    return (torch.cos(ids_B) * model.offset * model.slope[0, 0] + model.offset**3).sum()


def part(
    name: str, loss: Loss, model: Line, micro_batches: Sequence[Batch], log: list[str] | None = None, late: bool = False
) -> Step:
    """A part of one term; `log` takes down when a micro-batch is begun, and when what was late comes in."""
    turns = iter(range(len(micro_batches)))

    def losses(batch: Batch):
        turn = next(turns)
        if log is not None:
            log.append(f"{name}{turn} begun")

        def terms() -> list[Term]:
            if late and log is not None:
                log.append(f"{name}{turn} there")
            return [Term(name, value, float(len(batch)))]

        value = loss(model, batch)
        return terms if late else terms()

    return Step((name,), micro_batches, losses, lambda batch: {name: float(len(batch))})


def fixed(*weights: float) -> Callable[..., list[float]]:
    return lambda gram_PP, means: list(weights)


def mixture(model: Line, cut: Sequence[int] = SIZES, weigh=None, **options) -> Mixture:
    """Both parts over the sentences 0 to 7."""
    parts = {
        "first": part("a", first_loss, model, batches(*cut), **options),
        "second": part("b", second_loss, model, batches(*cut), **options),
    }
    return Mixture(parts, weigh or fixed(0.7, -1.3))


def run(step: Step | Mixture, model: Line, settings, rate: float = 0.0) -> dict[str, float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return optimise(step, model, optimizer, toy.fabric(), settings, 4, rate)


def gradient(model: Line) -> Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )


def exact(model: Line, loss: Loss, sentences: int = 8) -> Tensor:
    """The gradient of the mean over all sentences, by itself."""
    [batch] = batches(sentences)
    parts = torch.autograd.grad(loss(model, batch) / sentences, list(model.parameters()), materialize_grads=True)
    return torch.cat([grad.flatten() for grad in parts])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ the sum


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -1.3), (0.0, 2.0), (1e-3, 1e3)])
def test_the_gradient_is_the_weighted_sum(weights: tuple[float, float], model: Line, settings) -> None:
    wanted = weights[0] * exact(model, first_loss) + weights[1] * exact(model, second_loss)
    report = run(mixture(model, weigh=fixed(*weights)), model, settings)
    close(gradient(model), wanted)
    assert report["train/gradient_norm"] == pytest.approx(float(wanted.norm()))
    assert (report["train/weight_first"], report["train/weight_second"]) == weights


def test_weights_are_asked_for_with_scalar_products_and_means(model: Line, settings) -> None:
    asked: list[tuple[Tensor, dict[str, float]]] = []

    def weigh(gram_PP: Tensor, means) -> list[float]:
        asked.append((gram_PP, dict(means)))
        return [1.0, 1.0]

    found_PX = torch.stack([exact(model, first_loss), exact(model, second_loss)])
    [batch] = batches(8)
    losses = [loss(model, batch).item() / 8 for loss in (first_loss, second_loss)]
    run(mixture(model, weigh=weigh), model, settings)
    [(gram_PP, means)] = asked
    assert gram_PP.dtype == torch.float64
    close(gram_PP, found_PX @ found_PX.T)
    assert means == {"a": pytest.approx(losses[0]), "b": pytest.approx(losses[1])}


def test_eight_sentences_are_four_times_two(model: Line, settings) -> None:
    reports, gradients = [], []
    for cut in ((8,), (2, 2, 2, 2), (1, 3, 4)):
        reports.append(run(mixture(model, cut), model, settings))
        gradients.append(gradient(model))
    for report, found in zip(reports[1:], gradients[1:], strict=True):
        close(found, gradients[0])
        assert {name: value for name, value in report.items() if name != "time/tokens"} == pytest.approx(
            {name: value for name, value in reports[0].items() if name != "time/tokens"}
        )


def test_parts_are_cut_each_in_its_own_way(model: Line, settings) -> None:
    """The counts of one part are none of the other's business."""
    step = Mixture(
        {
            "first": part("a", first_loss, model, batches(2, 2)),
            "second": part("b", second_loss, model, batches(8, 4, 4), late=True),
        },
        fixed(0.7, -1.3),
    )
    report = run(step, model, settings)
    close(gradient(model), 0.7 * exact(model, first_loss, 4) - 1.3 * exact(model, second_loss, 16))
    assert report["time/tokens"] == (4 + 16) * 3


def test_the_weights_move_against_the_sum(model: Line, settings) -> None:
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    wanted = before - 0.25 * (0.7 * exact(model, first_loss) - 1.3 * exact(model, second_loss))
    run(mixture(model), model, settings, rate=0.25)
    close(torch.cat([p.detach().flatten() for p in model.parameters()]), wanted)


def test_a_weight_of_zero_shuts_a_part_out(model: Line, settings) -> None:
    """Also where only that part has a gradient: the optimizer then leaves the weight alone."""
    run(mixture(model, weigh=fixed(1.0, 0.0)), model, settings)
    close(gradient(model), exact(model, first_loss))
    assert model.offset.grad is None
    run(mixture(model, weigh=fixed(0.0, 0.0)), model, settings)
    assert not gradient(model).any()


# ------------------------------------------------------------------------------------------- what waits for an answer


def test_what_comes_later_is_the_same(model: Line, settings) -> None:
    reports, gradients = [], []
    for late in (False, True):
        reports.append(run(mixture(model, (2, 1, 1, 2, 2), late=late), model, settings))
        gradients.append(gradient(model))
    assert torch.equal(*gradients)
    assert reports[0] == reports[1]


def test_what_waits_is_begun_first_and_listened_to_last(model: Line, settings) -> None:
    log: list[str] = []
    step = Mixture(
        {
            "slow": part("a", first_loss, model, batches(2, 2, 2, 2), log, late=True),
            "quick": part("b", second_loss, model, batches(4, 4), log),
        },
        fixed(1.0, 1.0),
    )
    run(step, model, settings)
    begun_first, rest = log[:3], log[3:]
    assert begun_first == ["a0 begun", "a1 begun", "b0 begun"]
    assert rest == [
        "b1 begun",
        *("a2 begun", "a0 there"),
        *("a3 begun", "a1 there"),
        *("a2 there", "a3 there"),
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_few_micro_batches_are_begun_at_once(count: int, model: Line, settings) -> None:
    log: list[str] = []
    run(part("a", first_loss, model, batches(*[1] * count), log, late=True), model, settings)
    waiting = most = 0
    for event in log:
        waiting += 1 if event.endswith("begun") else -1
        most = max(most, waiting)
    assert len(log) == 2 * count and waiting == 0
    assert most == min(count, AHEAD + 1)
    assert [event for event in log if event.endswith("there")] == [f"a{turn} there" for turn in range(count)]


def test_lists_are_taken_one_at_a_time(model: Line, settings) -> None:
    """A graph is freed before the next is made."""
    alive: list[int] = []

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value: Tensor) -> Tensor:
            alive.append(1)
            return value.clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            alive.pop()
            return grad

    def loss(model: Line, batch: Batch) -> Tensor:
        value = Held.apply(first_loss(model, batch))
        assert len(alive) == 1
        return value

    run(part("a", loss, model, batches(1, 1, 2)), model, settings)
    assert alive == []


# ---------------------------------------------------------------------------------------------------------- the report


def test_the_names_of_the_metrics(model: Line, settings) -> None:
    step = mixture(model)
    more = {"wait_s": 0.5}
    report = run(Mixture(step.parts, step.weigh, lambda: more), model, settings)
    a, b = exact(model, first_loss), exact(model, second_loss)
    [batch] = batches(8)
    assert report == pytest.approx(
        {
            "train/a": first_loss(model, batch).item() / 8,
            "train/b": second_loss(model, batch).item() / 8,
            "train/weight_first": 0.7,
            "train/weight_second": -1.3,
            "train/norm_first": float(a.norm()),
            "train/norm_second": float(b.norm()),
            "train/gradient_cosine": float(a @ b / (a.norm() * b.norm())),
            "train/gradient_ratio": float(0.7 * a.norm() / (-1.3 * b.norm())),
            "train/gradient_norm": float((0.7 * a - 1.3 * b).norm()),
            "train/wait_s": 0.5,
            "time/tokens": 2 * 8 * 3,
        }
    )


def test_a_step_without_parts_reports_as_ever(model: Line, settings) -> None:
    report = run(part("a", first_loss, model, batches(4, 4)), model, settings)
    assert set(report) == {"train/a", "train/gradient_norm", "time/tokens"}


@pytest.mark.parametrize("absent", ["first", "second"])
def test_a_part_without_micro_batches_is_zero(absent: str, model: Line, settings) -> None:
    step = mixture(model)
    empty = Step(step.parts[absent].terms, (), step.parts[absent].losses, step.parts[absent].counts)
    report = run(Mixture({**step.parts, absent: empty}, step.weigh), model, settings)
    (there,) = {"first", "second"} - {absent}
    loss, weight, term = {"first": (first_loss, 0.7, "a"), "second": (second_loss, -1.3, "b")}[there]
    close(gradient(model), weight * exact(model, loss))
    assert report[f"train/norm_{absent}"] == 0.0
    assert not {"train/gradient_cosine", "train/gradient_ratio"} & set(report)
    assert {name for name in report if name in ("train/a", "train/b")} == {f"train/{term}"}


@pytest.mark.parametrize("late", [False, True])
def test_a_part_that_is_not_finite_changes_nothing_and_is_named(late: bool, model: Line, settings) -> None:
    def broken(model: Line, batch: Batch) -> Tensor:
        return first_loss(model, batch) * float("nan" if 4 in batch.sentence_ids_B else 1.0)

    step = mixture(model)
    parts = {"first": part("a", broken, model, batches(4, 4), late=late), "second": step.parts["second"]}
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(DivergenceError, match=r"step 5, micro-batch 2 \(a nan; sentences \[4, 5, 6\]"):
        run(Mixture(parts, step.weigh), model, settings, rate=0.1)
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


def test_parts_have_dropout_of_their_own(model: Line, settings) -> None:
    """It is named by step, part and micro-batch; that of a step without parts is that of a first part."""

    def drawn(step: Callable[[Loss], Step | Mixture]) -> list[float]:
        found: list[float] = []

        def loss(model: Line, batch: Batch) -> Tensor:
            found.append(torch.rand(()).item())
            return first_loss(model, batch)

        run(step(loss), model, settings)
        return found

    def mixed(loss: Loss) -> Mixture:
        parts = {name: part(name, loss, model, batches(4, 4)) for name in ("a", "b")}
        return Mixture(parts, fixed(1.0, 1.0))

    both = drawn(mixed)
    assert len(set(both)) == 4 and drawn(mixed) == both
    a0, _, _, a1 = both
    assert drawn(lambda loss: part("a", loss, model, batches(4, 4))) == [a0, a1]
