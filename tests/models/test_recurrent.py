"""The BiLSTM against PyTorch's packed one, the attention by hand, and where the tagger reads."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from energymt.models.recurrent import BiLSTM, reverse
from tests import tiny


def test_reverse_leaves_padding_at_the_end() -> None:
    x_BTD = torch.arange(8.0).view(2, 4, 1)
    assert reverse(x_BTD, torch.tensor([3, 4]))[..., 0].tolist() == [[2, 1, 0, 3], [7, 6, 5, 4]]


def test_the_bilstm_is_that_of_pytorch_on_packed_sentences() -> None:
    ours = BiLSTM(width=3, hidden=4, layers=2, dropout=0.0)
    theirs = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for layer, (ahead, back) in enumerate(zip(ours.forwards, ours.backwards, strict=True)):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(theirs, f"{name}_l{layer}").copy_(getattr(ahead, f"{name}_l0"))
                getattr(theirs, f"{name}_l{layer}_reverse").copy_(getattr(back, f"{name}_l0"))
    x_BTD, lengths = torch.randn(3, 5, 3), torch.tensor([5, 2, 4])
    mask_BT = torch.arange(5) < lengths[:, None]
    packed, _ = theirs(pack_padded_sequence(x_BTD, lengths, batch_first=True, enforce_sorted=False))
    wanted_BTD, _ = pad_packed_sequence(packed, batch_first=True)
    assert torch.allclose(ours(x_BTD, mask_BT)[mask_BT], wanted_BTD[mask_BT], atol=1e-6)


@torch.no_grad()
def test_the_attention_of_a_source_of_one_token_is_that_token() -> None:
    model = tiny.recurrent()
    memory = model.encode(tiny.source_of([[]], model.vocabulary, width=4))
    hidden_BUD = torch.randn(1, 2, 7)
    combined = model.combine(torch.cat([hidden_BUD, memory.states_BSD[:, :1].expand(1, 2, -1)], dim=-1)).tanh()
    wanted_BUV = combined @ model.embedding_VD.T + model.bias
    assert torch.allclose(model._logits(memory, hidden_BUD), wanted_BUV, atol=1e-6)


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    model = tiny.recurrent(dropout=0.5)
    source = tiny.source_of([[6, 7]], model.vocabulary)
    target_BT, mask_BT = tiny.padded([[8, 9]], 0)

    def logits():
        return model.decode(model.encode(source), target_BT, mask_BT)

    assert torch.equal(logits(), logits())
    model.train()
    assert not torch.equal(logits(), logits())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_frozen_teacher_on_cuda_gives_gradients_to_its_input() -> None:
    model = tiny.recurrent(dropout=0.5).requires_grad_(False).cuda()
    memory = model.encode(tiny.source_of([[6, 7]], model.vocabulary).to(model.device))
    emb_BTD = torch.randn(1, 2, 6, device="cuda", requires_grad=True)
    model.decode_soft(memory, emb_BTD, torch.ones(1, 2, dtype=torch.bool, device="cuda")).sum().backward()
    assert emb_BTD.grad.abs().sum() > 0


def test_the_dropout_between_decoder_layers_follows_the_mode() -> None:
    model = tiny.recurrent(dropout=0.5)
    assert (model.decoder.dropout, model.decoder.training) == (0.0, True)
    model.train()
    assert model.decoder.dropout == 0.5
    model.eval()
    assert model.decoder.dropout == 0.0


@pytest.mark.parametrize("source, target", [(3, 7), (7, 3), (4, 4), (5, 1)])
def test_position_t_of_the_tagger_reads_source_token_t_s_over_t(source: int, target: int) -> None:
    model = tiny.tagger()
    read: list[torch.Tensor] = []
    model.tagger.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    memory = model.encode(tiny.source_of([list(range(6, 6 + source - 1))], model.vocabulary, width=9))
    _, mask_BT = tiny.padded([[0] * target], 0, width=8)
    model.predict(memory, model.unseen(mask_BT), mask_BT)
    places = [t * source // target for t in range(target)]
    assert torch.equal(read[0][0, :target], memory.states_BSD[0, places])


@torch.no_grad()
def test_the_tagger_does_not_look_at_target_tokens() -> None:
    model = tiny.tagger()
    memory = model.encode(tiny.source_of([[6, 7, 8]], model.vocabulary))
    mask_BT = torch.ones(1, 4, dtype=torch.bool)
    unseen, seen = model.unseen(mask_BT), torch.tensor([[9, 10, 4, 4]])
    assert torch.equal(model.predict(memory, unseen, mask_BT), model.predict(memory, seen, mask_BT))
