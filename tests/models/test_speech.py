"""Whisper as an autoregressive model: its own likelihood and search, its identities, its folder, its refusals."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from energymt.data.speech import LogMel
from energymt.data.vocabulary import load_vocabulary
from energymt.data.whisper import WhisperVocabulary, open_tokenizer, start_of_transcript
from energymt.decoding.autoregressive import decode
from energymt.decoding.sampling import SAMPLE_STREAM, candidates, sample
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError, StorageError
from energymt.models import load_translator, make_translator
from energymt.models.speech import SpeechConfig, SpeechTransformer
from energymt.noise import Noise
from energymt.records import Prediction, Sound, Source
from tests import sounds, tiny

TEXTS = sounds.sentences(6, seed=4)
TARGETS = [[6, 7, 8], [5], [7, 7], [8, 6, 5, 5], [6], [5, 8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds.whisper(tmp_path_factory.mktemp("whisper") / "checkpoint")


@pytest.fixture(scope="module", params=["scratch", "checkpoint"])
def model(request: pytest.FixtureRequest, folder: Path) -> SpeechTransformer:
    return sounds.recogniser() if request.param == "scratch" else SpeechTransformer.from_checkpoint(folder, "en").eval()


@pytest.fixture(scope="module")
def sound(model: SpeechTransformer) -> Sound:
    return model.features(sounds.clips(TEXTS))


@torch.no_grad()
def test_teacher_forcing_is_the_network_s_own_likelihood(model: SpeechTransformer, sound: Sound) -> None:
    target_BT, mask_BT = tiny.padded(TARGETS, model.vocabulary.pad_id)
    nll_B = AutoregressiveEnergy(model).discrete(sound, target_BT, mask_BT)
    prefix, forced = list(model.prefix_ids), len(model.prefix_ids) - 1
    for b, target in enumerate(TARGETS):
        labels = torch.tensor([[*prefix[1:], *target, model.vocabulary.eos_id]])
        ids = torch.tensor([[*prefix, *target]])
        logits = model.network(input_features=sound.features_BMF[b : b + 1], decoder_input_ids=ids).logits
        wanted = cross_entropy(logits[0, forced:], labels[0, forced:], reduction="sum")
        assert nll_B[b].item() == pytest.approx(wanted.item(), rel=1e-5)


@torch.no_grad()
def test_tokens_their_embeddings_and_projections_say_the_same(model: SpeechTransformer, sound: Sound) -> None:
    target_BT, mask_BT = tiny.padded(TARGETS, model.vocabulary.pad_id)
    memory = model.encode(sound)
    logits_BUV = model.decode(memory, target_BT, mask_BT)
    assert logits_BUV.shape == (6, 5, model.vocabulary.size)
    soft_BUV = model.decode_soft(memory, model.embedding_VD[target_BT], mask_BT)
    projected_BUV = model.decode_projection(memory, target_BT, mask_BT).logits()
    for b, target in enumerate(TARGETS):
        real = slice(0, len(target) + 1)
        torch.testing.assert_close(soft_BUV[b, real], logits_BUV[b, real], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(projected_BUV[b, real], logits_BUV[b, real], rtol=1e-4, atol=1e-4)
    assert (model.embedding_scale, model.hidden_scale) == (1.0, 1.0)
    energy = AutoregressiveEnergy(model)
    one_hot = Prediction.of_ids(target_BT, mask_BT, len(model.embedding_VD))
    torch.testing.assert_close(energy(sound, one_hot), energy.discrete(sound, target_BT, mask_BT), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_neither_states_nor_transcripts_depend_on_the_batch(model: SpeechTransformer, sound: Sound) -> None:
    states_BSD = model.encode(sound).states_BSD
    together = decode(model, sound)
    for b in range(len(sound)):
        alone = sound.select(torch.tensor([b]))
        torch.testing.assert_close(model.encode(alone).states_BSD[0], states_BSD[b], rtol=1e-4, atol=1e-4)
        assert decode(model, alone)[0][0].ids == together[b][0].ids
    assert len({hypotheses[0].ids for hypotheses in together}) > 1


@torch.no_grad()
def test_whisper_attends_to_the_whole_window(model: SpeechTransformer, sound: Sound) -> None:
    target_BT, mask_BT = tiny.padded(TARGETS, model.vocabulary.pad_id)
    nothing = Sound(sound.features_BMF, torch.zeros_like(sound.mask_BS))
    memory, other = model.encode(sound), model.encode(nothing)
    assert torch.equal(model.decode(other, target_BT, mask_BT), model.decode(memory, target_BT, mask_BT))
    assert memory.mask_BS.sum(1).tolist() == [-(-15 * len(text.split()) // 2) for text in TEXTS]


@pytest.mark.parametrize("beam", [1, 3])
def test_search_and_cache_reproduce_the_likelihood(beam: int, model: SpeechTransformer, sound: Sound) -> None:
    found = decode(model, sound, beam=beam, n_best=beam)
    ids_BT, mask_BT = tiny.padded([hypotheses[0].ids or (0,) for hypotheses in found], model.vocabulary.pad_id)
    mask_BT &= torch.tensor([[len(hypotheses[0].ids) > 0] for hypotheses in found])
    nll_B = AutoregressiveEnergy(model).discrete(sound, ids_BT, mask_BT)
    assert [-hypotheses[0].total for hypotheses in found] == pytest.approx(nll_B.tolist(), rel=1e-3)
    for hypotheses, limit in zip(found, sound.limits_B.tolist(), strict=True):
        assert max(len(hypothesis.ids) for hypothesis in hypotheses) <= min(limit, model.longest)


def test_samples_depend_on_the_recording_alone(model: SpeechTransformer, sound: Sound) -> None:
    together = candidates(model, sound, 3, seed=2)
    assert candidates(model, sound.select(torch.tensor([4, 1])), 3, seed=2)[0][0].ids == together[4][0].ids
    drawn = sample(model, sound, Noise(1, 0, torch.arange(6), SAMPLE_STREAM), 2)
    assert drawn.mask_RT.sum(1).max() <= model.longest


@pytest.mark.parametrize("task", ["transcribe", "translate"])
@torch.no_grad()
def test_greedy_search_is_that_of_transformers(task: str, folder: Path) -> None:
    model = SpeechTransformer.from_checkpoint(folder, "de", task).eval()
    sound, words = model.features(sounds.clips(TEXTS)), model.vocabulary
    network = model.network
    # transformers lets a time stamp stand where none was asked for; here it cannot.
    network.generation_config.suppress_tokens = list(words.never_ids)
    words.never_first_ids = tuple({hypothesis.ids[0] for (hypothesis,) in decode(model, sound)})
    network.generation_config.begin_suppress_tokens = list(words.never_first_ids)
    wanted = network.generate(sound.features_BMF, language="de", task=task, num_beams=1, do_sample=False, max_length=24)
    found = decode(model, sound, max_length=model.longest)
    for (hypothesis,), row in zip(found, wanted.tolist(), strict=True):
        ids = row[len(model.prefix_ids) :] if row[: len(model.prefix_ids)] == list(model.prefix_ids) else row
        assert list(hypothesis.ids) == [*ids, words.eos_id][: [*ids, words.eos_id].index(words.eos_id)]
    assert all(hypothesis.ids[0] not in words.never_first_ids for (hypothesis,) in found)


def test_what_a_transcript_never_holds(folder: Path) -> None:
    words = SpeechTransformer.from_checkpoint(folder, "en").vocabulary
    never = {words.piece(i) for i in words.never_ids}
    assert {"!", *sounds.SPECIAL, *sounds.STAMPS} == never
    assert [words.piece(i) for i in words.never_first_ids] == ["Ġ", sounds.END]
    assert words.eos_id not in words.never_ids
    assert words.decode(words.encode("low Don't")) == "low Don't"
    assert words.piece(words.encode("low")[0]) == "Ġlow"


def test_the_first_token_may_be_the_end_where_nothing_else_has_room(folder: Path) -> None:
    model = SpeechTransformer.from_checkpoint(folder, "en").eval()
    ((hypothesis,),) = decode(model, model.features(sounds.clips(["low"])), max_length=0)
    assert hypothesis.ids == () and hypothesis.total > float("-inf")


def test_what_the_decoder_reads_first(folder: Path, tmp_path: Path) -> None:
    ids = open_tokenizer(folder).get_vocab()

    def first(model: SpeechTransformer) -> list[str]:
        return [model.vocabulary.piece(i) for i in model.prefix_ids]

    start, silent = "<|startoftranscript|>", "<|notimestamps|>"
    assert first(SpeechTransformer.from_checkpoint(folder, "de")) == [start, "<|de|>", "<|transcribe|>", silent]
    translator = SpeechTransformer.from_checkpoint(folder, "de", "translate")
    assert first(translator) == [start, "<|de|>", "<|translate|>", silent]
    english = sounds.whisper(tmp_path / "english", multilingual=False)
    assert first(SpeechTransformer.from_checkpoint(english)) == [start, silent]
    assert translator.longest == 24 - 4 and ids[silent] == translator.prefix_ids[-1]


@pytest.mark.parametrize(
    "generation, language, part",
    [
        ({}, None, "multilingual.*name that which is spoken"),
        ({}, "fr", "no language 'fr': did you mean"),
        ({"no_timestamps_token_id": None}, "en", "no_timestamps_token_id"),
        ({"is_multilingual": False}, "de", "English alone"),
    ],
)
def test_a_start_that_cannot_be_is_refused(generation: dict, language: str | None, part: str, folder: Path) -> None:
    settings = SpeechTransformer.from_checkpoint(folder, "en").network.generation_config
    for name, value in generation.items():
        setattr(settings, name, value)
    with pytest.raises(ConfigurationError, match=part):
        start_of_transcript(settings, language, "transcribe")


@torch.no_grad()
def test_a_model_comes_back_as_it_was(model: SpeechTransformer, sound: Sound, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "preprocessor_config.json").is_file()
    again = load_translator(tmp_path / "model")
    assert isinstance(again, SpeechTransformer) and again.architecture == "speech" and not again.training
    assert (again.prefix_ids, again.longest) == (model.prefix_ids, model.longest)
    assert again.vocabulary.never_ids == model.vocabulary.never_ids
    assert again.vocabulary.never_first_ids == model.vocabulary.never_first_ids
    assert load_vocabulary(tmp_path / "model").fingerprint == model.vocabulary.fingerprint
    heard = again.features(sounds.clips(TEXTS))
    assert torch.equal(heard.features_BMF, sound.features_BMF)
    assert torch.equal(again.encode(heard).states_BSD, model.encode(sound).states_BSD)
    assert [h[0].ids for h in decode(again, heard)] == [h[0].ids for h in decode(model, sound)]
    (tmp_path / "weights").mkdir()
    other = load_translator(tmp_path / "model")
    tiny.shake(other)
    model.network.config.save_pretrained(tmp_path / "weights")
    model.save_weights(tmp_path / "weights")
    other.load_weights(tmp_path / "weights")
    assert all(torch.equal(left, right) for left, right in zip(other.parameters(), model.parameters(), strict=True))


def test_a_folder_without_its_features_is_refused(tmp_path: Path) -> None:
    sounds.recogniser().save(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(StorageError, match=r"preprocessor_config\.json is missing"):
        load_translator(tmp_path)


def test_features_of_another_model_are_refused(tmp_path: Path) -> None:
    sounds.recogniser().save(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "feature_size": 20}), "utf-8")
    with pytest.raises(ConfigurationError, match=r"hears 12 mel bins and 50 states.*makes 20 and 50"):
        load_translator(tmp_path)


def test_a_whisper_tokenizer_that_is_too_large_is_refused(folder: Path) -> None:
    model = sounds.recogniser()
    words = WhisperVocabulary(open_tokenizer(folder))
    with pytest.raises(ConfigurationError, match="do not belong together"):
        SpeechTransformer(model.network, words, (2,), model.features)


def test_sound_and_text_are_not_taken_for_each_other() -> None:
    model = sounds.recogniser()
    ids = torch.tensor([[6, 3]])
    with pytest.raises(ConfigurationError, match="hears recordings and was given text"):
        model.encode(Source(ids, torch.ones_like(ids, dtype=torch.bool)))
    for reader in (tiny.scratch(), tiny.recurrent(), tiny.masked(), tiny.tagger()):
        with pytest.raises(ConfigurationError, match="reads text and was given recordings"):
            reader.encode(model.features(sounds.clips(["low"])))


@pytest.mark.parametrize("variant", ["whisper-toy", "whisper-laptop"])
def test_named_sizes_hear_four_seconds(variant: str) -> None:
    model = make_translator(variant, sounds.vocabulary())
    assert isinstance(model, SpeechTransformer)
    assert (model.features.seconds, model.features.states, model.longest) == (4.0, 200, 63)
    small = make_translator(variant, sounds.vocabulary(), seconds=2, mel_bins=20)
    assert (small.features.states, small.network.config.num_mel_bins) == (100, 20)


def test_training_from_scratch_reaches_every_weight() -> None:
    model = SpeechTransformer.from_config(SpeechConfig(**sounds.SMALL), sounds.vocabulary()).train()
    target_BT, mask_BT = tiny.padded(TARGETS, 0)
    memory = model.encode(LogMel.of(12, 1)(sounds.clips(TEXTS)))
    model.decode(memory, target_BT, mask_BT).logsumexp(-1).square().sum().backward()
    missing = [
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and (weight.grad is None or not weight.grad.any())
    ]
    assert missing == []
