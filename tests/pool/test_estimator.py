"""A pooled estimator is the local one to whoever calls it: scores, gradients, energies, though nobody need wait."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.energies import QualityEnergy
from energymt.errors import EnergyTimeout, EnergyVersionError
from energymt.models.estimator import QualityEstimator
from energymt.operators import OPERATORS, Noise
from energymt.pool.client import Client
from energymt.pool.estimator import PooledEstimator
from energymt.pool.server import Server
from energymt.records import Prediction, SoftTarget, Source
from tests import estimators, tiny
from tests.pool.pools import Disturbed, Threads, locally, mixed, replica, rows_of

Calls = list[tuple[Source, SoftTarget]]


@pytest.fixture(scope="module")
def model() -> QualityEstimator:
    return estimators.estimator("kiwi")


@pytest.fixture
def start() -> Iterator[Callable[..., Threads]]:
    """Replicas of an estimator that run until the test ends."""
    running: list[Threads] = []

    def begin(model: QualityEstimator, replicas: int = 1, **settings) -> Threads:
        running.append(Threads([replica(Server(model, f"replica-{n}"), n, **settings) for n in range(replicas)]))
        return running[-1]

    yield begin
    for threads in running:
        threads.close()


def pooled(threads: Threads, model: QualityEstimator, *, precision: str = "fp32", **options) -> PooledEstimator:
    client = Client(threads, **{"deadline": 120.0, **options})
    return PooledEstimator(client, model.table_VD, model.vocabulary, precision)


def scored(estimator, source: Source, target: SoftTarget) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, and the gradient [B, T, D] of a weighted sum of them."""
    emb_BTD = target.emb_BTD.detach().clone().requires_grad_()
    score_B = estimator(source, replace(target, emb_BTD=emb_BTD))
    (score_B * torch.arange(1.0, len(score_B) + 1)).sum().backward()
    return score_B.detach(), emb_BTD.grad


@pytest.mark.parametrize("replicas", [1, 3])
def test_pooled_is_local(model: QualityEstimator, start: Callable[..., Threads], replicas: int) -> None:
    """Deterministic mode; masks that are not prefixes, of which only the real positions travel."""
    threads, (source, target) = start(model, replicas), mixed(model)
    target.mask_BT[0, 1] = target.mask_BT[2, 0] = source.mask_BS[4, 2] = False
    estimator = pooled(threads, model, alone=True)
    wanted, wanted_gradient = scored(model, source, target)
    for _ in range(2 * replicas):
        score_B, gradient_BTD = scored(estimator, source, target)
        torch.testing.assert_close(score_B, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(gradient_BTD, wanted_gradient, rtol=0, atol=1e-6)
        assert not gradient_BTD[~target.mask_BT].any() and gradient_BTD[target.mask_BT].all()
    assert {number for number, _ in threads.sent} == set(range(replicas))


@pytest.mark.parametrize("padded", [False, True])
def test_with_and_without_padding(model: QualityEstimator, start: Callable[..., Threads], padded: bool) -> None:
    source, target = mixed(model)
    rows = target.mask_BT.sum(1).argsort(descending=True)[:2].tolist()
    source, target = rows_of(source, target, rows)
    length = int(target.mask_BT.sum(1).max() if padded else target.mask_BT.sum(1).min())
    target = SoftTarget(None, target.emb_BTD[:, :length], target.mask_BT[:, :length])
    assert bool(target.mask_BT.all()) is not padded
    wanted, wanted_gradient = scored(model, source, target)
    score_B, gradient_BTD = scored(pooled(start(model), model), source, target)
    torch.testing.assert_close(score_B, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient_BTD, wanted_gradient, rtol=0, atol=1e-6)


def test_gradcheck_through_the_wire(start: Callable[..., Threads]) -> None:
    model = estimators.estimator("unified").double()
    source, target = rows_of(*mixed(model), [1, 3, 4])
    mask_BT = target.mask_BT[:, :3]
    estimator = pooled(start(model), model, precision="fp64")

    def score(emb_BTD: torch.Tensor) -> torch.Tensor:
        return estimator(source, SoftTarget(None, emb_BTD, mask_BT))

    emb_BTD = target.emb_BTD[:, :3].clone().requires_grad_()
    assert emb_BTD.dtype == torch.float64
    assert torch.autograd.gradcheck(score, emb_BTD)
    score_B = score(emb_BTD)
    [gradient] = torch.autograd.grad(score_B.square().sum(), emb_BTD, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):  # the wire carries no second derivative
        gradient.sum().backward()


def test_half_the_bytes(model: QualityEstimator, start: Callable[..., Threads]) -> None:
    batch = mixed(model)
    wanted, wanted_gradient = scored(model, *batch)
    score_B, gradient_BTD = scored(pooled(start(model), model, precision="bf16"), *batch)
    assert score_B.dtype == gradient_BTD.dtype == torch.float32
    assert 0 < (score_B - wanted).abs().max() < 0.02
    assert 0 < (gradient_BTD - wanted_gradient).norm() / wanted_gradient.norm() < 0.02


def test_hard_translations_travel_as_ids_and_still_have_a_gradient(
    model: QualityEstimator, start: Callable[..., Threads]
) -> None:
    threads = start(model)
    source = estimators.source_of(model, estimators.SOURCES)
    target = estimators.target_of(model, estimators.TRANSLATIONS)
    found, wanted = scored(pooled(threads, model), source, target), scored(model, source, target)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    [(_, request)] = threads.sent
    assert request.target.values.ndim == 1


def test_calls_in_flight_overlap_with_each_other_and_with_their_caller(
    model: QualityEstimator, start: Callable[..., Threads]
) -> None:
    """All are on their way, on all replicas, before anybody waits."""
    gate, computing = threading.Event(), threading.Semaphore(0)

    def disturb(source: Source, target: SoftTarget) -> None:
        computing.release()
        assert gate.wait(60.0)

    threads, batch = start(Disturbed(model, disturb), 2), mixed(model)
    estimator = pooled(threads, model)
    parts = [rows_of(*batch, rows) for rows in ([0], [1, 2], [3], [4])]
    tickets = [estimator.submit(*part) for part in parts]
    assert computing.acquire(timeout=60.0) and computing.acquire(timeout=60.0)  # two at the same time
    assert len(threads.sent) == 4
    gate.set()
    for ticket, part in reversed(list(zip(tickets, parts, strict=True))):
        torch.testing.assert_close(ticket.result(), locally(model, *part)[0], rtol=0, atol=1e-5)
    assert {number for number, _ in threads.sent} == {0, 1}


def test_a_gradient_is_asked_for_only_where_it_is_wanted(
    model: QualityEstimator, start: Callable[..., Threads]
) -> None:
    threads, (source, target) = start(model), mixed(model)
    estimator = pooled(threads, model)
    wants = replace(target, emb_BTD=target.emb_BTD.clone().requires_grad_())
    with torch.no_grad():
        first = estimator(source, wants)
    second, third = estimator(source, target), estimator(source, wants)
    assert [request.gradient for _, request in threads.sent] == [False, False, True]
    assert [score_B.requires_grad for score_B in (first, second, third)] == [False, False, True]
    assert torch.equal(first, second) and torch.equal(second, third)


@pytest.mark.parametrize("weight", [1.0, torch.nan])
def test_flagged_sentences_are_nan_and_pull_nowhere(
    weight: float, model: QualityEstimator, start: Callable[..., Threads], caplog: pytest.LogCaptureFixture
) -> None:
    source, target = mixed(model)
    wanted, wanted_gradient = scored(model, source, target)
    emb_BTD = target.emb_BTD.clone()
    emb_BTD[2, 0] = torch.nan
    emb_BTD.requires_grad_()
    score_B = pooled(start(model), model)(source, replace(target, emb_BTD=emb_BTD))
    assert score_B.isnan().tolist() == [False, False, True, False, False]
    weights_B = torch.arange(1.0, 6.0)
    weights_B[2] *= weight  # what a loss makes of a score that is NaN
    score_B.backward(weights_B)
    assert not emb_BTD.grad[2].any()
    others = [0, 1, 3, 4]
    torch.testing.assert_close(score_B[others].detach(), wanted[others], rtol=0, atol=1e-6)
    torch.testing.assert_close(emb_BTD.grad[others], wanted_gradient[others], rtol=0, atol=1e-6)
    assert "could not score sentence 2 of 5: its score or its gradient is not finite" in caplog.text


def test_no_sentences(model: QualityEstimator, start: Callable[..., Threads]) -> None:
    threads, (source, target) = start(model), rows_of(*mixed(model), [])
    target = replace(target, emb_BTD=target.emb_BTD.clone().requires_grad_())
    estimator = pooled(threads, model)
    score_B = estimator(source, target)
    assert score_B.shape == (0,) and not threads.sent
    score_B.sum().backward()
    assert target.emb_BTD.grad.shape == target.emb_BTD.shape
    assert estimator.submit(source, target).result().shape == (0,)


def test_a_replica_that_dies_meanwhile(model: QualityEstimator, start: Callable[..., Threads]) -> None:
    gate = threading.Event()
    stuck = Disturbed(model, lambda source, target: gate.wait(60.0) and None)
    threads, batch = start(model, 2), mixed(model)
    threads.replicas[0] = replica(Server(stuck, "replica-0"))
    ticket = pooled(threads, model).submit(*batch)
    assert [number for number, _ in threads.sent] == [0]
    threads.kill(0)
    assert ticket.reply().replica == "replica-1"
    assert threads.reports == [0]
    gate.set()
    torch.testing.assert_close(ticket.result(), locally(model, *batch)[0], rtol=0, atol=1e-6)


def test_a_replica_that_hangs(model: QualityEstimator, start: Callable[..., Threads]) -> None:
    gate = threading.Event()
    threads, batch = start(Disturbed(model, lambda source, target: gate.wait(60.0) and None)), mixed(model)
    with pytest.raises(EnergyTimeout, match=r"pool here did not answer 5 sentences within 0\.2 s"):
        pooled(threads, model, deadline=0.2, attempt=0.1)(*batch)
    assert set(threads.reports) == {0}
    gate.set()


def test_a_version_that_no_replica_has(model: QualityEstimator, start: Callable[..., Threads]) -> None:
    threads, batch = start(model, 2), mixed(model)
    estimator = pooled(threads, model, deadline=0.3)
    estimator.version = 2
    with pytest.raises(EnergyVersionError, match="holds version 0 and version 2 was asked for"):
        estimator(*batch)
    threads.replicas[1].server.version = 3
    assert estimator.submit(*batch).reply().version == 3


def test_callers_in_many_threads_share_batches(model: QualityEstimator, start: Callable[..., Threads]) -> None:
    """Dynamic batches of whoever comes: each gets its own, to 1e-5."""
    threads, batch = start(model, 2, wait_ms=5.0), mixed(model)
    estimator, wanted = pooled(threads, model), [locally(model, *rows_of(*batch, [row])) for row in range(5)]
    found: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {row: [] for row in range(5)}

    def work(row: int) -> None:
        source, target = rows_of(*batch, [row])
        for _ in range(4):
            emb_BTD = target.emb_BTD.clone().requires_grad_()
            score_B = estimator(source, replace(target, emb_BTD=emb_BTD))
            [gradient_BTD] = torch.autograd.grad(score_B.sum(), emb_BTD)
            found[row].append((score_B.detach(), gradient_BTD[target.mask_BT]))

    workers = [threading.Thread(target=work, args=(row,)) for row in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(len(answers) == 4 for answers in found.values())
    for row, answers in found.items():
        for answer in answers:
            for one, other in zip(answer, wanted[row], strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert not estimator.client.in_flight()


def test_a_precision_that_does_not_exist(model: QualityEstimator, start: Callable[..., Threads]) -> None:
    with pytest.raises(ValueError, match="precision 'fp8' is none of fp32, bf16, fp64"):
        pooled(start(model), model, precision="fp8")


@pytest.mark.parametrize("words", ["the estimator's own", "others"])
@pytest.mark.parametrize("feed", OPERATORS)
def test_an_energy_cannot_tell(feed: str, words: str, model: QualityEstimator, start: Callable[..., Threads]) -> None:
    """QualityEnergy over the pool is QualityEnergy over the local estimator: values, and gradients of the logits."""
    text = estimators.SOURCES + estimators.TRANSLATIONS
    own = words == "the estimator's own"
    vocabulary = model.vocabulary if own else SentencePieceVocabulary.train(text, 90, model_type="bpe")
    lines = estimators.SOURCES[:3]
    source = Source(*tiny.padded([vocabulary.encode_source(line) for line in lines], vocabulary.pad_id))
    mask_BT = torch.arange(4) < torch.tensor([4, 0, 2])[:, None]
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 4, vocabulary.size, generator=draw)
    logits[..., list(vocabulary.never_ids)] = float("-inf")
    noise = Noise(seed=3, step=7, sentence_ids_B=torch.tensor([11, 12, 13]))
    threads, results = start(model), []
    for estimator in (model, pooled(threads, model)):
        energy = QualityEnergy(estimator, vocabulary, feed=feed, least_coverage=0.0)
        leaf = logits.clone().requires_grad_()
        value_B = energy(source, Prediction(leaf, mask_BT, noise=noise))
        value_B.sum().backward()
        results.append((value_B.detach(), leaf.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    [(_, request)] = threads.sent
    hard = own and feed in ("STL", "SG", "ST")
    assert request.target.values.ndim == (1 if hard else 2)
    assert request.target.lengths.tolist() == [4, 0, 2]
