"""Small random translators over a made-up vocabulary, and batches for them."""

import copy
import random

import pytest
import torch

from energymt.data.vocabulary import Vocabulary
from energymt.models.masked import MaskedConfig, MaskedTranslator
from energymt.models.recurrent import RecurrentConfig, RecurrentTranslator, TaggerConfig, TaggerTranslator
from energymt.models.transformer import TransformerConfig, TransformerTranslator
from energymt.records import Source

SIZE = 16


class Numbers(Vocabulary):
    """Words are their own ids: "7 8 9"."""

    kind = "numbers"
    pad_id, unk_id, bos_id, eos_id, mask_id = range(5)
    never_ids = (0, 2, 4)

    def __init__(self, size):
        self.size = size

    def piece(self, token_id):
        return str(token_id)

    def encode(self, text):
        return [int(word) for word in text.split()]

    def encode_source(self, text):
        return [*self.encode(text), self.eos_id]

    def decode(self, ids):
        return " ".join(str(i) for i in self.words(ids))

    def save(self, folder):
        raise NotImplementedError


def source_of(sentences, width=0):
    """The sentences as a batch, with the end token, padded to `width` or more."""
    sources = [[*words, Numbers.eos_id] for words in sentences]
    width = max(width, *(len(ids) for ids in sources))
    ids = torch.tensor([[*ids, *[Numbers.pad_id] * (width - len(ids))] for ids in sources])
    mask = torch.arange(width) < torch.tensor([len(ids) for ids in sources])[:, None]
    return Source(ids, mask)


def draw_sentences(count, size=SIZE, longest=9, seed=0):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(5, size, (length,), generator=draw).tolist() for length in lengths]


def learn(model, steps=150):
    """A little training on copies with words lost and doubled: the model has opinions, and is never quite sure."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    draw = random.Random(0)
    for step in range(steps):
        sources = draw_sentences(32, seed=1000 + step)
        targets = [[word for word in words for _ in range(draw.choice([0, 1, 1, 1, 2]))] for words in sources]
        longest = max(len(words) for words in targets)
        ids = torch.tensor([[*words, *[Numbers.eos_id] * (longest + 1 - len(words))] for words in targets])
        mask = torch.arange(longest) < torch.tensor([len(words) for words in targets])[:, None]
        logits = model.decode(model.encode(source_of(sources)), ids[:, :-1], mask)
        real = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        loss = torch.nn.functional.cross_entropy(logits[real], ids[real])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def learned():
    """Two trained translators: {"recurrent": ..., "transformer": ...}. Tests copy them before they change them."""
    torch.manual_seed(0)
    recurrent = RecurrentConfig(embedding=16, encoder=12, decoder=24, layers=1, dropout=0.0)
    transformer = TransformerConfig(
        width=16, feedforward=32, encoder_layers=1, decoder_layers=2, heads=2, dropout=0.0, longest=64
    )
    return {
        "recurrent": learn(RecurrentTranslator(recurrent, Numbers(SIZE))),
        "transformer": learn(TransformerTranslator.from_config(transformer, Numbers(SIZE))),
    }


@pytest.fixture
def recurrent(learned):
    return copy.deepcopy(learned["recurrent"])


@pytest.fixture
def transformer(learned):
    return copy.deepcopy(learned["transformer"])


@pytest.fixture(params=["recurrent", "transformer"])
def model(request, learned):
    return copy.deepcopy(learned[request.param])


@pytest.fixture
def tiny():
    """A random recurrent translator with few tokens, whose search space can be enumerated."""
    torch.manual_seed(0)
    config = RecurrentConfig(embedding=8, encoder=6, decoder=10, layers=1, dropout=0.0)
    model = RecurrentTranslator(config, Numbers(8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.eval()


@pytest.fixture
def masked():
    """A CMLM with random weights, large enough that tokens differ."""
    torch.manual_seed(1)
    config = MaskedConfig(
        width=16, feedforward=32, encoder_layers=1, decoder_layers=2, heads=2, dropout=0.0, longest=24
    )
    model = MaskedTranslator(config, Numbers(SIZE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.eval()


@pytest.fixture
def tagger():
    torch.manual_seed(1)
    config = TaggerConfig(embedding=16, hidden=16, layers=1, dropout=0.0, longest=24)
    return TaggerTranslator(config, Numbers(SIZE)).eval()


@pytest.fixture
def batch():
    """`batch([[5, 6], [7]])`: see `source_of`."""
    return source_of


@pytest.fixture
def sentences():
    return draw_sentences
