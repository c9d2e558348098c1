"""The projection of every family stands for its logits: value, gradients, padding; and what does not is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from energymt.errors import ConfigurationError
from energymt.models.transformer import TransformerTranslator, start_tokens
from energymt.models.translator import AutoregressiveModel
from energymt.records import Projection
from tests import tiny

SOURCES = [[6, 7, 8], [9], [10, 11, 12, 13, 6]]
TARGETS = [[8, 9], [10, 11, 12, 7], []]

families = pytest.mark.parametrize("family", tiny.TEACHERS)


def close(left: Tensor, right: Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-5, atol=1e-5)


def projection_of(model: AutoregressiveModel, width: int = 0) -> Projection:
    target_BT, mask_BT = tiny.padded(TARGETS, model.vocabulary.pad_id, width)
    return model.decode_projection(model.encode(tiny.source_of(SOURCES, model.vocabulary)), target_BT, mask_BT)


def logits_of(model: AutoregressiveModel, width: int = 0) -> Tensor:
    target_BT, mask_BT = tiny.padded(TARGETS, model.vocabulary.pad_id, width)
    return model.decode(model.encode(tiny.source_of(SOURCES, model.vocabulary)), target_BT, mask_BT)


def real(width: int) -> Tensor:
    """The positions of words and end tokens, [B, U]."""
    return torch.arange(width + 1) <= torch.tensor([len(target) for target in TARGETS])[:, None]


@families
@torch.no_grad()
def test_its_logits_are_those_of_decoding(family: str) -> None:
    model = tiny.teacher(family)
    projection, logits_BUV = projection_of(model), logits_of(model)
    assert projection.hidden_BTH.shape[:2] == (3, 5) and projection.matrix_VH.shape[0] == tiny.SIZE
    assert close(projection.logits(), logits_BUV)
    assert torch.equal(projection.argmax()[real(4)], logits_BUV.argmax(-1)[real(4)])
    assert logits_BUV[real(4)].std(0).min() > 0.01


@families
def test_gradients_are_those_through_decoding(family: str) -> None:
    """Also those of the output matrix, which may be the embeddings, and of the bias, of whatever kind it is."""

    def gradients(logits_of_model: Callable[[AutoregressiveModel], Tensor]) -> dict[str, Tensor]:
        model = tiny.teacher(family)
        bias = dict(model.named_buffers()).get("network.final_logits_bias")
        leaves = dict(model.named_parameters()) | ({} if bias is None else {"bias": bias.requires_grad_()})
        logits_BUV = logits_of_model(model)
        torch.manual_seed(3)
        (logits_BUV.tanh() * torch.randn_like(logits_BUV))[real(4)].sum().backward()
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    wanted = gradients(logits_of)
    found = gradients(lambda model: projection_of(model).logits())
    assert found.keys() == wanted.keys() and len(wanted) > 10
    assert any("bias" in name for name in wanted) or family in ("m2m100", "t5-tied", "t5-untied")
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@families
@torch.no_grad()
def test_padding_changes_no_hidden_state(family: str) -> None:
    model = tiny.teacher(family)
    narrow, wide = projection_of(model).hidden_BTH, projection_of(model, width=9).hidden_BTH
    assert wide.shape[1] == 10 and close(narrow[real(4)], wide[:, :5][real(4)])


@pytest.mark.parametrize("family", ["recurrent", "bart", "t5-tied"])
@torch.no_grad()
def test_dropout_is_the_same_where_its_seed_is(family: str) -> None:
    model = tiny.recurrent(dropout=0.5) if family == "recurrent" else tiny.teacher(family)
    model.train()
    if family != "recurrent":
        projection_of(model)  # measures, which takes no random number and leaves the model as it was
        assert model.training and all(module.training for module in model.modules())
    made = []
    for make in (lambda: projection_of(model).logits(), lambda: logits_of(model), lambda: logits_of(model)):
        torch.manual_seed(9 if len(made) < 2 else 10)
        made.append(make())
    assert close(made[0], made[1]) and not close(made[1], made[2])


@pytest.mark.parametrize(
    "family, scale", [("marian", 1.0), ("bart", 1.0), ("mbart", 1.0), ("m2m100", 1.0), ("t5-tied", 8**-0.5)]
)
def test_the_scale_of_hidden_states_is_measured_once(family: str, scale: float) -> None:
    model = tiny.teacher(family)
    assert model.hidden_scale is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projection_of(model)
    assert model.hidden_scale == pytest.approx(scale)
    model.hidden_scale = 3.0
    assert not close(projection_of(model).logits(), logits_of(model))


def test_a_network_that_makes_its_logits_in_another_way_is_refused() -> None:
    network, vocabulary, code = tiny.network("bart")
    network.lm_head.register_forward_hook(lambda module, args, output: 2.0 * output)
    model = TransformerTranslator(network, vocabulary, start_tokens(network, code)).eval()
    with pytest.raises(ConfigurationError, match=r"BartForConditionalGeneration makes its logits .* off"):
        projection_of(model)
    assert logits_of(model).isfinite().all()  # for all else it serves


def test_rows_beyond_the_vocabulary_are_left_out() -> None:
    network, _, _ = tiny.network("marian")
    model = TransformerTranslator(network, tiny.Numbers(13, pad=0, bos=0, eos=1, unk=2), (0,)).eval()
    memory = model.encode(tiny.source_of([[6, 7]], model.vocabulary))
    target = torch.tensor([[8, 9]]), torch.ones(1, 2, dtype=torch.bool)
    projection = model.decode_projection(memory, *target)
    assert projection.matrix_VH.shape == (13, 8) and projection.bias_V is not None and len(projection.bias_V) == 13
    assert close(projection.logits(), model.decode(memory, *target))
