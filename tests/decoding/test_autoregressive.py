import itertools
import math

import pytest
import torch

from energymt.decoding.autoregressive import decode
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError, DivergenceError

PAD, UNK, BOS, EOS, MASK = range(5)


@torch.no_grad()
def log_probability(model, source, ids):
    """log p(ids, end | source) by teacher forcing: another way through the model than start and step."""
    target = torch.tensor([ids], dtype=torch.long).view(1, -1)
    logits = model.decode(model.encode(source), target, torch.ones_like(target, dtype=torch.bool))
    logp = logits[0].log_softmax(-1)
    return sum(logp[t, token].item() for t, token in enumerate([*ids, EOS]))


@torch.no_grad()
def next_log_probabilities(model, source, ids):
    target = torch.tensor([ids], dtype=torch.long).view(1, -1)
    logits = model.decode(model.encode(source), target, torch.ones_like(target, dtype=torch.bool))
    logp = logits[0, -1].log_softmax(-1)
    logp[list(model.vocabulary.never_ids)] = -math.inf
    return logp.tolist()


def plain_beam(model, source, beam, limit, penalty, enough=math.inf):
    """Beam search in plain Python, until `enough` have ended: all finished hypotheses, best first."""
    running, finished = [((), 0.0)], []
    for length in range(limit + 1):
        candidates = []
        for ids, total in running:
            logp = next_log_probabilities(model, source, ids)
            tokens = range(len(logp)) if length < limit else [EOS]
            candidates += [((*ids, token), total + logp[token]) for token in tokens]
        candidates.sort(key=lambda candidate: -candidate[1])
        for ids, total in candidates[:beam]:
            if ids[-1] == EOS:
                finished.append((ids[:-1], total / len(ids) ** penalty))
        running = [candidate for candidate in candidates if candidate[0][-1] != EOS and candidate[1] > -math.inf][:beam]
        if len(finished) >= enough:
            break
    return sorted(finished, key=lambda candidate: -candidate[1])


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
def test_a_beam_as_wide_as_the_search_space_finds_the_best_of_all(tiny, batch, penalty):
    source, limit = batch([[5, 6], [7, 5, 6]]), 4
    words = [UNK, 5, 6, 7]
    everything = [ids for n in range(limit + 1) for ids in itertools.product(words, repeat=n)]
    found = decode(tiny, source, beam=4**limit, max_length=limit, length_penalty=penalty, n_best=6, patience=math.inf)
    for sentence, hypotheses in enumerate(found):
        row = source.select(torch.tensor([sentence]))
        scored = [(log_probability(tiny, row, ids), ids) for ids in everything]
        wanted = sorted(((total / (len(ids) + 1) ** penalty, ids) for total, ids in scored), reverse=True)[:6]
        assert [hypothesis.ids for hypothesis in hypotheses] == [ids for _, ids in wanted]
        assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx(
            [score for score, _ in wanted], abs=1e-4
        )


@pytest.mark.parametrize("patience", [1.0, 1.5, math.inf])
@pytest.mark.parametrize("beam, penalty, n_best", [(2, 1.0, 1), (3, 0.0, 2), (4, 0.5, 4), (5, 1.0, 3), (5, 2.0, 1)])
def test_a_search_that_is_hopeless_ends_and_loses_nothing(model, batch, sentences, beam, penalty, n_best, patience):
    words = sentences(8)
    settings = {"beam": beam, "length_penalty": penalty, "n_best": n_best, "patience": patience}
    found = decode(model, batch(words), max_length=9, **settings)
    for ids, hypotheses in zip(words, found, strict=True):
        wanted = plain_beam(model, batch([ids]), beam, 9, penalty, beam * patience)[:n_best]
        assert [hypothesis.ids for hypothesis in hypotheses] == [ids for ids, _ in wanted]
        assert [item.score for item in hypotheses] == pytest.approx([score for _, score in wanted], abs=1e-4)


def test_patience_finds_more(model, batch, sentences):
    source = batch(sentences(40))
    scores = [
        [hypotheses[0].score for hypotheses in decode(model, source, beam=3, max_length=9, patience=patience)]
        for patience in (1.0, 2.0, math.inf)
    ]
    for less, more in itertools.pairwise(scores):
        assert all(a <= b + 1e-5 for a, b in zip(less, more, strict=True))
    assert sum(scores[0]) < sum(scores[2])


def test_a_beam_of_one_is_greedy_search(model, batch, sentences):
    words = sentences(8)
    for source, [hypothesis] in zip(words, decode(model, batch(words), beam=1, max_length=12), strict=True):
        ids = []
        while len(ids) < 12:
            logp = next_log_probabilities(model, batch([source]), ids)
            token = max(range(len(logp)), key=logp.__getitem__)
            if token == EOS:
                break
            ids.append(token)
        assert hypothesis.ids == tuple(ids)


@pytest.mark.parametrize("beam", [1, 4])
def test_batching_order_and_padding_change_nothing(model, batch, sentences, beam):
    words = sentences(12)
    together = decode(model, batch(words, width=15), beam=beam, n_best=beam)
    backwards = decode(model, batch(words[::-1]), beam=beam, n_best=beam)[::-1]
    alone = [decode(model, batch([ids]), beam=beam, n_best=beam)[0] for ids in words]
    for one, two, three in zip(together, backwards, alone, strict=True):
        assert [h.ids for h in one] == [h.ids for h in two] == [h.ids for h in three]
        assert [h.total for h in one] == pytest.approx([h.total for h in three], abs=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
def test_the_total_is_minus_the_energy_of_the_same_model(model, batch, sentences, beam):
    source = batch(sentences(7))
    found = [hypotheses[0] for hypotheses in decode(model, source, beam=beam, max_length=6, length_penalty=0.7)]
    ids = torch.zeros(7, 6, dtype=torch.long)
    for row, hypothesis in enumerate(found):
        ids[row, : len(hypothesis.ids)] = torch.tensor(hypothesis.ids, dtype=torch.long)
        assert hypothesis.score == pytest.approx(hypothesis.total / (len(hypothesis.ids) + 1) ** 0.7)
    mask = torch.arange(6) < torch.tensor([len(hypothesis.ids) for hypothesis in found])[:, None]
    energy = AutoregressiveEnergy(model).discrete(source, ids, mask)
    assert [-hypothesis.total for hypothesis in found] == pytest.approx(energy.tolist(), abs=1e-4)


class Counting:
    """A model that notes how many rows each step has."""

    def __init__(self, model):
        self.model, self.rows = model, []
        self.step = model.step
        model.step = self

    def __call__(self, state, ids):
        self.rows.append(len(ids))
        return self.step(state, ids)


def raise_logits(model, tokens, by):
    with torch.no_grad():
        (model.bias if model.architecture == "recurrent" else model.network.final_logits_bias[0])[tokens] += by


@pytest.mark.parametrize("beam", [1, 3])
def test_sentences_that_are_done_leave_the_batch(model, batch, beam):
    raise_logits(model, [EOS], -100.0)
    counting = Counting(model)
    found = decode(model, batch([[5], [6, 7], [8]]), beam=beam, max_length=[2, 9, 0])
    assert [len(hypotheses[0].ids) for hypotheses in found] == [2, 9, 0]
    assert counting.rows[-9:] == [2 * beam] * 2 + [beam] * 7


def test_a_hopeless_search_stops_before_the_greatest_length(model, batch):
    counting = Counting(model)
    decode(model, batch([[5, 6], [7]]), beam=4, max_length=60, length_penalty=0.0)
    assert len(counting.rows) < 20


@pytest.mark.parametrize("beam", [1, 5])
def test_forbidden_tokens_never_come_and_the_length_is_bounded(model, batch, sentences, beam):
    raise_logits(model, [PAD, BOS, MASK], 50.0)
    words = [*sentences(6), [5] * 40]
    for source, hypotheses in zip(words, decode(model, batch(words), beam=beam, n_best=beam), strict=True):
        for hypothesis in hypotheses:
            assert not {PAD, BOS, MASK, EOS} & set(hypothesis.ids)
            assert len(hypothesis.ids) <= min(2 * len(source) + 10, model.longest or 1000)


def test_a_model_in_training_goes_on_training(recurrent, batch):
    recurrent.train()
    recurrent.dropout.p = 0.9
    first, second = (decode(recurrent, batch([[5, 6, 7]]), beam=3, max_length=5) for _ in range(2))
    assert first == second
    assert recurrent.training


@pytest.mark.parametrize("beam, early, patience", [(1, False, 1.0), (4, "never", math.inf), (4, True, 1.0)])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_transformers_generate_finds_the_same(transformer, batch, sentences, beam, early, patience, penalty):
    """The same beams; at the greatest length `generate` cuts a hypothesis off where we pay for its end token.

    With "never" it asks that `beam` hypotheses are finished, where we ask for `n_best`.
    """
    words = sentences(60)
    source = batch(words)
    ours = decode(transformer, source, beam=beam, max_length=25, length_penalty=penalty, patience=patience)
    more = {"length_penalty": penalty, "early_stopping": early} if beam > 1 else {}
    theirs = transformer.network.generate(
        input_ids=source.ids_BS,
        attention_mask=source.mask_BS.long(),
        num_beams=beam,
        do_sample=False,
        max_new_tokens=26,
        suppress_tokens=list(transformer.vocabulary.never_ids),
        **more,
    )
    pairs = []
    for index, ([hypothesis], row) in enumerate(zip(ours, theirs.tolist(), strict=True)):
        if EOS not in row:
            continue
        ids = row[1 : row.index(EOS)]
        pairs.append((hypothesis.ids, tuple(ids)))
        score = log_probability(transformer, batch([words[index]]), ids) / (len(ids) + 1) ** penalty
        assert hypothesis.score >= score - 1e-4 or beam == 1
    same = sum(one == other for one, other in pairs)
    print(f"beam {beam} early {early} penalty {penalty}: {same} of {len(pairs)} the same")
    assert len(pairs) > 30, "too few sentences end by themselves: the test sees nothing"
    assert same >= 0.98 * len(pairs)


def test_impossible_numbers_are_refused(recurrent, batch):
    source = batch([[5]])
    with pytest.raises(ConfigurationError, match="holds no 3 best"):
        decode(recurrent, source, beam=2, n_best=3)
    with pytest.raises(ConfigurationError, match="at least 0"):
        decode(recurrent, source, beam=2, length_penalty=-1.0)
    with pytest.raises(ConfigurationError, match="at least 1"):
        decode(recurrent, source, beam=2, patience=0.5)
    with pytest.raises(ConfigurationError, match="one for each sentence"):
        decode(recurrent, source, max_length=[1, 2])


@pytest.mark.parametrize("beam", [1, 3])
def test_weights_that_are_not_numbers_are_named(recurrent, batch, beam):
    raise_logits(recurrent, [6], math.nan)
    with pytest.raises(DivergenceError, match="NaN"):
        decode(recurrent, batch([[5, 6]]), beam=beam)
