"""Prompt tuning: vectors before every source learn, and nothing else does; a finished model is a plain one."""

from pathlib import Path

import pytest
import torch

from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.models import load_translator
from energymt.models.prompts import PromptedEmbedding, without_prompts
from energymt.models.transformer import TransformerTranslator, start_tokens
from tests import tiny

TOKENS = 3
ROWS = [[7, 8, 9], [10], [11, 12, 6, 7, 8]]


@pytest.fixture(scope="module")
def vocabulary() -> SentencePieceVocabulary:
    return SentencePieceVocabulary.train(["a b c d e f g h i j k l m n o p"], 20, model_type="word")


def prompted(family: str) -> TransformerTranslator:
    """A teacher with a prompt that says something."""
    torch.manual_seed(1)
    model = tiny.teacher(family)
    assert isinstance(model, TransformerTranslator)
    model.learn_prompt(TOKENS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".prompt"):
                parameter.add_(torch.randn_like(parameter))
    return model.eval()


def logits(model: TransformerTranslator, rows: list[list[int]] = ROWS, width: int = 0) -> torch.Tensor:
    ids_BT, mask_BT = tiny.padded(rows, model.vocabulary.pad_id)
    with torch.no_grad():
        return model.decode(model.encode(tiny.source_of(rows, model.vocabulary, width)), ids_BT, mask_BT)


@pytest.mark.parametrize("family", tiny.NETWORKS)
def test_only_the_prompt_learns(family: str) -> None:
    model = prompted(family)
    batch = tiny.batch_of([(row, row) for row in ROWS], model.vocabulary)
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name.rpartition(".")[2] for name in learns] == ["prompt"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(learns.values(), lr=0.1, weight_decay=0.1)
    losses = []
    for _ in range(8):
        logits_BUV = model.decode(model.encode(batch.source), batch.target_BT, batch.target_mask_BT)
        loss = torch.nn.functional.cross_entropy(
            logits_BUV[:, :-1][batch.target_mask_BT], batch.target_BT[batch.target_mask_BT]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(learns)


@pytest.mark.parametrize("family", tiny.NETWORKS)
def test_the_saved_model_is_plain_and_says_the_same(family: str, vocabulary, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network, _, code = tiny.network(family)
    network.resize_token_embeddings(vocabulary.size)
    model = TransformerTranslator(network, vocabulary, start_tokens(network, code)).eval()
    plain = logits(model)
    model.learn_prompt(TOKENS)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1.0)
    said = logits(model)
    assert not torch.allclose(said, plain, atol=1e-3)
    model.save(tmp_path)
    again = load_translator(tmp_path)
    assert isinstance(again, TransformerTranslator)
    assert again.prompt == TOKENS
    assert not any(isinstance(module, PromptedEmbedding) for module in again.modules())
    assert again.embedding_VD.requires_grad
    assert torch.allclose(logits(again), said, atol=1e-6)
    assert without_prompts(again.network) is again.network


def test_a_prompt_begins_as_words_and_takes_room() -> None:
    torch.manual_seed(3)
    model = tiny.scratch()
    longest = model.longest
    model.learn_prompt(TOKENS)
    (prompt,) = [parameter for name, parameter in model.named_parameters() if name.endswith(".prompt")]
    words_VD = model.embedding_VD[: model.vocabulary.size]
    assert all((words_VD == row).all(1).any() for row in prompt)
    assert longest is not None and model.longest == longest + 1 - TOKENS
    assert model.encode(tiny.source_of(ROWS, model.vocabulary)).mask_BS.sum(1).tolist() == [7, 5, 9]


@pytest.mark.parametrize("family", tiny.NETWORKS)
def test_padding_changes_nothing(family: str) -> None:
    model = prompted(family)
    assert torch.allclose(logits(model, width=9), logits(model), atol=1e-5)
    assert torch.allclose(logits(model, ROWS[:1])[0], logits(model)[0, : len(ROWS[0]) + 1], atol=1e-5)
