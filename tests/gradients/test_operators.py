"""Value and Jacobian of every operator against ENGINE Table 1, and exact derivatives where nothing is approximated."""

from collections.abc import Callable

import pytest
import torch

from energymt import operators
from energymt.energies.likelihood import log_likelihood
from energymt.operators import BLOCK, OPERATORS, Noise, embed, perturbed, relax

B, T, V, D, EOS = 2, 3, 5, 4, 1
MASK = torch.tensor([[True, True, True], [True, True, False]])


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(B, T, V, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def noise() -> Noise:
    return Noise(seed=3, step=7, sentence_ids_B=torch.tensor([11, 12]))


@pytest.fixture(params=["one block", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCK, "cpu", B * T * V if request.param == "one block" else 1)
    monkeypatch.setattr(operators, "NARROWEST", V if request.param == "one block" else 2)


def likelihood_of(relaxed: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The formula of `log_likelihood`, over the dense value of an operator."""
    logp = scores.log_softmax(-1)
    tokens = (relaxed * logp[:, :T]).sum(-1).masked_fill(~MASK, 0.0).sum(1)
    return tokens + logp[torch.arange(B), MASK.sum(1), EOS]


def softmax_jacobian(z: torch.Tensor) -> torch.Tensor:
    q = z.softmax(-1)
    return torch.diag(q) - torch.outer(q, q)


@pytest.mark.parametrize("name", OPERATORS)
def test_value_and_jacobian_of_table_1(name: str, logits: torch.Tensor, noise: Noise) -> None:
    value = relax(name, logits, noise=noise)
    seen = perturbed(name, logits, noise).detach()
    soft, hard = seen.softmax(-1), torch.nn.functional.one_hot(seen.argmax(-1), V).double()
    assert torch.equal(value.detach(), hard if name in ("STL", "SG", "ST") else soft)
    for b in range(B):
        for t in range(T):
            expected = torch.eye(V, dtype=torch.float64) if name == "STL" else softmax_jacobian(seen[b, t])
            for v in range(V):
                (grad,) = torch.autograd.grad(value[b, t, v], logits, retain_graph=True)
                assert torch.allclose(grad[b, t], expected[v])
                assert grad.abs().sum() == pytest.approx(grad[b, t].abs().sum().item())


@pytest.mark.parametrize("name", ["SX", "GX"])
def test_soft_operators_pass_gradcheck(name: str, logits: torch.Tensor, noise: Noise) -> None:
    table = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(B, T + 1, V, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: relax(name, z, noise=noise), (logits,))
    assert torch.autograd.gradcheck(lambda z, e: embed(name, z, e, noise=noise), (logits, table))
    assert torch.autograd.gradcheck(lambda z, s: log_likelihood(name, z, s, MASK, EOS, noise=noise), (logits, scores))


@pytest.mark.parametrize("given", [False, True], ids=["argmax", "sampled"])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_block_forms_equal_the_dense_form(
    name: str, given: bool, logits: torch.Tensor, noise: Noise, blocks: None
) -> None:
    table = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(B, T + 1, V, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(V, (B, T)) if given else None
    dense = relax(name, logits, ids, noise)
    for fast, slow, other in (
        (embed(name, logits, table, ids, noise), dense @ table, table),
        (
            log_likelihood(name, logits, scores, MASK, EOS, ids, noise),
            likelihood_of(dense, scores),
            scores,
        ),
    ):
        assert torch.allclose(fast, slow)
        direction = torch.randn_like(slow)
        for left, right in zip(
            torch.autograd.grad(fast, (logits, other), direction, retain_graph=True),
            torch.autograd.grad(slow, (logits, other), direction, retain_graph=True),
            strict=True,
        ):
            assert torch.allclose(left, right)


@pytest.mark.parametrize("name", OPERATORS)
def test_forbidden_tokens_get_no_mass_and_no_gradient(name: str, noise: Noise) -> None:
    base = torch.randn(B, T, V, dtype=torch.float64, requires_grad=True)
    forbidden = torch.tensor([True, False, False, True, False])  # not the end token
    logits = base.masked_fill(forbidden, float("-inf"))
    scores = torch.randn(B, T + 1, V, dtype=torch.float64).masked_fill(forbidden, float("-inf")).requires_grad_()
    assert (relax(name, logits, noise=noise)[..., forbidden] == 0).all()
    energy = log_likelihood(name, logits, scores, MASK, EOS, noise=noise).sum()
    grad, grad_scores = torch.autograd.grad(energy, (base, scores))
    assert torch.isfinite(energy) and torch.isfinite(grad).all() and torch.isfinite(grad_scores).all()
    assert (grad[..., forbidden] == 0).all()
    assert (grad[..., ~forbidden] != 0).any()


def test_noise_does_not_depend_on_how_the_batch_is_cut() -> None:
    whole = Noise(1, 2, torch.tensor([5, 9, 4])).gumbel(6, 0, 40)
    part = Noise(1, 2, torch.tensor([4, 5])).gumbel(3, 10, 20)
    assert torch.equal(part, whole[[2, 0], :3, 10:20])


@pytest.mark.parametrize("first", [0, 1, 4, 5])
def test_noise_of_later_positions_is_the_end_of_the_whole(first: int) -> None:
    noise = Noise(1, 2, torch.tensor([5, 9, 4]), stream=3)
    whole = noise.uniform(6, 10, 20, torch.float64)
    assert torch.equal(noise.uniform(6 - first, 10, 20, torch.float64, first=first), whole[:, first:])
    assert len(whole[0].unique()) == 60 and whole.min() > 0 and whole.max() < 1


def test_noise_is_gumbel_and_independent() -> None:
    drawn = Noise(1, 2, torch.arange(50)).gumbel(10, 0, 1000).flatten(0, 1)
    assert drawn.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert drawn.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.03)
    correlation = torch.corrcoef(drawn[:200]) - torch.eye(200)
    assert correlation.abs().max() < 0.17  # 5 standard errors of 1,000 draws
    neighbours = [
        Noise(2, 2, torch.arange(1)), Noise(1, 3, torch.arange(1)), Noise(1, 2, torch.arange(1), stream=1)
    ]  # fmt: skip
    for other in neighbours:
        pair = torch.stack([drawn[0], other.gumbel(1, 0, 1000)[0, 0]])
        assert torch.corrcoef(pair)[0, 1].abs() < 0.17


def test_a_noisy_operator_without_noise_is_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="Gumbel"):
        relax("SG", logits)


def saved_shapes(compute: Callable[[], torch.Tensor]) -> list[tuple[int, ...]]:
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(tuple(x.shape)), x)[1], lambda x: x):
        compute()
    return saved


@pytest.mark.parametrize("name", OPERATORS)
def test_no_one_hot_no_probability_and_no_noise_is_stored(name: str, logits: torch.Tensor, noise: Noise) -> None:
    table = torch.randn(V, D, dtype=torch.float64)
    scores = torch.randn(B, T + 1, V, dtype=torch.float64)
    assert saved_shapes(lambda: embed(name, logits, table, noise=noise)).count((B, T, V)) == 1  # the logits
    saved = saved_shapes(lambda: log_likelihood(name, logits, scores, MASK, EOS, noise=noise))
    assert saved.count((B, T, V)) == 1 and saved.count((B, T + 1, V)) == 1  # the logits and the teacher's


@pytest.mark.parametrize("name", OPERATORS)
def test_half_precision_is_close_to_single(name: str, noise: Noise) -> None:
    logits, table = torch.randn(B, T, V), torch.randn(V, D)
    scores = torch.randn(B, T + 1, V)
    ids = torch.randint(V, (B, T))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        z, s = logits.to(dtype).requires_grad_(), scores.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = embed(name, z, table, ids, noise).sum() + log_likelihood(name, z, s, MASK, EOS, ids, noise).sum()
        found.append((value.float(), *(grad.float() for grad in torch.autograd.grad(value, (z, s)))))
        assert z.dtype == dtype
    for exact, half in zip(*found, strict=True):
        assert torch.allclose(exact, half, atol=0.1, rtol=0.05)
