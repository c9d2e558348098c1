"""The nearest sentences by brute force, kept in a folder that is refused for other text or when it is damaged."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from energymt.data import sentence_vectors
from energymt.data.corpus import Corpus
from energymt.data.neighbours import INDEX_FILE, ROWS_FILE, build_neighbours, load_neighbours
from energymt.data.sentence_vectors import SentenceEncoder, mean_states, sentence_transformer, translator_encoder
from energymt.errors import ConfigurationError, DataError, StorageError
from energymt.folders import verify_manifest
from energymt.models import TranslationModel
from tests import estimators, tiny


def texts(count: int, seed: int) -> list[str]:
    return [" ".join(map(str, words)) for words in tiny.sentences(count, seed=seed)]


UNLABELLED = Corpus(list(dict.fromkeys(texts(40, seed=1)))[:30], None, "more.tsv (de)")
LABELLED = Corpus([*texts(8, seed=2), *UNLABELLED.source[3:6]], None, "few.tsv (de)")
MODELS: dict[str, Callable[..., TranslationModel]] = {
    "transformer": tiny.scratch,
    "recurrent": tiny.recurrent,
    "masked": tiny.masked,
    "tagger": tiny.tagger,
}


def circle(texts: Sequence[str]) -> NDArray[np.float32]:
    """A text is an angle in degrees, and perhaps a letter; vectors of any length."""
    angles = np.radians([float(text.rstrip("abc")) for text in texts])
    return (np.stack([np.cos(angles), np.sin(angles)], 1) * (1 + np.abs(angles))[:, None]).astype(np.float32)


ENCODER = SentenceEncoder("runs/teacher/model", "f" * 64, circle)


def angles(*values: object, origin: str = "a.tsv (de)") -> Corpus:
    return Corpus([str(value) for value in values], None, origin)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder of neighbours of the angles 0 and 90."""
    build_neighbours(tmp_path / "near", angles(0, 90), angles(10, 80, 95), ENCODER)
    return tmp_path / "near"


# ---------------------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize("family", MODELS)
def test_neighbours_are_those_of_brute_force(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[family](dropout=0.4)
    monkeypatch.setattr(sentence_vectors, "TOKENS", 20)  # several batches
    encoder = translator_encoder(model.train(), "a", "f")
    rows_NK = build_neighbours(tmp_path / "near", LABELLED, UNLABELLED, encoder, count=3)
    assert model.training and rows_NK.shape == (len(LABELLED), 3) and rows_NK.dtype == np.int64

    def alone(text: str) -> NDArray[np.float64]:
        with torch.no_grad():
            source = tiny.source_of([[int(word) for word in text.split()]], model.vocabulary)
            vector = model.eval().encode(source).states_BSD[0].double().mean(0).numpy()
        return vector / np.linalg.norm(vector)

    others = np.stack([alone(text) for text in UNLABELLED.source])
    for text, rows in zip(LABELLED.source, rows_NK, strict=True):
        cosines = others @ alone(text)
        cosines[[other == text for other in UNLABELLED.source]] = -2
        assert cosines[rows] == pytest.approx(np.sort(cosines)[::-1][:3], abs=1e-5)
        assert text not in [UNLABELLED.source[row] for row in rows]


def test_the_length_of_a_vector_and_its_batch_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.scratch()
    together = mean_states(model, UNLABELLED.source)
    monkeypatch.setattr(sentence_vectors, "TOKENS", 1)
    assert mean_states(model, UNLABELLED.source) == pytest.approx(together, abs=1e-5)
    assert len(np.unique(together.round(4), axis=0)) == len(UNLABELLED)


def test_a_sentence_is_no_neighbour_of_itself(tmp_path: Path) -> None:
    unlabelled = angles(90, 0, "0a", 0, 5, 0, "5b")
    rows_NK = build_neighbours(tmp_path / "near", angles(0, 5, 90, 91), unlabelled, ENCODER, count=2)
    names = [[unlabelled.source[row] for row in rows] for rows in rows_NK]
    assert names[0][0] == "0a" and names[0][1] in ("5", "5b")
    assert names[1] == ["5b", "0"] or names[1] == ["5b", "0a"]
    assert sorted(names[2]) == ["5", "5b"]
    assert names[3][0] == "90", "a sentence that is not there loses no neighbour"
    assert 3 not in rows_NK and 5 not in rows_NK, "a sentence that is there three times is known by its first row"


def test_too_few_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tsv \(de\) holds 1 different sentences beside '0', and 2 neighbours"):
        build_neighbours(tmp_path / "near", angles(7, 0), angles(0, 1, 1, 0), ENCODER, count=2)
    assert build_neighbours(tmp_path / "near", angles(7), angles(0, 1, 1, 0), ENCODER, count=2).tolist() == [[1, 0]]
    with pytest.raises(DataError, match="holds 0 different sentences beside '0'"):
        build_neighbours(tmp_path / "other", angles(0), angles(0, 0), ENCODER)
    assert not (tmp_path / "other").exists()


def test_a_vector_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="runs/teacher/model gives 'nan' a vector that is not finite"):
        build_neighbours(tmp_path / "near", angles(0), angles(1, "nan", 2), ENCODER)


def test_of_a_long_sentence_the_beginning_is_read() -> None:
    model = tiny.masked()
    assert model.longest == 16
    long = " ".join(["7", "8"] * 30)
    found = mean_states(model, [long, " ".join(["7", "8"] * 8)])
    with torch.no_grad():
        ids_BS = torch.tensor([[7, 8] * 8])
        wanted = model.encode(tiny.Source(ids_BS, torch.ones_like(ids_BS, dtype=torch.bool))).states_BSD[0].mean(0)
    assert found[0] == pytest.approx(wanted.numpy(), abs=1e-5)
    assert found[1] == pytest.approx(found[0], abs=1e-5)  # its end token is cut off


# ----------------------------------------------------------------------------------------------------- the stored index

UNDER = angles(10, 80, "80a", 80, 95)


def counting(encoder: SentenceEncoder) -> tuple[SentenceEncoder, list[str]]:
    """The encoder, and what it has read."""
    heard: list[str] = []
    return replace(encoder, vectors=lambda texts: (heard.extend(texts), encoder.vectors(texts))[1]), heard


def test_an_index_of_the_same_text_is_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, (encoder, heard) = tmp_path / "near", counting(ENCODER)
    build_neighbours(folder, angles(0, 90), UNDER, encoder)
    assert heard == ["10", "80", "80a", "95", "0", "90"] and capsys.readouterr().err == ""
    heard.clear()
    labelled = angles(84, "80a", 10, 0)
    found = build_neighbours(folder, labelled, replace(UNDER, target=["x"] * 5), encoder, count=2)
    assert heard == ["84", "0"], "what is not in the index"
    wanted = build_neighbours(tmp_path / "other", labelled, UNDER, ENCODER, count=2)
    assert found.tolist() == wanted.tolist() == load_neighbours(folder, labelled, UNDER).tolist()
    said = f"{folder} holds the vectors of this unlabelled text by this encoder: they are used again.\n"
    assert capsys.readouterr().err == said
    heard.clear()
    assert build_neighbours(folder, angles(10, 95), UNDER, encoder)[0].tolist() in ([1], [2])
    assert heard == [], "all are in the index"
    one, other = ((tmp_path / name / INDEX_FILE).read_bytes() for name in ("near", "other"))
    assert one == other


@pytest.mark.parametrize("change", ["encoder", "text", "order", "damage"])
def test_another_index_is_made_anew(change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, (encoder, heard) = tmp_path / "near", counting(ENCODER)
    build_neighbours(folder, angles(0, 90), UNDER, encoder)
    heard.clear()
    unlabelled = {"text": angles(10, 80, 95), "order": angles(10, 80, "80a", 95, 80)}.get(change, UNDER)
    if change == "encoder":
        encoder = replace(encoder, fingerprint="e" * 64)
    if change == "damage":
        os.truncate(folder / INDEX_FILE, 40)
    build_neighbours(folder, angles(0, 90), unlabelled, encoder)
    assert heard == [*dict.fromkeys(unlabelled.source), "0", "90"] and capsys.readouterr().err == ""
    assert load_neighbours(folder, angles(0, 90), unlabelled).tolist()[0] == [0]


# ---------------------------------------------------------------------------------------------------------- the folder


def test_what_was_found_is_loaded_for_the_same_text(built: Path) -> None:
    assert load_neighbours(built, angles(0, 90), angles(10, 80, 95)).tolist() == [[0], [2]]
    with_targets = Corpus(["0", "90"], ["zero", "ninety"], "elsewhere.tsv (de → en)")
    assert load_neighbours(built, with_targets, angles(10, 80, 95, origin="copy.txt")).tolist() == [[0], [2]]
    index = faiss.read_index(str(built / INDEX_FILE))
    queries = circle(["94", "1"])
    faiss.normalize_L2(queries)
    assert index.search(queries, 1)[1].tolist() == [[2], [0]]
    assert sorted(path.name for path in built.iterdir()) == ["energymt.json", INDEX_FILE, ROWS_FILE]
    facts = verify_manifest(built)
    assert (facts["encoder"], facts["encoder_fingerprint"], facts["count"]) == ("runs/teacher/model", "f" * 64, 1)


@pytest.mark.parametrize(
    "labelled, unlabelled, side",
    [
        (angles(0, 91), angles(10, 80, 95), "labelled"),
        (angles(90, 0), angles(10, 80, 95), "labelled"),
        (angles(0), angles(10, 80, 95), "labelled"),
        (angles(0, 90), angles(10, 80), "unlabelled"),
        (angles(0, 90), angles(80, 10, 95), "unlabelled"),
        (angles(10, 80, 95), angles(0, 90), "labelled"),
    ],
)
def test_other_text_is_refused(labelled: Corpus, unlabelled: Corpus, side: str, built: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_neighbours(built, labelled, unlabelled)
    count = {"labelled": 2, "unlabelled": 3}[side]
    assert f"found for another {side} text, {count} sentences of a.tsv (de), than the " in str(caught.value)
    assert "energymt data neighbours runs/teacher/model --labelled FILE" in str(caught.value)
    assert f"--count 1 --output {built})" in str(caught.value)


@pytest.mark.parametrize("name", [INDEX_FILE, ROWS_FILE])
def test_a_damaged_folder_is_refused(name: str, built: Path) -> None:
    def failure() -> str:
        with pytest.raises(StorageError) as caught:
            load_neighbours(built, angles(0, 90), angles(10, 80, 95))
        return str(caught.value)

    whole = (built / name).read_bytes()
    (built / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert f"{name} was changed" in failure()
    os.truncate(built / name, 20)
    assert f"{name} has 20 bytes" in failure()
    (built / name).unlink()
    assert f"{name} is missing" in failure()
    (built / "energymt.json").write_text("{")
    assert "energymt.json is damaged" in failure()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, built: Path) -> None:
    def failure(folder: Path) -> str:
        with pytest.raises(StorageError) as caught:
            load_neighbours(folder, angles(0), angles(1))
        return str(caught.value)

    assert "does not exist" in failure(tmp_path / "none") and "energymt data neighbours MODEL" in failure(
        tmp_path / "none"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "energymt.json").write_text(json.dumps({"files": {}, "provenance": {"step": 3}}))
    assert "holds no neighbours" in failure(tmp_path / "model")
    with pytest.raises(StorageError, match="holds other files than neighbours; name a new folder"):
        build_neighbours(tmp_path / "model", angles(0), angles(1), ENCODER)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["energymt.json"]
    build_neighbours(built, angles(0), angles(1, 2), ENCODER, count=2)
    assert load_neighbours(built, angles(0), angles(1, 2)).tolist() == [[0, 1]], "neighbours are replaced"


# ---------------------------------------------------------------------------------------- a sentence-transformers model


def test_without_the_library_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigurationError, match=r"needs the library sentence-transformers.*extra `neighbours`"):
        sentence_transformer(tmp_path, "mpnet", "f", torch.device("cpu"))


def test_a_sentence_transformers_model(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="needs energymt[neighbours]")
    library.SentenceTransformer(str(estimators.pretrained()), device="cpu").save(str(tmp_path / "model"))
    encoder = sentence_transformer(tmp_path / "model", "mpnet", "f", torch.device("cpu"))
    lines = estimators.SOURCES
    vectors = encoder.vectors(lines)
    model = estimators.estimator("kiwi")
    for line, vector in zip(lines, vectors, strict=True):
        ids_BJ = torch.tensor([model.vocabulary.encode_source(line)])
        wanted = model.encoder(input_ids=ids_BJ).last_hidden_state[0].mean(0)
        assert vector == pytest.approx(wanted.numpy(), abs=1e-4)
    corpus = Corpus(lines, None, "a")
    rows_NK = build_neighbours(tmp_path / "near", corpus, corpus, encoder, count=2)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T - 3 * np.eye(len(lines))
    assert np.take_along_axis(cosines, rows_NK, 1) == pytest.approx(-np.sort(-cosines)[:, :2], abs=1e-5)
    facts = verify_manifest(tmp_path / "near")
    assert facts["encoder"] == "--sentence-transformer mpnet"
    assert facts["encoder_fingerprint"] != "f", "a translator's encoder in the same folder gives other vectors"


def test_a_folder_that_is_no_sentence_transformers_model(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs energymt[neighbours]")
    (tmp_path / "model").mkdir()
    with pytest.raises(StorageError, match="model holds no sentence-transformers model"):
        sentence_transformer(tmp_path / "model", "mpnet", "f", torch.device("cpu"))
