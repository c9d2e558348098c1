"""Two small translators that have learnt something, over a vocabulary of whole words that can be saved."""

import random

import pytest
import torch

from energymt.data.vocabulary import SentencePieceVocabulary
from tests import tiny

LETTERS = "abcdefghijklmnopqrst"
SIZES = {"width": 32, "feedforward": 64, "encoder_layers": 2, "decoder_layers": 2, "heads": 4, "longest": 48}
SHALLOW = {**SIZES, "width": 64, "encoder_layers": 1, "decoder_layers": 1, "heads": 1}


def sentences(count, seed, longest=9):
    """Texts of one to nine words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(LETTERS, k=draw.randint(1, longest))) for _ in range(count)]


def train(model, loss_of, steps, rate):
    """Warm-up and linear decay: seconds."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 60) * (1 - step / steps))
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(step).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.fixture(scope="session")
def words():
    return SentencePieceVocabulary.train(LETTERS, 40, model_type="word")


def batch_of(words, step, repeats):
    """Each word becomes the next letter, said as often as one of `repeats` says."""
    draw = random.Random(step)
    sources = [words.encode(text) for text in sentences(32, seed=step)]
    targets = [[5 + (word - 4) % 20 for word in ids for _ in range(draw.choice(repeats))] for ids in sources]
    return tiny.batch_of(list(zip(sources, targets, strict=True)), words)


def teach(words, repeats, steps, rate):
    model = tiny.scratch(words, **SHALLOW)

    def loss_of(step):
        batch = batch_of(words, step, repeats)
        ends = torch.full_like(batch.target_BT[:, :1], words.pad_id)
        wanted = torch.cat([batch.target_BT, ends], dim=1)
        wanted.scatter_(1, batch.target_lengths_B[:, None], words.eos_id)
        logits = model.decode(model.encode(batch.source), batch.target_BT, batch.target_mask_BT)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=words.pad_id)

    return train(model, loss_of, steps, rate)


@pytest.fixture(scope="session")
def learned_teacher(words):
    """Autoregressive, and never quite sure: words were doubled at random."""
    return teach(words, repeats=[1, 1, 1, 2], steps=400, rate=6e-3)


@pytest.fixture(scope="session")
def sure_teacher(words):
    """Autoregressive: every word becomes the next letter, without exception in 200 unseen sentences."""
    return teach(words, repeats=[1], steps=1200, rate=3e-3)


@pytest.fixture(scope="session")
def learned_student(words):
    """Non-autoregressive: every word becomes the next letter, said twice."""
    model = tiny.masked(words, **SIZES)

    def loss_of(step):
        batch = batch_of(words, step, repeats=[2])
        memory = model.encode(batch.source)
        hidden_BT = torch.rand(batch.target_BT.shape) < 0.8
        seen_BT = torch.where(hidden_BT, model.unseen(batch.target_mask_BT), batch.target_BT)
        logits = model.predict(memory, seen_BT, batch.target_mask_BT)[batch.target_mask_BT]
        tokens = torch.nn.functional.cross_entropy(logits, batch.target_BT[batch.target_mask_BT])
        return tokens - memory.length_logp_BL.gather(1, batch.target_lengths_B[:, None]).mean()

    return train(model, loss_of, steps=300, rate=5e-3)


@pytest.fixture
def texts():
    """`texts(count)`: sentences that no training has seen."""
    return lambda count: sentences(count, seed=10**6)


@pytest.fixture
def source(words, texts):
    """Sixty sentences as a batch."""
    return tiny.source_of([words.encode(text) for text in texts(60)], words)


@pytest.fixture
def ids_of():
    """The token ids of all hypotheses."""
    return lambda found: [[hypothesis.ids for hypothesis in hypotheses] for hypotheses in found]
