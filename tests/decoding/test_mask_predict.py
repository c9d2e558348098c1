import dataclasses
import math

import pytest
import torch

from energymt.decoding.mask_predict import decode
from energymt.errors import ConfigurationError, DivergenceError

MASK = 4


class Watching:
    """Notes what each pass of a model is asked."""

    def __init__(self, model):
        self.passes, self.predict = [], model.predict
        model.predict = self

    def __call__(self, memory, tokens, mask):
        self.passes.append((tokens.clone(), mask.clone()))
        return self.predict(memory, tokens, mask)


@torch.no_grad()
def plain_mask_predict(model, source, length, iterations):
    """One sentence, one length, in plain Python."""
    memory = model.encode(source)
    tokens, logp = [MASK] * length, [-math.inf] * length
    for t in range(iterations):
        count = length if t == 0 else math.floor(length * (1 - t / iterations) + 1e-9)
        chosen = sorted(range(length), key=lambda position: (logp[position], position))[:count]
        if not chosen:
            continue
        for position in chosen:
            tokens[position] = MASK
        answers = model.predict(memory, torch.tensor([tokens]), torch.ones(1, length, dtype=torch.bool))[0].log_softmax(
            -1
        )
        for position in chosen:
            logp[position], tokens[position] = (value.item() for value in answers[position].max(0))
    return tuple(tokens), logp


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_it_is_mask_predict_for_each_length_alone(masked, batch, sentences, iterations):
    words = sentences(6)
    found = decode(masked, batch(words), length_beam=4, n_best=4, iterations=iterations)
    changed = 0
    for ids, hypotheses in zip(words, found, strict=True):
        source = batch([ids])
        logp_L = masked.encode(source).length_logp_BL[0]
        lengths = sorted(range(1, len(logp_L)), key=lambda n: -logp_L[n].item())[:4]
        wanted = []
        for length in lengths:
            tokens, logp = plain_mask_predict(masked, source, length, iterations)
            wanted.append((sum(logp) / length, tokens, sum(logp), logp_L[length].item()))
            changed += tokens != plain_mask_predict(masked, source, length, 1)[0]
        wanted.sort(key=lambda candidate: -candidate[0])
        assert [hypothesis.ids for hypothesis in hypotheses] == [tokens for _, tokens, _, _ in wanted]
        for hypothesis, (mean, _, total, length_logp) in zip(hypotheses, wanted, strict=True):
            assert hypothesis.score == pytest.approx(mean, abs=1e-4)
            assert hypothesis.total == pytest.approx(total, abs=1e-4)
            assert hypothesis.extra == {"length_logp": pytest.approx(length_logp, abs=1e-4)}
    assert iterations == 1 or changed, "refinement changes no token: the test sees nothing"


def test_each_pass_masks_the_published_number_of_tokens(masked, batch):
    watching = Watching(masked)
    decode(masked, batch([[5, 6, 7], [8]]), lengths_B=[10, 7], length_beam=1, iterations=5)
    masks = [(tokens == MASK).sum(1).tolist() for tokens, _ in watching.passes]
    assert masks == [[10, 7], [8, 5], [6, 4], [4, 2], [2, 1]]
    assert all(mask.sum(1).tolist() == [10, 7] for _, mask in watching.passes)


def test_what_is_not_masked_again_stays(masked, batch):
    watching = Watching(masked)
    [[hypothesis]] = decode(masked, batch([[5, 6, 7]]), lengths_B=[12], length_beam=1, iterations=4)
    last = watching.passes[-1][0][0]
    kept = (last != MASK).tolist()
    assert sum(kept) == 9
    assert [token for token, stays in zip(hypothesis.ids, kept, strict=True) if stays] == last[last != MASK].tolist()


def test_one_iteration_is_one_pass(masked, batch, sentences):
    watching = Watching(masked)
    decode(masked, batch(sentences(3)), iterations=1)
    assert len(watching.passes) == 1
    assert (watching.passes[0][0][watching.passes[0][1]] == MASK).all()


def test_oracle_lengths_and_the_window_around_them(masked, tagger, batch):
    source = batch([[5, 6, 7], [8], [9, 9]])
    for model in (masked, tagger):
        alone = decode(model, source, lengths_B=torch.tensor([7, 1, 24]), length_beam=1)
        assert [len(hypotheses[0].ids) for hypotheses in alone] == [7, 1, 24]
        several = decode(model, source, lengths_B=[7, 1, 24], length_beam=3, n_best=3, iterations=2)
        lengths = [sorted(len(hypothesis.ids) for hypothesis in hypotheses) for hypotheses in several]
        assert lengths == [[6, 7, 8], [1, 2, 3], [22, 23, 24]]


def test_a_model_without_a_length_head_needs_lengths(masked, batch):
    encode, source = masked.encode, batch([[5, 6], [7]])
    masked.encode = lambda source: dataclasses.replace(encode(source), length_logp_BL=None)
    with pytest.raises(ConfigurationError, match="give the lengths"):
        decode(masked, source)
    found = decode(masked, source, lengths_B=[1, 7], length_beam=3, n_best=3)
    assert [sorted(len(item.ids) for item in items) for items in found] == [[1, 2, 3], [6, 7, 8]]


def test_a_length_beam_wider_than_all_lengths_takes_them_all(masked, batch):
    [hypotheses] = decode(masked, batch([[5, 6]]), length_beam=99, n_best=99, iterations=1)
    assert sorted(len(hypothesis.ids) for hypothesis in hypotheses) == list(range(1, 25))
    [hypotheses] = decode(masked, batch([[5, 6]]), length_beam=99, n_best=99, iterations=1, lengths_B=[20])
    assert sorted(len(hypothesis.ids) for hypothesis in hypotheses) == list(range(1, 25))


def test_batching_order_and_padding_change_nothing(masked, tagger, batch, sentences):
    words = sentences(9)
    for model in (masked, tagger):
        together = decode(model, batch(words, width=14), n_best=3)
        backwards = decode(model, batch(words[::-1]), n_best=3)[::-1]
        alone = [decode(model, batch([ids]), n_best=3)[0] for ids in words]
        for one, two, three in zip(together, backwards, alone, strict=True):
            assert [h.ids for h in one] == [h.ids for h in two] == [h.ids for h in three]
            assert [h.score for h in one] == pytest.approx([h.score for h in three], abs=1e-4)


def test_special_tokens_never_come(masked, batch, sentences):
    with torch.no_grad():
        masked.bias[:5] += 50.0
    for hypotheses in decode(masked, batch(sentences(5)), n_best=5):
        for hypothesis in hypotheses:
            assert not {0, 2, 3, 4} & set(hypothesis.ids)


def test_a_ranking_takes_the_place_of_the_mean_log_probability(masked, batch, sentences):
    seen = {}

    def longest_first(source, ids, mask):
        seen.update(rows=len(source), source=source.ids_BS, shape=ids.shape)
        return mask.sum(1).float()

    words = sentences(4)
    found = decode(masked, batch(words), length_beam=3, n_best=3, rank=longest_first)
    plain = decode(masked, batch(words), length_beam=3, n_best=3)
    assert seen["rows"] == 12 == seen["shape"][0]
    assert torch.equal(seen["source"][3:6], batch(words).ids_BS[1].expand(3, -1))
    for ranked, scored in zip(found, plain, strict=True):
        lengths = [len(hypothesis.ids) for hypothesis in ranked]
        assert lengths == sorted(lengths, reverse=True)
        assert [hypothesis.extra["rank"] for hypothesis in ranked] == lengths
        assert sorted(h.score for h in ranked) == pytest.approx(sorted(h.score for h in scored))


def test_candidates_without_a_number_come_last(masked, batch):
    def odd(source, ids, mask):
        lengths = mask.sum(1).float()
        return torch.where(lengths == 8, math.nan, lengths)

    [hypotheses] = decode(masked, batch([[5, 6]]), lengths_B=[8], length_beam=3, n_best=3, iterations=1, rank=odd)
    assert [len(hypothesis.ids) for hypothesis in hypotheses] == [9, 7, 8]


def test_impossible_numbers_are_refused(masked, batch):
    source = batch([[5], [6]])
    with pytest.raises(ConfigurationError, match="at least one"):
        decode(masked, source, iterations=0)
    with pytest.raises(ConfigurationError, match="holds no 6 best"):
        decode(masked, source, length_beam=5, n_best=6)
    with pytest.raises(ConfigurationError, match="1 lengths were given for 2"):
        decode(masked, source, lengths_B=[3])


def test_weights_that_are_not_numbers_are_named(masked, batch):
    with torch.no_grad():
        masked.bias[7] = math.nan
    with pytest.raises(DivergenceError, match="NaN"):
        decode(masked, batch([[5]]))
