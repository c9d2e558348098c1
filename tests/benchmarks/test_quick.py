"""Every benchmark runs from its command, in small, and prints the ratios that it promises."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PROMISED = {
    "bench_decoding": [r"quick, batch 1\n", r"quick, batch 32\n", r"CTranslate2 int8, beam 5 +[\d.]+ +[\d.]+ +1\.00"],
    "bench_embed": [r"ST: [\d.]+ times as fast", r"SX: [\d.]+ times as fast"],
    "bench_estimator_gradient": [
        rf"{operator} from {start}: [\d.]+ times as fast as published, bar [\d.]+: (met|MISSED); 1/"
        for start in ("logits", "hidden states")
        for operator in ("ST", "SX")
    ],
    "bench_pool_step": [
        r"pooled / in process: [\d.]+, bar 1\.02: (met|MISSED)",
        r"transport alone, ms: [\d.]+, bar 10: (met|MISSED)",
        r"V = 1,000: bytes / payload: 1\.0\d+, bar 1\.01: met",
        r"V = 200: bytes / payload: 1\.0\d+, bar 1\.01: met",
        r"two vocabularies differ by 0\.",
    ],
    "bench_qe_step": [
        r"energymt / reinforce: [\d.]+ times the time, [\d.]+ times the memory",
        r"energymt / published: [\d.]+ times the time, [\d.]+ times the memory, bar 1: (met|MISSED)",
        r"\npooled: [\d.]+ times the time of in process",
        r"\npooled: waiting / step 0\.\d+, bar 0\.1: (met|MISSED)",
        r"\npooled, samples ahead: waiting / step 0\.\d+, bar 0\.1: (met|MISSED)",
    ],
    "bench_pool_callers": [rf"\n{callers}( +[\d,.]+){{5}}" for callers in (1, 2, 4, 8)],
    "bench_estimator_cuda": [
        r"scores in bf16 and fp32 differ by [\d.e-]+ at most, tolerance 0\.02",
        r"matrix product: [\d.,]+ TFLOP/s",
        *(rf"{case}: [\d,]+ tokens/s, [\d.,]+ TFLOP/s" for case in ("full", "ragged", "server")),
        *(rf"{case}: share of the matrix rate: [\d.]+; attention: \w+" for case in ("full", "ragged", "server")),
    ],
    "bench_score": [
        r"equal within 0\.0001",
        r"at defaults: [\d.]+ times as fast as unbabel-comet, bar 1\.3: (met|MISSED)",
        r"each at its best: [\d.]+ times as fast",
    ],
    "bench_perturbed": [
        r"quick, batch 1\n",
        r"perturbed / plain, beam 5: [\d.]+, bar 1\.05: (met|MISSED)",
        r"sweep of 8 / 8 runs: [\d.]+, bar 0\.6: (met|MISSED)",
        r"sweep of 8 / 8 runs: [\d.]+, bar 0\.9: (met|MISSED)",
    ],
    "bench_token_log_probs": [r"frozen: [\d.]+ times as fast", r"learnt: [\d.]+ times as fast"],
    "bench_engine_step": [r"quick +fp32( +[\d,.]+){3}", r"quick +bf16( +[\d,.]+){3}|bf16 is left out"],
}
RAY = ("bench_pool_step", "bench_pool_callers", "bench_qe_step")


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_all_benchmarks_are_known() -> None:
    assert {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")} == set(PROMISED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.ray] if name in RAY else []) for name in PROMISED]
)
def test_a_quick_run(name: str) -> None:
    if name == "bench_score" and find_spec("comet") is None:
        pytest.skip("needs unbabel-comet")
    done = run(name, "--quick")
    assert done.returncode == 0, done.stderr
    for pattern in PROMISED[name]:
        assert re.search(pattern, done.stdout), f"{pattern} is not in\n{done.stdout}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("name", PROMISED)
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    done = run(name, "--quick", "--device", "cuda")
    assert done.returncode == 2 and "no CUDA device is visible" in done.stderr
