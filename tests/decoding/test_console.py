"""`energymt translate` where a pool chooses: it is asked for text alone, and left in any case."""

import io
import sys

import pytest

from energymt.decoding import DecodingOptions, Translator, console
from energymt.quality import Quality
from tests import estimators


@pytest.mark.parametrize("given, error", [(b"5 6 7\n8 9\n", None), (b"5 6 7\n\xff\n", "Line 2 of the input")])
def test_a_pool_chooses_and_is_left(given, error, transformer, monkeypatch, capsys):
    held = []

    def opened(address, device):
        assert (address, device.type) == ("pool:default", "cpu")
        held.append(address)
        return Quality(
            estimators.estimator("kiwi"),
            lambda sources, texts: [-float(len(text)) for text in texts],
            close=lambda: held.remove(address),
        )

    monkeypatch.setattr(console, "open_quality", opened)
    monkeypatch.setattr(console, "fetch", {"model": "model"}.__getitem__)  # a pool has no folder to fetch
    monkeypatch.setattr(console, "load_translator", lambda folder: transformer)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    options = DecodingOptions(beam=4, max_length=5)
    settings = {"rerank": "pool:default", "engine": "torch", "precision": "fp32"}
    if error is None:
        console.translate_stream("model", options, **settings)
    else:
        with pytest.raises(console.DataError, match=error):
            console.translate_stream("model", options, **settings)
    lines = given.decode("utf-8", "replace").splitlines()[: 1 if error else 2]
    listed = Translator(transformer, options.model_copy(update={"n_best": 4})).translate(lines)
    wanted = [min((text for text, _ in found), key=len) for found in listed]
    assert capsys.readouterr().out.splitlines() == wanted
    assert wanted != [found[0][0] for found in listed], "the test sees nothing"
    assert held == []
