"""Log-probabilities from hidden states against those from logits: the same values and gradients, nothing V-sized."""

import pytest
import torch

from energymt import chunked_logits
from energymt.losses import cross_entropy
from energymt.policy import token_log_probs
from energymt.projected_log_probs import log_probs_projected
from energymt.records import Projection
from tests.gradients.test_projected import Sizes

B, T, V, H = 2, 4, 11, 5
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])
FORBIDDEN = [0, 1, 2, 3, 7]  # the first chunks hold nothing else
PARTS = ("hidden", "matrix", "bias")
ASKED = {"all": PARTS, "hidden": ("hidden",), "matrix": ("matrix",), "bias": ("bias",), "all but hidden": PARTS[1:]}
CASES = [(asked, bias) for asked in ASKED for bias in ("forbids", "plain", "none") if (asked, bias) != ("bias", "none")]


@pytest.fixture(params=[1, 4, V, 50], ids=lambda width: f"chunks of {width}")
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(chunked_logits.WIDTH, "cpu", request.param)
    return request.param


def parts_of(
    asked: tuple[str, ...] = PARTS, bias: str = "forbids", dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """Random hidden states, output matrix and bias; the `asked` ones require a gradient."""
    parts = {"hidden": torch.randn(B, T, H), "matrix": torch.randn(V, H), "bias": torch.randn(V)}
    if bias == "forbids":
        parts["bias"][FORBIDDEN] = float("-inf")
    elif bias == "none":
        del parts["bias"]
    return {name: part.to(dtype).requires_grad_(name in asked) for name, part in parts.items()}


def projection_of(parts: dict[str, torch.Tensor]) -> Projection:
    return Projection(parts["hidden"], parts["matrix"], parts.get("bias"))


def targets_of(bias: str = "forbids") -> torch.Tensor:
    """On padding stands what no position may say."""
    allowed = torch.tensor([token for token in range(V) if token not in FORBIDDEN or bias != "forbids"])
    return allowed[torch.randint(len(allowed), (B, T))].masked_fill(~MASK, V + 3)


def dense(projection: Projection, target: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The same in plain PyTorch, over logits."""
    logp_NV = projection.logits()[MASK].log_softmax(-1)
    stands_NV = logp_NV > float("-inf")
    mean_N = logp_NV.masked_fill(~stands_NV, 0.0).sum(-1) / stands_NV.sum(-1)
    wanted_N = (1 - smoothing) * logp_NV.gather(-1, target[MASK].unsqueeze(-1)).squeeze(-1) + smoothing * mean_N
    return wanted_N.new_zeros(MASK.shape).masked_scatter(MASK, wanted_N)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("asked, bias", CASES)
def test_it_equals_the_dense_path(asked: str, bias: str, smoothing: float, width: int) -> None:
    parts, target = parts_of(ASKED[asked], bias), targets_of(bias)
    wanted = [part for part in parts.values() if part.requires_grad]
    fast = log_probs_projected(projection_of(parts), target, MASK, smoothing)
    slow = dense(projection_of(parts), target, smoothing)
    torch.testing.assert_close(fast, slow)
    assert (fast[MASK] < 0).all() and not fast[~MASK].any()
    direction = torch.randn(B, T, dtype=torch.float64)
    pairs = zip(*(torch.autograd.grad(value, wanted, direction) for value in (fast, slow)), strict=True)
    for left, right in pairs:
        assert right.isfinite().all() and right.any()
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("bias", ["plain", "none"])
def test_it_passes_gradcheck(bias: str, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunked_logits.WIDTH, "cpu", 4)
    target = targets_of(bias)

    def value(hidden: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return log_probs_projected(Projection(hidden, matrix, bias), target, MASK, smoothing)

    assert torch.autograd.gradcheck(value, tuple(parts_of(bias=bias).values()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_take_a_projection_for_its_logits(smoothing: float, width: int) -> None:
    parts, target = parts_of(dtype=torch.float32), targets_of().masked_fill(~MASK, 0)
    projection, wanted = projection_of(parts), list(parts.values())
    pairs = [
        (
            cross_entropy(projection, target, MASK, smoothing),
            cross_entropy(projection.logits(), target, MASK, smoothing),
        ),
        (token_log_probs(projection, target, MASK), token_log_probs(projection.logits(), target, MASK)),
    ]
    for fast, slow in pairs:
        torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-6)
        found = [torch.autograd.grad(value.square().sum(), wanted, retain_graph=True) for value in (fast, slow)]
        for left, right in zip(*found, strict=True):
            torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-5)


def test_forbidden_tokens_get_no_gradient(width: int) -> None:
    parts = parts_of()
    value = log_probs_projected(projection_of(parts), targets_of(), MASK, 0.1)
    grad_matrix, grad_bias = torch.autograd.grad(value.sum(), (parts["matrix"], parts["bias"]))
    assert not grad_matrix[FORBIDDEN].any() and not grad_bias[FORBIDDEN].any()
    assert grad_bias.sum().item() == pytest.approx(0.0, abs=1e-12) and grad_bias.any()


def test_padding_is_not_read_and_gets_no_gradient(width: int) -> None:
    parts, target = parts_of(), targets_of()
    value = log_probs_projected(projection_of(parts), target, MASK, 0.1)
    with torch.no_grad():
        parts["hidden"][~MASK] = float("nan")
    assert torch.equal(log_probs_projected(projection_of(parts), target, MASK, 0.1), value)
    (grad,) = torch.autograd.grad(
        log_probs_projected(projection_of(parts), target, MASK, 0.1),
        parts["hidden"],
        torch.full((B, T), float("nan")).where(~MASK, 1.0).double(),
    )
    assert not grad[~MASK].any() and grad[MASK].isfinite().all() and grad[MASK].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_real_position_there_is_no_loss_and_no_gradient(dtype: torch.dtype) -> None:
    parts = parts_of(dtype=dtype)
    loss = cross_entropy(projection_of(parts), targets_of(), torch.zeros_like(MASK), 0.1)
    assert loss.item() == 0.0
    assert not any(grad.any() for grad in torch.autograd.grad(loss, list(parts.values())))


def test_large_logits_do_not_overflow(width: int) -> None:
    parts = parts_of(("hidden",), dtype=torch.float32)
    parts = {name: 300 * part.detach() if name != "bias" else part for name, part in parts.items()}
    target = targets_of()
    value = log_probs_projected(projection_of(parts), target, MASK)
    assert value.abs().max() > 1e4
    torch.testing.assert_close(value, dense(projection_of(parts), target, 0.0))


@pytest.mark.parametrize("weights", ["bf16", "autocast"])
def test_half_precision_is_summed_in_float32(weights: str) -> None:
    """As `losses.cross_entropy` and `policy.token_log_probs` do with logits in half precision."""
    size, rows = 20_000, torch.randn(20_000, H)
    hidden, target = torch.randn(B, T, H), torch.randint(size, (B, T))
    given = [part.bfloat16() if weights == "bf16" else part for part in (hidden, rows)]
    given = [part.requires_grad_() for part in given]
    direction, found = torch.randn(B, T), []
    for dense_path in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights == "autocast"):
            projection = Projection(*given)
            said = projection.logits() if dense_path else projection
            values = token_log_probs(said, target, MASK), cross_entropy(said, target, MASK, 0.1)
        assert all(value.dtype == torch.float32 for value in values)
        found.append((*values, *torch.autograd.grad(values[0], given, direction)))
    for slow, fast in zip(*found, strict=True):
        assert slow.dtype == fast.dtype
        torch.testing.assert_close(fast, slow, rtol=2e-2, atol=2e-2)
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)  # both read the same rounded logits


def test_nothing_of_the_size_of_the_vocabulary_is_saved_or_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smoothing alone has one number a token."""
    monkeypatch.setitem(chunked_logits.WIDTH, "cpu", 8)
    size = 1000
    matrix, target = torch.randn(size, H), torch.randint(size, (B, T))
    hidden, saved = torch.randn(B, T, H, requires_grad=True), list[torch.Tensor]()
    for smoothing, most in ((0.0, size // 2), (0.1, size)):
        with Sizes((matrix,)) as sizes:
            with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x), x)[1], lambda x: x):
                value = log_probs_projected(Projection(hidden, matrix), target, MASK, smoothing)
            forward = sizes.operations
            value.sum().backward()
        assert sizes.operations > forward > 0
        assert sizes.largest <= most
    own = [part.numel() for part in saved if part.untyped_storage().data_ptr() != matrix.data_ptr()]
    assert 0 < max(own) < 100
