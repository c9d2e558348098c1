"""Adapters of a translator: nothing else learns, every way of decoding knows of them, and a saved model is plain."""

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from energymt.configuration import LoraSettings
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.errors import ConfigurationError
from energymt.models import load_translator
from energymt.models.adapters import ADAPTER, adapt_translator, without_adapters
from energymt.models.averaging import average_models
from energymt.models.transformer import TransformerTranslator, start_tokens
from tests import tiny

families = pytest.mark.parametrize("family", ["scratch", *tiny.NETWORKS])


@pytest.fixture(scope="module")
def words() -> SentencePieceVocabulary:
    syllables = [consonant + vowel for consonant in "bdgklm" for vowel in "aeiou"]
    return SentencePieceVocabulary.train([" ".join(syllables)] * 5, 40, model_type="word")


def plain(family: str, words: SentencePieceVocabulary | None = None) -> TransformerTranslator:
    """A translator; over `words`, which can be saved, if they are given."""
    if words is None or family == "scratch":
        model = tiny.scratch(words) if family == "scratch" else tiny.teacher(family)
        assert isinstance(model, TransformerTranslator)
        return model
    network, _, code = tiny.network(family)
    network.resize_token_embeddings(words.size)
    return TransformerTranslator(network, words, start_tokens(network, code)).eval()


def learn(model: TransformerTranslator, seed: int = 0) -> TransformerTranslator:
    """As if its adapters had learnt something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ADAPTER in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=draw))
    return model


def adapted(family: str, words: SentencePieceVocabulary | None = None, **settings) -> TransformerTranslator:
    """The same with adapters that have learnt."""
    model = plain(family, words)
    torch.manual_seed(1)
    adapt_translator(model.network, LoraSettings(**{"rank": 3, "alpha": 6.0, **settings}))
    return learn(model)


@torch.no_grad()
def outputs(model: TransformerTranslator) -> dict[str, Tensor]:
    """What each way of decoding says."""
    memory = model.encode(tiny.source_of([[6, 7], [8]], model.vocabulary))
    target_BT, mask_BT = tiny.padded([[9, 6], [8, 7]], 0)
    state, first_RV = model.start(memory)
    _, second_RV = model.step(state, target_BT[:, 0])
    return {
        "memory": memory.states_BSD,
        "decode": model.decode(memory, target_BT, mask_BT),
        "soft": model.decode_soft(memory, model.embedding_VD[target_BT], mask_BT),
        "steps": torch.stack([first_RV, second_RV], dim=1),
        "projection": model.decode_projection(memory, target_BT, mask_BT).logits(),
    }


def adapters(model: TransformerTranslator) -> set[str]:
    """The linear layers that have one, by the ends of their names."""
    return {name.split(".lora_")[0].rpartition(".")[2] for name in model.state_dict() if ADAPTER in name}


@families
def test_every_way_of_decoding_knows_of_them(family: str) -> None:
    before, found = outputs(plain(family)), outputs(adapted(family))
    for name, tensor in found.items():
        assert (tensor - before[name]).abs().max() > 1e-2, name
    for name in ("soft", "projection"):
        torch.testing.assert_close(found[name], found["decode"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["steps"], found["decode"][:, :2], rtol=1e-4, atol=1e-5)


@families
def test_they_change_nothing_until_they_learn_and_they_alone_learn(family: str) -> None:
    model, before = plain(family), outputs(plain(family))
    adapt_translator(model.network, LoraSettings(rank=2))
    for name, tensor in outputs(model).items():
        assert torch.equal(tensor, before[name]), name
    assert {ADAPTER in name for name, weight in model.named_parameters() if weight.requires_grad} == {True}
    assert all(weight.requires_grad for name, weight in model.named_parameters() if ADAPTER in name)
    kept = copy.deepcopy(model.state_dict())
    batch = tiny.batch_of([([6, 7], [8, 9, 10]), ([11], [12])], model.vocabulary)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):
        logits_BUV = model.decode(model.encode(batch.source), batch.target_BT, batch.target_mask_BT)
        logits_BUV.logsumexp(-1).square().sum().backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, kept[name])}
    assert changed == {name for name in kept if ADAPTER in name}


@families
def test_a_saved_model_is_plain_and_says_the_same(family: str, words, tmp_path: Path) -> None:
    model = adapted(family, words)
    before, state = outputs(model), copy.deepcopy(model.state_dict())
    plain(family, words).save(tmp_path / "plain")
    model.save_pretrained(tmp_path / "merged")
    files = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {*files, "energymt.json"}
    weights = [safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("plain", "merged")]
    assert weights[0].keys() == weights[1].keys()
    changed = {name.rsplit(".", 2)[1] for name, left in weights[0].items() if not torch.equal(left, weights[1][name])}
    assert changed == adapters(model)
    again = load_translator(tmp_path / "merged")
    assert isinstance(again, TransformerTranslator) and not adapters(again)
    for name, tensor in outputs(again).items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-5, msg=name)
    modes = [
        [(weight.requires_grad, weight.dtype) for weight in load_translator(tmp_path / name).parameters()]
        for name in ("plain", "merged")
    ]
    assert modes[0] == modes[1]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for name, tensor in outputs(model).items():
        assert torch.equal(tensor, before[name]), name


def test_a_model_without_adapters_is_not_copied() -> None:
    network = plain("bart").network
    assert without_adapters(network) is network


def test_the_scale_is_alpha_by_rank_and_dropout_is_of_the_adapter_s_input() -> None:
    model = adapted("bart", rank=4, alpha=6.0, dropout=0.5)
    layer = model.network.get_submodule("model.decoder.layers.0.self_attn.q_proj")
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert down.shape == (4, 8) and up.shape == (8, 4)
    x = torch.randn(2, 8)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ down.T @ up.T * 1.5)
    layer.train()
    torch.manual_seed(2)
    dropped = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(2)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + dropped @ down.T @ up.T * 1.5)


def test_saved_models_can_be_averaged(words, tmp_path: Path) -> None:
    for seed in (0, 1):
        learn(adapted("mbart", words), seed).save_pretrained(tmp_path / str(seed))
    average_models([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")
    tables = [load_translator(tmp_path / name).state_dict() for name in ("0", "1", "mean")]
    for name, tensor in tables[2].items():
        torch.testing.assert_close(tensor, (tables[0][name] + tables[1][name]) / 2, msg=name)


# ------------------------------------------------------------------------------------------------ which layers have one


@pytest.mark.parametrize(
    "family, wanted",
    [
        ("bart", {"q_proj", "v_proj"}),  # as peft
        ("t5-tied", {"q", "v"}),
        ("mbart", {"q_proj", "k_proj", "v_proj", "out_proj"}),  # of which peft knows nothing
        ("m2m100", {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ("marian", {"q_proj", "k_proj", "v_proj", "out_proj"}),
    ],
)
def test_what_has_adapters_by_itself(family: str, wanted: set[str]) -> None:
    model = adapted(family)
    assert adapters(model) == wanted
    names = [name for name in model.state_dict() if ADAPTER in name]
    # One encoder layer, and two decoder layers that attend to two things; A and B.
    assert len(names) == 2 * len(wanted) * (1 + 2 * 2)


def test_what_has_adapters_is_chosen_by_the_ends_of_names() -> None:
    model = adapted("mbart", targets=["encoder_attn.q_proj", "model.encoder.layers.0.fc1"])
    names = {name.split(".lora_")[0].removeprefix("network.model.") for name in model.state_dict() if ADAPTER in name}
    assert names == {
        "decoder.layers.0.encoder_attn.q_proj",
        "decoder.layers.1.encoder_attn.q_proj",
        "encoder.layers.0.fc1",
    }


@pytest.mark.parametrize("target", ["q_prjo", "proj", "embed_tokens", "shared", "lm_head", "self_attn", ""])
def test_what_can_have_no_adapter_is_one_sentence(target: str) -> None:
    model = plain("mbart")
    with pytest.raises(ConfigurationError, match=f"names '{target}'.* are called fc1, fc2, k_proj, out_proj, q_proj"):
        adapt_translator(model.network, LoraSettings(targets=["v_proj", target]))
    assert not adapters(model) and all(weight.requires_grad for weight in model.parameters())
