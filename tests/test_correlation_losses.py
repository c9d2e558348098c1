"""Losses of a whole step: the gradient is that of the loss, however the step is cut, and undefined ones give none."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from energymt.correlation_losses import loss_gradient, negative_pearson, negative_smooth_spearman

KINDS = ("pearson", "spearman", "mse")
every_kind = pytest.mark.parametrize("kind", KINDS)
N = 12
CUT = [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9], [10, 11]]


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Raw scores and labels that go together a little, two labels equal."""
    draw = torch.Generator().manual_seed(seed)
    raw_N = torch.randn(N, generator=draw, dtype=torch.float64)
    labels_N = 70 + 5 * raw_N + 8 * torch.randn(N, generator=draw, dtype=torch.float64)
    labels_N[3] = labels_N[7]
    return raw_N, labels_N


def by_definition(kind: str, raw_N: Tensor, labels_N: Tensor, scale: float, temperature: float) -> Tensor:
    """The loss, written down once more."""
    if kind == "mse":
        return (raw_N - labels_N).pow(2).mean() / scale
    if kind == "spearman":
        std = raw_N.detach().std()
        raw_N = torch.stack([(1 / (1 + ((raw_N - own) / (temperature * std)).exp())).sum() for own in raw_N])
        values = labels_N.numpy()
        labels_N = torch.tensor([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])
    return -torch.corrcoef(torch.stack([raw_N, labels_N]))[0, 1]


def whole(kind: Any, raw: Sequence[Tensor], labels: Sequence[Tensor], **options: float) -> tuple[float, Tensor]:
    value, slopes = loss_gradient(kind, raw, labels, **options)
    return value, torch.cat(slopes)


# --------------------------------------------------------------------------------------------------------- the gradient


@every_kind
def test_value_and_slopes_are_those_of_the_loss(kind: str) -> None:
    raw_N, labels_N = drawn()
    value, slope_N = whole(kind, [raw_N], [labels_N], scale=30.0, temperature=0.4)
    raw_N.requires_grad_(True)
    loss = by_definition(kind, raw_N, labels_N, 30.0, 0.4)
    (wanted_N,) = torch.autograd.grad(loss, raw_N)
    assert value == pytest.approx(loss.item(), abs=1e-12)
    assert torch.allclose(slope_N / N, wanted_N, atol=1e-12) and wanted_N.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_autograd_agrees_with_differences(kind: str) -> None:
    raw_N, labels_N = drawn(1)
    spread = raw_N.std()  # is held fast in the temperature

    def loss(given_N: Tensor) -> Tensor:
        if kind == "pearson":
            return negative_pearson(given_N, labels_N)
        return negative_smooth_spearman(given_N, labels_N, 0.4 * float(spread / given_N.detach().std()))

    assert torch.autograd.gradcheck(loss, raw_N.requires_grad_(True))


def test_pearson_is_that_of_numpy() -> None:
    raw_N, labels_N = drawn(2)
    wanted = -np.corrcoef(raw_N.numpy(), labels_N.numpy())[0, 1]
    assert negative_pearson(raw_N, labels_N).item() == pytest.approx(wanted, abs=1e-12)
    assert whole("pearson", [1e-4 * raw_N - 3], [labels_N])[0] == pytest.approx(wanted, abs=1e-9)
    assert whole("pearson", [-raw_N], [labels_N])[0] == pytest.approx(-wanted, abs=1e-12)


def test_the_squared_error_is_in_variances() -> None:
    raw_N, labels_N = drawn(2)
    value, slope_N = whole("mse", [raw_N], [labels_N], scale=25.0)
    assert value == pytest.approx(np.square((raw_N - labels_N).numpy()).mean() / 25)
    assert slope_N.tolist() == pytest.approx((2 * (raw_N - labels_N) / 25).tolist())


def test_smooth_ranks_become_ranks_as_the_temperature_falls() -> None:
    raw_N, labels_N = drawn(3)
    wanted = -spearmanr(raw_N.numpy(), labels_N.numpy()).statistic
    found = [negative_smooth_spearman(raw_N, labels_N, t).item() for t in (3.0, 0.3, 1e-4)]
    assert abs(found[1] - wanted) < abs(found[0] - wanted)
    assert found[2] == pytest.approx(wanted, abs=1e-6)
    monotone_N = raw_N.exp()
    assert negative_smooth_spearman(monotone_N, labels_N, 1e-5).item() == pytest.approx(wanted, abs=1e-6)


def test_equal_scores_have_equal_ranks_and_equal_slopes() -> None:
    raw_N, labels_N = drawn(4)
    raw_N[3] = raw_N[7]
    wanted = -spearmanr(raw_N.numpy(), labels_N.numpy()).statistic
    assert negative_smooth_spearman(raw_N, labels_N, 1e-4).item() == pytest.approx(wanted, abs=1e-6)
    _, slope_N = whole("spearman", [raw_N], [labels_N], temperature=0.5)  # and labels 3 and 7 are equal, too
    assert slope_N[3].item() == pytest.approx(slope_N[7].item(), abs=1e-12)


@pytest.mark.parametrize("value", [0.1, 87.3, 1e8 / 3])
@pytest.mark.parametrize("constant", ["raw", "labels"])
@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_what_is_constant_has_no_correlation_and_gives_no_gradient(kind: str, constant: str, value: float) -> None:
    raw_N, labels_N = (torch.cat([part] * 6) for part in drawn())  # sums of many equal numbers are rounded
    (raw_N if constant == "raw" else labels_N).fill_(value)
    found, slope_N = whole(kind, [raw_N.float()], [labels_N])
    assert (found, slope_N.abs().max().item()) == (0.0, 0.0)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_a_single_sentence_has_no_correlation(kind: str) -> None:
    value, slope_N = whole(kind, [torch.tensor([0.3])], [torch.tensor([50.0])])
    assert (value, slope_N.tolist()) == (0.0, [0.0])


# ------------------------------------------------------------------------------------------------------------- the cuts


@every_kind
def test_micro_batches_are_one_batch(kind: str) -> None:
    raw_N, labels_N = drawn(5)
    value, slope_N = whole(kind, [raw_N], [labels_N], scale=30.0)
    cut, slopes = loss_gradient(kind, [raw_N[rows] for rows in CUT], [labels_N[rows] for rows in CUT], scale=30.0)
    assert cut == pytest.approx(value, abs=1e-12)
    assert [len(part) for part in slopes] == [len(rows) for rows in CUT]
    assert torch.allclose(torch.cat(slopes), slope_N, atol=1e-12)


@every_kind
def test_slopes_have_the_type_of_their_scores_and_no_graph(kind: str) -> None:
    raw_N, labels_N = drawn(5)
    given = raw_N.float().requires_grad_(True)
    with torch.no_grad():
        _, [slope_N] = loss_gradient(kind, [given], [labels_N])
    assert slope_N.dtype == torch.float32 and not slope_N.requires_grad and given.grad is None
    assert slope_N.abs().max() > 0


# ---------------------------------------------------------------------------------------------------------- two workers

WORKER = """
import json, sys, torch
from tests.test_correlation_losses import CUT, KINDS, drawn
from energymt.correlation_losses import loss_gradient
rank, world = int(sys.argv[1]), 2
torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:" + sys.argv[2], rank=rank, world_size=world)
found = {}
for kind in KINDS:
    for name, cut in (("cut", CUT), ("one", CUT[:1])):  # of a single micro-batch one worker gets none
        raw_N, labels_N = drawn(6)
        share = cut[rank::world]
        value, slopes = loss_gradient(kind, [raw_N[r] for r in share], [labels_N[r] for r in share], scale=30.0)
        found[kind + "-" + name] = [value, [part.tolist() for part in slopes]]
print(json.dumps(found))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_workers() -> list[dict[str, Any]]:
    """What each of two processes found for its own micro-batches."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(port)],
            cwd=Path(__file__).resolve().parent.parent,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    return [json.loads(out.splitlines()[-1]) for out, _ in printed]


@every_kind
@pytest.mark.parametrize("name", ["cut", "one"])
def test_two_workers_are_one(name: str, kind: Any, two_workers: list[dict[str, Any]]) -> None:
    raw_N, labels_N = drawn(6)
    cut = CUT if name == "cut" else CUT[:1]
    value, slopes = loss_gradient(kind, [raw_N[r] for r in cut], [labels_N[r] for r in cut], scale=30.0)
    for rank, found in enumerate(two_workers):
        theirs, parts = found[f"{kind}-{name}"]
        assert theirs == value, "bit by bit: all sum in the order in which micro-batches were dealt"
        assert len(parts) == len(slopes[rank::2])
        for part, wanted in zip(parts, slopes[rank::2], strict=True):
            assert part == wanted.tolist()
