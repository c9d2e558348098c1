"""What QE-EBM, REINFORCE and PPO refuse, each in one sentence."""

from pathlib import Path

import pytest

from energymt.data.corpus import read_corpus
from energymt.errors import ConfigurationError
from tests import toy
from tests.trainables.test_semisupervised import made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.scored_world(tmp_path_factory.mktemp("world"))


def test_what_trains_does_not_judge(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="what trains cannot judge"):
        made("static", folder, judge=str(folder / "estimator"))


def test_gradnorm_needs_a_loss_that_falls(folder: Path) -> None:
    for name in ("leave-one-out", "group"):
        with pytest.raises(ConfigurationError, match="gradnorm"):
            made(name, folder, balance={"kind": "gradnorm"})


def test_gradnorm_refuses_scores_beyond_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = made("gradnorm", folder)
    own = trainable.quality.estimator.forward
    monkeypatch.setattr(trainable.quality.estimator, "forward", lambda *read: own(*read) + 5.0)
    with pytest.raises(
        ConfigurationError, match=r"^balance.kind is gradnorm.* 1 − score is -.* at step 1: .*Use ratio"
    ):
        toy.train(trainable, [next(trainable.plan.iterate())])


def test_unlabelled_text_that_is_too_long_is_named_by_its_own_key(folder: Path, tmp_path: Path) -> None:
    words = read_corpus(toy.config("qe_ebm", folder).train).source[0].split()
    (tmp_path / "text.txt").write_text(" ".join(words * 15) + "\n", "utf-8")
    model = {"variant": "transformer-toy", "changes": {**toy.SMALL["transformer-toy"], "longest": 60}}
    settings = {"model": model, "vocabulary": {"path": str(folder / "transformer-toy")}}
    unlabelled = {"path": str(tmp_path / "text.txt"), "max_source_tokens": 300}
    with pytest.raises(
        ConfigurationError, match=r"^unlabelled.max_source_tokens is 300 .* lower unlabelled.max_source_to"
    ):
        made("static", folder, unlabelled=unlabelled, **settings)
