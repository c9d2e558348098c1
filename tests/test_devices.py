"""The precision of a run."""

import pytest
import torch

from energymt.devices import choose_precision
from energymt.errors import ResourceError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "without"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_bf16_of_a_processor_that_has_none_is_refused(
    capabilities: dict[str, object], without: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("fp32", CPU) == choose_precision("auto", CPU) == "fp32"
    if without:
        with pytest.raises(ResourceError, match=r"no instructions for it \(avx512_bf16 or amx\): use precision: fp32"):
            choose_precision("bf16", CPU)
    else:
        assert choose_precision("bf16", CPU) == "bf16"


def test_this_processor_says_what_it_has() -> None:
    found = torch.cpu.get_capabilities()
    assert "architecture" in found and (found["architecture"] != "x86_64" or "avx512_bf16" in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_takes_bf16_by_itself() -> None:
    wanted = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    assert choose_precision("auto", torch.device("cuda")) == wanted
