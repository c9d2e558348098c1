import json

import pytest

from energymt.decoding import DecodingOptions, Translator
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError, StorageError
from energymt.export import export_model, load_export
from energymt.folders import verify_manifest
from tests import tiny


@pytest.fixture
def folders(tmp_path, learned_teacher, learned_student):
    """Model folders: {"ctranslate2": autoregressive, "onnx": not}."""
    models = {"ctranslate2": learned_teacher, "onnx": learned_student}
    for kind, model in models.items():
        model.save(tmp_path / kind)
    return {kind: tmp_path / kind for kind in models}


@pytest.fixture(params=["ctranslate2", "onnx"])
def kind(request):
    return request.param


def test_an_export_takes_the_place_of_its_model(kind, folders, learned_teacher, learned_student, texts):
    export_model(folders[kind], kind)
    engine = load_export(folders[kind], kind)
    model = learned_teacher if kind == "ctranslate2" else learned_student
    lines = [*texts(30), "", "unheard of words"]
    for options in (
        DecodingOptions(beam=1, length_beam=1, iterations=1),
        DecodingOptions(beam=4, length_beam=3, iterations=1, n_best=2, tokens_per_batch=60),
        DecodingOptions(beam=3, length_beam=2, iterations=3, max_source_tokens=5),
    ):
        wanted, found = (Translator(one, options).translate(lines) for one in (model, engine))
        assert [items[0][0] for items in found] == [items[0][0] for items in wanted]
        assert len({items[0][0] for items in wanted}) > 10
    assert [items[0][0] for items in Translator(engine, options).stream(lines)] == [items[0][0] for items in found]


def test_an_energy_ranks_what_an_engine_finds(kind, folders, learned_teacher, learned_student, texts):
    export_model(folders[kind], kind)
    engine = load_export(folders[kind], kind)
    model = learned_teacher if kind == "ctranslate2" else learned_student
    energy = AutoregressiveEnergy(learned_teacher)
    options = DecodingOptions(beam=4, length_beam=4, iterations=1)
    found, wanted = (Translator(one, options, energy).translate(texts(12)) for one in (engine, model))
    assert [items[0][0] for items in found] == [items[0][0] for items in wanted]
    values = [[items[0][1].extra["energy"] for items in system] for system in (found, wanted)]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def test_it_lies_in_the_model_folder_or_where_it_is_wanted(kind, folders, tmp_path):
    assert export_model(folders[kind], kind, "int8") == folders[kind] / "exports" / f"{kind}-int8"
    assert export_model(folders[kind], kind, "fp32", tmp_path / "out") == tmp_path / "out"
    assert verify_manifest(tmp_path / "out")["exported"] == str(folders[kind])
    assert json.loads((tmp_path / "out" / "export.json").read_text())["precision"] == "fp32"
    assert load_export(tmp_path / "out", kind).vocabulary.fingerprint
    with pytest.raises(ConfigurationError, match=f"is a {kind} export in fp32"):
        load_export(tmp_path / "out", kind, "int8")
    export_model(folders[kind], kind, "int8", tmp_path / "out")
    load_export(tmp_path / "out", kind, "int8")


def test_a_missing_export_names_the_command(kind, folders):
    with pytest.raises(ConfigurationError, match=f"energymt models export .* --kind {kind} --precision int8"):
        load_export(folders[kind], kind, "int8")


def test_an_export_of_older_weights_is_refused(kind, folders, words):
    export_model(folders[kind], kind)
    newer = {"ctranslate2": tiny.scratch, "onnx": tiny.masked}[kind](words)
    newer.save(folders[kind])
    with pytest.raises(ConfigurationError, match="newer"):
        load_export(folders[kind], kind)
    export_model(folders[kind], kind)
    load_export(folders[kind], kind)


def test_a_cut_file_is_named(kind, folders):
    out = export_model(folders[kind], kind)
    file = out / {"ctranslate2": "model.bin", "onnx": "weights.bin"}[kind]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StorageError, match=file.name):
        load_export(folders[kind], kind)


def test_the_other_kind_of_model_is_refused_and_nothing_is_written(kind, folders):
    other = {"ctranslate2": "onnx", "onnx": "ctranslate2"}[kind]
    with pytest.raises(ConfigurationError, match="takes"):
        export_model(folders[kind], other)
    assert not (folders[kind] / "exports" / f"{other}-fp32").exists()


def test_unknown_kinds_and_precisions_are_named(folders):
    with pytest.raises(ConfigurationError, match="'tensorrt'; choose one of ctranslate2, onnx"):
        export_model(folders["onnx"], "tensorrt")
    with pytest.raises(ConfigurationError, match="'fp8'; choose one of fp32, int8"):
        load_export(folders["onnx"], "onnx", "fp8")


def test_a_failed_export_leaves_the_old_one(kind, folders, monkeypatch):
    out = export_model(folders[kind], kind)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    monkeypatch.setattr(
        "energymt.export.write_manifest", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(StorageError, match="disk is full"):
        export_model(folders[kind], kind)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
