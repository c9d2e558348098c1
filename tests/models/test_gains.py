"""Gains that were found against those that were promised: the fit, and the file beside a proxy."""

from pathlib import Path

import numpy as np
import pytest

from energymt.errors import StorageError
from energymt.models.gains import GAINS_FILE, Gain, fit_gain, read_gains, write_gains
from energymt.models.proxy import load_proxy
from tests import proxies


def test_the_kept_part_is_the_least_squares_slope_through_the_origin() -> None:
    random = np.random.default_rng(1)
    promised_N = random.uniform(5.0, 40.0, 500)
    found_N = 0.1 * promised_N + random.normal(0.0, 3.0, 500)
    gain = fit_gain("relative", 1, 0.2, promised_N, found_N)
    wanted = np.linalg.lstsq(promised_N[:, None], found_N, rcond=None)[0][0]
    assert gain.kept == pytest.approx(wanted) and abs(gain.kept - 0.1) < 0.02
    assert gain.error == pytest.approx(3.0, rel=0.1)
    assert (gain.promised, gain.found) == pytest.approx((promised_N.mean(), found_N.mean()))
    assert (gain.key, gain.sentences) == (("relative", 1, 0.2), 500)


def test_what_is_lost_is_not_kept() -> None:
    promised_N = np.array([1.0, 2.0, 3.0])
    lost = fit_gain("unit", 2, 0.1, promised_N, -promised_N)
    assert lost.kept == 0.0 and lost.error == pytest.approx(np.sqrt(14 / 3)) and lost.found == -2.0
    against = fit_gain("unit", 2, -0.1, -promised_N, -0.5 * promised_N)  # against the gradient, and worse indeed
    assert against.kept == pytest.approx(0.5) and against.error == pytest.approx(0.0, abs=1e-12)
    nothing = fit_gain("unit", 2, 0.1, np.zeros(3), promised_N)
    assert nothing.kept == 0.0


def gain(alpha: float, kept: float, steps: int = 1) -> Gain:
    return Gain("relative", steps, alpha, 10.0, 10.0 * kept, kept, 4.0, 100)


def test_gains_stand_beside_the_proxy_and_others_stay(tmp_path: Path) -> None:
    proxies.proxy(4).save_pretrained(tmp_path / "proxy")
    assert load_proxy(tmp_path / "proxy").gains == {}
    write_gains(tmp_path / "proxy", [gain(0.1, 0.2), gain(0.2, 0.1), gain(0.2, 0.3, steps=4)])
    write_gains(tmp_path / "proxy", [gain(0.2, 0.05)])
    wanted = {one.key: one for one in (gain(0.1, 0.2), gain(0.2, 0.05), gain(0.2, 0.3, steps=4))}
    assert load_proxy(tmp_path / "proxy").gains == wanted == read_gains(tmp_path / "proxy")


@pytest.mark.parametrize("content", ["[", "[{}]", '[{"alpha": 1}]', "7"])
def test_a_damaged_file_is_a_sentence(content: str, tmp_path: Path) -> None:
    proxies.proxy(4).save_pretrained(tmp_path)
    (tmp_path / GAINS_FILE).write_text(content, "utf-8")
    with pytest.raises(StorageError, match=r"gains\.json cannot be read .* remove it"):
        load_proxy(tmp_path)
