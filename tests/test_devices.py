"""The precision of a run."""

import logging

import pytest
import torch

from energymt.devices import choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_bf16_on_a_processor_that_has_to_imitate_it_is_warned_of(
    capabilities: dict[str, object], slow: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with caplog.at_level(logging.WARNING):
        assert choose_precision("bf16", CPU) == "bf16"
        assert choose_precision("fp32", CPU) == choose_precision("auto", CPU) == "fp32"
    assert [record.message.partition(":")[0] for record in caplog.records] == slow * [
        "precision is bf16, which this processor has no instructions for (avx512_bf16 or amx)"
    ]


def test_this_processor_says_what_it_has() -> None:
    found = torch.cpu.get_capabilities()
    assert "architecture" in found and (found["architecture"] != "x86_64" or "avx512_bf16" in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_takes_bf16_by_itself() -> None:
    wanted = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    assert choose_precision("auto", torch.device("cuda")) == wanted
