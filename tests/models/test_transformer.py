"""Every Hugging Face family as a translator: its own likelihood, its own cache, and refusal of a wrong wrap."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSeq2SeqLM

from energymt.errors import ConfigurationError
from energymt.models.transformer import TransformerConfig, TransformerTranslator, start_tokens
from energymt.records import Source
from tests import tiny


def nll_of_hugging_face(network, prefix, source, target, eos):
    """−log p(target, eos | source) of one sentence, by the network's own forward pass from `labels`."""
    labels = torch.tensor([[*prefix[1:], *target, eos]])
    with torch.no_grad():
        logits = network(input_ids=source, attention_mask=torch.ones_like(source), labels=labels).logits
    forced = len(prefix) - 1
    return cross_entropy(logits[0, forced:], labels[0, forced:], reduction="sum").item()


@pytest.mark.parametrize("family", tiny.NETWORKS)
def test_teacher_forcing_is_the_network_s_own_likelihood(family: str) -> None:
    network, vocabulary, code = tiny.network(family)
    prefix = start_tokens(network, code)
    model = TransformerTranslator(network, vocabulary, prefix).eval()
    sources, targets = tiny.sentences(4, seed=1), tiny.sentences(4, seed=2)
    target_BT, mask_BT = tiny.padded(targets, vocabulary.pad_id)
    with torch.no_grad():
        logp_BUV = model.decode(model.encode(tiny.source_of(sources, vocabulary)), target_BT, mask_BT).log_softmax(-1)
    for b, (source, target) in enumerate(zip(sources, targets, strict=True)):
        ids = torch.tensor([[*source, vocabulary.eos_id]])
        ours = -sum(logp_BUV[b, u, token].item() for u, token in enumerate([*target, vocabulary.eos_id]))
        assert ours == pytest.approx(nll_of_hugging_face(network, prefix, ids, target, vocabulary.eos_id), rel=1e-5)


def test_what_the_decoder_reads_first() -> None:
    prefixes = {}
    for family in tiny.NETWORKS:
        network, _, code = tiny.network(family)
        prefixes[family] = start_tokens(network, code)
    assert prefixes == {
        "marian": (15,),
        "bart": (2,),
        "bart-forced-bos": (2, 0),
        "mbart": (2, tiny.CODE),
        "m2m100": (2, tiny.CODE),
        "t5-tied": (0,),
        "t5-untied": (0,),
    }


def test_a_forced_token_of_an_old_configuration_is_found(tmp_path: Path) -> None:
    """Checkpoints from before generation_config.json keep it in config.json."""
    network, _, _ = tiny.network("bart")
    network.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "decoder_start_token_id": 2, "forced_bos_token_id": 0}))
    assert start_tokens(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), None) == (2, 0)
    assert start_tokens(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), tiny.CODE) == (2, tiny.CODE)


def test_a_checkpoint_without_a_start_token_is_refused() -> None:
    network, _, _ = tiny.network("bart")
    network.config.decoder_start_token_id = network.generation_config.decoder_start_token_id = None
    with pytest.raises(ConfigurationError, match="decoder_start_token_id"):
        start_tokens(network, None)


@pytest.mark.parametrize(
    "family, scale",
    [
        ("bart", 1.0),
        ("bart-forced-bos", 8**0.5),
        ("mbart", 8**0.5),
        ("m2m100", 8**0.5),
        ("t5-tied", 1.0),
        ("t5-untied", 1.0),
    ],
)
def test_the_embedding_scale_is_measured(family: str, scale: float) -> None:
    assert tiny.teacher(family).embedding_scale == scale


@pytest.mark.parametrize("family", ["bart", "mbart", "m2m100"])
def test_a_network_whose_ids_and_embeddings_disagree_is_refused(family: str) -> None:
    network, vocabulary, code = tiny.network(family)
    network.get_decoder().embed_tokens.embed_scale = 1.7
    with pytest.raises(ConfigurationError, match="cannot serve as a teacher"):
        TransformerTranslator(network, vocabulary, start_tokens(network, code))


def test_a_vocabulary_larger_than_the_table_is_refused() -> None:
    network, _, _ = tiny.network("bart")
    with pytest.raises(ConfigurationError, match="17 tokens and the model embeds 16"):
        TransformerTranslator(network, tiny.Numbers(17, **tiny.BART_IDS), (2,))


def test_rows_beyond_the_vocabulary_are_never_predicted() -> None:
    network, _, _ = tiny.network("t5-untied")
    model = TransformerTranslator(network, tiny.Numbers(13, pad=0, bos=0, eos=1, unk=2), (0,))
    memory = model.encode(tiny.source_of([[6, 7]], model.vocabulary))
    assert model.decode(memory, torch.tensor([[8, 9]]), torch.ones(1, 2, dtype=torch.bool)).shape == (1, 3, 13)
    state, logits_RV = model.start(memory)
    assert logits_RV.shape == (1, 13)
    assert model.step(state, torch.tensor([8]))[1].shape == (1, 13)


def test_a_model_from_scratch_starts_with_bos_and_has_room_for_its_prefix() -> None:
    config = TransformerConfig(
        width=8, feedforward=12, encoder_layers=1, decoder_layers=1, heads=2, dropout=0.0, longest=12
    )
    model = TransformerTranslator.from_config(config, tiny.Numbers()).eval()
    assert model.prefix_ids == (tiny.Numbers().bos_id,)
    assert model.longest == 11
    words = torch.full((1, 11), 7)
    memory = model.encode(Source(words, torch.ones_like(words, dtype=torch.bool)))
    assert model.decode(memory, words, torch.ones_like(words, dtype=torch.bool)).isfinite().all()


def test_training_from_scratch_reaches_every_weight() -> None:
    model = tiny.scratch().train()
    batch = tiny.batch_of([([6, 7], [8, 9, 10]), ([11], [12])], model.vocabulary)
    logits_BUV = model.decode(model.encode(batch.source), batch.target_BT, batch.target_mask_BT)
    logits_BUV.logsumexp(-1).square().sum().backward()
    missing = [
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and (weight.grad is None or not weight.grad.any())
    ]
    assert missing == []
