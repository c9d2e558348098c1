"""The table of gradients in enumerable worlds has every estimator, and the one that is unbiased reads so."""

import re
import sys

import pytest

from benchmarks import enumerable


def test_a_small_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["enumerable", "--worlds", "1", "--draws", "2"])
    monkeypatch.setattr(enumerable, "GROUPS", 20)
    enumerable.main()
    out = capsys.readouterr().out
    for setting in enumerable.SETTINGS:
        assert f"**{setting.title}**" in out
    number = r"-?\d+\.\d\d \(-?\d+\.\d\d to -?\d+\.\d\d\)"
    rows = re.findall(rf"^\| (\w+ \| \S+) \| {number} \| {number} \| {number} \|$", out, re.MULTILINE)
    hard = [f"{name} | {value}" for name in ("STL", "SG", "ST") for value in ("sampled", "argmax")]
    assert sorted(rows) == sorted(3 * ["SX | –", "GX | –", "REINFORCE | –", *hard])
    assert out.count("| REINFORCE | – | 0.00 (0.00 to 0.00) | 1.00 (1.00 to 1.00) |") == 3
