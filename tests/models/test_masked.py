"""The CMLM: what its positions see, and what the length token is for."""

import pytest
import torch

from energymt.models.masked import Attention
from tests import tiny

MASK = torch.ones(1, 4, dtype=torch.bool)


def logits_for(model, tokens):
    memory = model.encode(tiny.source_of([[6, 7, 8]], model.vocabulary))
    return model.predict(memory, torch.tensor([tokens]), MASK)[0]


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 3])
def test_every_position_sees_every_observed_token(place: int) -> None:
    model = tiny.masked()
    tokens = [4, 4, 4, 4]
    other = [*tokens]
    other[place] = 9
    words = slice(5, None)
    change_T = (logits_for(model, tokens)[:, words] - logits_for(model, other)[:, words]).abs().amax(-1)
    assert (change_T > 1e-3).all()


@torch.no_grad()
def test_positions_are_told_apart() -> None:
    logits_TV = logits_for(tiny.masked(), [4, 4, 4, 4])[:, 5:]
    assert torch.pdist(logits_TV).min() > 1e-3


@torch.no_grad()
def test_the_length_token_predicts_the_length_and_nothing_else() -> None:
    model = tiny.masked()
    source = tiny.source_of([[6, 7, 8]], model.vocabulary)
    before = model.encode(source)
    assert before.states_BSD.shape[1] == source.ids_BS.shape[1]
    assert before.length_logp_BL.shape == (1, model.longest + 1)
    model.length.lengths.weight.mul_(2.0)
    after = model.encode(source)
    assert torch.equal(before.states_BSD, after.states_BSD)
    assert not torch.equal(before.length_logp_BL[:, 1:], after.length_logp_BL[:, 1:])


@torch.no_grad()
def test_attention_is_that_of_pytorch() -> None:
    ours, theirs = Attention(8, 2), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())
    x_BTD, other_BSD = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask_BS = torch.arange(5) < torch.tensor([[5], [2]])
    wanted, _ = theirs(x_BTD, other_BSD, other_BSD, key_padding_mask=~mask_BS)
    assert torch.allclose(ours(x_BTD, other_BSD, mask_BS[:, None, None]), wanted, atol=1e-6)


@torch.no_grad()
def test_a_vocabulary_without_a_mask_token_gets_a_row_for_it() -> None:
    model = tiny.masked(tiny.Numbers(mask=tiny.SIZE))
    assert model.embedding.weight.shape[0] == tiny.SIZE + 1
    logits_TV = logits_for(model, [tiny.SIZE] * 4)
    assert logits_TV.shape == (4, tiny.SIZE)
    assert logits_TV[:, 4].isfinite().all()  # an ordinary word here


@torch.no_grad()
def test_the_longest_sentences_fit() -> None:
    model = tiny.masked()
    words = [[7] * (model.longest - 1)]
    memory = model.encode(tiny.source_of(words, model.vocabulary))
    mask_BT = torch.ones(1, model.longest, dtype=torch.bool)
    assert model.predict(memory, model.unseen(mask_BT), mask_BT).shape == (1, model.longest, tiny.SIZE)
