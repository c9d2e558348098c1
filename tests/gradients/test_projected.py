"""`embed_projected` against `operators.embed` over the dense logits: the same value and gradients, nothing V-sized, and
as few matrix products as it says.
"""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from energymt import chunked_logits, projected
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError
from energymt.operators import OPERATORS, Noise, embed
from energymt.operators import hard_ids_of as dense_hard_ids_of
from energymt.projected import embed_projected, hard_ids_of
from energymt.records import Prediction, Projection
from tests import tiny

B, T, V, H, D = 2, 3, 11, 4, 5
FORBIDDEN = [0, 1, 2, 3, 7]  # the first chunks hold nothing else
PARTS = ("hidden", "matrix", "bias", "table")
ASKED = {
    "hidden": ("hidden",),
    "all": PARTS,
    "all but hidden": PARTS[1:],
    "table": ("table",),
    "hidden, table": ("hidden", "table"),
    "bias": ("bias",),
}


@pytest.fixture
def noise() -> Noise:
    return Noise(seed=3, step=7, sentence_ids_B=torch.tensor([11, 12]))


@pytest.fixture(params=[2, 4, V], ids=["chunks of 2", "chunks of 4", "one chunk"])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(chunked_logits.WIDTH, "cpu", request.param)
    return request.param


def parts_of(asked: tuple[str, ...] = PARTS, forbidden: bool = True) -> dict[str, torch.Tensor]:
    """Random hidden states, output matrix, bias and table; the `asked` ones require a gradient."""
    shapes = {"hidden": (B, T, H), "matrix": (V, H), "bias": (V,), "table": (V, D)}
    parts = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    if forbidden:
        parts["bias"][FORBIDDEN] = float("-inf")
    return {name: part.requires_grad_(name in asked) for name, part in parts.items()}


def projection_of(parts: dict[str, torch.Tensor]) -> Projection:
    return Projection(parts["hidden"], parts["matrix"], parts["bias"])


def allowed_ids() -> torch.Tensor:
    return torch.tensor([token for token in range(V) if token not in FORBIDDEN])[torch.randint(V - 5, (B, T))]


@pytest.mark.parametrize("given", [False, True], ids=["argmax", "sampled"])
@pytest.mark.parametrize("name, asked", list(product(OPERATORS, ASKED)))
def test_it_equals_the_dense_path(name: str, asked: str, given: bool, noise: Noise, width: int) -> None:
    parts = parts_of(ASKED[asked])
    ids = allowed_ids() if given else None
    fast = embed_projected(name, projection_of(parts), parts["table"], ids, noise)
    slow = embed(name, projection_of(parts).logits(), parts["table"], ids, noise)
    assert torch.allclose(fast, slow)
    wanted = [part for part in parts.values() if part.requires_grad]
    direction = torch.randn_like(slow)
    for left, right in zip(
        torch.autograd.grad(fast, wanted, direction), torch.autograd.grad(slow, wanted, direction), strict=True
    ):
        assert right.isfinite().all()
        assert torch.allclose(left, right, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_it_needs_no_bias(name: str, noise: Noise, width: int) -> None:
    parts = parts_of(("hidden", "matrix"))
    bare = Projection(parts["hidden"], parts["matrix"])
    fast = embed_projected(name, bare, parts["table"], None, noise)
    slow = embed(name, bare.logits(), parts["table"], None, noise)
    assert torch.allclose(fast, slow)
    wanted = (parts["hidden"], parts["matrix"])
    for left, right in zip(*(torch.autograd.grad(value.square().sum(), wanted) for value in (fast, slow)), strict=True):
        assert torch.allclose(left, right, atol=1e-12)


@pytest.mark.parametrize("asked", [PARTS, ("hidden",)], ids=["all", "hidden"])
@pytest.mark.parametrize("name", ["SX", "GX"])
def test_soft_operators_pass_gradcheck(
    name: str, asked: tuple[str, ...], noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunked_logits.WIDTH, "cpu", 4)
    parts = parts_of(asked, forbidden=False)

    def value(*given: torch.Tensor) -> torch.Tensor:
        hidden, matrix, bias, table = given
        return embed_projected(name, Projection(hidden, matrix, bias), table, None, noise)

    assert torch.autograd.gradcheck(value, tuple(parts.values()))


@pytest.mark.parametrize("name", OPERATORS)
def test_forbidden_tokens_get_no_gradient(name: str, noise: Noise, width: int) -> None:
    parts = parts_of()
    value = embed_projected(name, projection_of(parts), parts["table"], None, noise)
    grad_matrix, grad_bias = torch.autograd.grad(value.square().sum(), (parts["matrix"], parts["bias"]))
    assert (grad_matrix[FORBIDDEN] == 0).all() and (grad_bias[FORBIDDEN] == 0).all()
    assert (grad_bias != 0).any()


def test_the_noise_is_that_of_the_dense_path_and_of_no_other_step(noise: Noise, width: int) -> None:
    parts = parts_of(())
    flat = Projection(torch.zeros_like(parts["hidden"]), parts["matrix"], parts["bias"])  # the noise alone decides
    found = hard_ids_of("SG", flat, noise=noise)
    assert torch.equal(found, dense_hard_ids_of("SG", flat.logits(), None, noise))
    other = Noise(noise.seed, noise.step + 1, noise.sentence_ids_B)
    assert not torch.equal(found, hard_ids_of("SG", flat, noise=other))


def test_a_noisy_operator_without_noise_and_an_unknown_one_are_refused() -> None:
    parts = parts_of()
    with pytest.raises(ValueError, match="Gumbel"):
        embed_projected("GX", projection_of(parts), parts["table"])
    with pytest.raises(ConfigurationError, match="Unknown operator"):
        embed_projected("XX", projection_of(parts), parts["table"])


@pytest.mark.parametrize("asked", ["hidden", "all"])
@pytest.mark.parametrize("name", OPERATORS)
def test_half_precision_is_close_to_single(name: str, asked: str, noise: Noise, width: int) -> None:
    parts = {key: part.detach().float().requires_grad_(key in ASKED[asked]) for key, part in parts_of().items()}
    wanted, ids = [part for part in parts.values() if part.requires_grad], allowed_ids()
    found = []
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            value = embed_projected(name, projection_of(parts), parts["table"], ids, noise)
        found.append((value.float(), *torch.autograd.grad(value.float().sum(), wanted)))
    for exact, rounded in zip(*found, strict=True):
        assert exact.dtype == rounded.dtype
        assert torch.allclose(exact, rounded, atol=0.15, rtol=0.05)


@pytest.mark.parametrize("asked", ["hidden", "all"])
@pytest.mark.parametrize("name", ["SX", "ST"])
def test_half_precision_keeps_the_small_gradient_of_a_sure_translator(name: str, asked: str, width: int) -> None:
    """p is near a corner, so a − ā is small where p is not: an ā that is rounded apart from a would drown it."""
    ids = torch.randint(V, (B, T))
    parts = {
        "hidden": 8 * torch.nn.functional.one_hot(ids, V).float(),  # the logits
        "matrix": torch.eye(V),
        "bias": torch.zeros(V),
        "table": torch.randn(V, D) + 1,  # what all rows share is in ā, and in no gradient
    }
    parts = {key: part.requires_grad_(key in ASKED[asked]) for key, part in parts.items()}
    direction = torch.randn(B, T, D).bfloat16().float()
    found = []
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            value = embed_projected(name, projection_of(parts), parts["table"])
        found.append(torch.autograd.grad(value.float(), parts["hidden"], direction)[0])
    exact, rounded = found
    assert 0 < exact.abs().max() < 0.1
    assert (rounded - exact).norm() < 0.02 * exact.norm()


class Sizes(TorchDispatchMode):
    """The most elements of a tensor that some operation makes, memory of `known` tensors left out."""

    def __init__(self, known: tuple[torch.Tensor, ...]):
        super().__init__()
        self.known, self.largest, self.operations = {part.untyped_storage().data_ptr() for part in known}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else [out]:
            if isinstance(part, torch.Tensor) and part.untyped_storage().data_ptr() not in self.known:
                self.largest, self.operations = max(self.largest, part.numel()), self.operations + 1
        return out


def long_parts(dtype: torch.dtype = torch.float32) -> tuple[Projection, torch.Tensor]:
    """A vocabulary of 1,000, in chunks of 8."""
    bias = torch.randn(1000, dtype=dtype)
    bias[:20] = float("-inf")
    hidden = torch.randn(B, T, H, dtype=dtype, requires_grad=True)
    return Projection(hidden, torch.randn(1000, H, dtype=dtype), bias), torch.randn(1000, D, dtype=dtype)


@pytest.mark.parametrize("name", OPERATORS)
def test_nothing_of_the_size_of_the_vocabulary_is_saved_or_made(
    name: str, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunked_logits.WIDTH, "cpu", 8)
    projection, table = long_parts()
    known = (projection.matrix_VH, projection.bias_V, table)
    saved: list[torch.Tensor] = []
    with Sizes(known) as sizes:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x), x)[1], lambda x: x):
            value = embed_projected(name, projection, table, None, noise)
        forward = sizes.operations
        value.square().sum().backward()
    assert forward > 0 and sizes.operations > forward
    assert sizes.largest < 1000
    assert projection.hidden_BTH.grad.abs().sum() > 0
    sizes = [part.numel() for part in saved if part.untyped_storage().data_ptr() not in {k.data_ptr() for k in known}]
    assert 0 < max(sizes) < 1000


def test_the_argmax_of_a_projection_makes_nothing_of_the_size_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunked_logits.WIDTH, "cpu", 8)
    projection, _ = long_parts()
    mask_BT = torch.ones(B, T, dtype=torch.bool)
    prediction = Prediction(None, mask_BT, projection=projection)
    with Sizes(()) as sizes:
        ids_BT = projection.argmax()
    assert sizes.largest < 1000 and sizes.operations > 0
    assert torch.equal(ids_BT, projection.logits().argmax(-1))
    assert torch.equal(prediction.argmax().hard_ids_BT, ids_BT)
    corner_BTV = torch.nn.functional.one_hot(ids_BT, 1000).float()
    assert prediction.argmax().logits_BTV is None
    assert torch.equal(prediction.argmax().dense_logits().softmax(-1), corner_BTV)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 250])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_projection_puts_all_mass_on_any_token(size: int, dtype: torch.dtype) -> None:
    ids = torch.arange(size).unsqueeze(0)
    probs = Projection.of_ids(ids, size, dtype).logits().softmax(-1)
    assert torch.equal(probs[0], torch.eye(size, dtype=dtype))


def products_of(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], object]) -> float:
    """Multiplications in products, in those of one [N, D] with a [V, D]; here H = D."""
    done: list[int] = []

    def counted(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        done.append(left.numel() * right.shape[1])
        return left @ right

    with monkeypatch.context() as patch:
        patch.setattr(chunked_logits, "product", counted)
        patch.setattr(projected, "product", counted)
        compute()
    return sum(done) / (B * T * V * D)


@pytest.mark.parametrize(
    "name, given, learns, forward, backward",
    [
        ("SX", False, False, 2, 3), ("SX", False, True, 2, 4), ("GX", False, False, 2, 3),
        ("ST", False, False, 1, 4), ("ST", True, False, 0, 4), ("ST", False, True, 2, 4), ("SG", False, False, 1, 4),
        ("STL", False, False, 1, 2), ("STL", False, True, 1, 3), ("STL", True, False, 0, 2),
    ],
)  # fmt: skip
def test_as_few_products_as_promised(name, given, learns, forward, backward, noise, monkeypatch) -> None:
    hidden, matrix, table = torch.randn(B, T, D, requires_grad=True), torch.randn(V, D), torch.randn(V, D)
    projection = Projection(hidden, matrix.requires_grad_(learns))
    found: list[torch.Tensor] = []
    ids = allowed_ids() if given else None
    done = products_of(monkeypatch, lambda: found.append(embed_projected(name, projection, table, ids, noise)))
    assert done == pytest.approx(forward)
    assert products_of(monkeypatch, lambda: found[0].sum().backward()) == pytest.approx(backward)


def test_without_gradients_a_hard_operator_looks_for_the_argmax_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of()
    with torch.no_grad():
        done = products_of(monkeypatch, lambda: embed_projected("ST", projection_of(parts), parts["table"]))
    assert done == pytest.approx(H / D)


def test_an_energy_is_that_of_the_dense_prediction() -> None:
    teacher = tiny.recurrent().double()
    source, mask_BT = tiny.source_of([[6, 7], [8]], teacher.vocabulary), torch.ones(B, T, dtype=torch.bool)
    hidden = torch.randn(B, T, H, dtype=torch.float64, requires_grad=True)
    projection = Projection(hidden, torch.randn(tiny.SIZE, H, dtype=torch.float64))
    energy = AutoregressiveEnergy(teacher, "SX", "SX")
    prediction = Prediction(None, mask_BT, projection=projection)
    sparse_B, dense_B = energy(source, prediction), energy(source, Prediction(projection.logits(), mask_BT))
    assert torch.allclose(sparse_B, dense_B)
    assert torch.allclose(*(torch.autograd.grad(value.sum(), hidden)[0] for value in (sparse_B, dense_B)))
    ids_BT = projection.argmax()
    assert torch.allclose(energy(source, prediction.argmax()), energy.discrete(source, ids_BT, mask_BT))


def test_a_prediction_is_dense_or_projected() -> None:
    mask_BT = torch.ones(B, T, dtype=torch.bool)
    projection, _ = long_parts()
    with pytest.raises(ValueError, match="either logits or a projection"):
        Prediction(None, mask_BT)
    with pytest.raises(ValueError, match="either logits or a projection"):
        Prediction(projection.logits(), mask_BT, projection=projection)
    assert torch.equal(Prediction(None, mask_BT, projection=projection).dense_logits(), projection.logits())
