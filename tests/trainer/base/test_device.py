import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT
from trainer.base.device import (
    choose_device,
    choose_dtype,
    has_native_bf16,
    make_deterministic,
    multiply_fp32_by_onednn,
)
from trainer.errors import UserError


def test_auto_is_a_device_that_works() -> None:
    device = choose_device("auto")
    assert (torch.ones(2, device=device) + 1).sum().item() == 4


def test_cudnn_attention_is_off() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        choose_device("cpu")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("name", ["cuda:99", "mps"])
def test_a_missing_device_is_one_line(name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        assert choose_device(name).type == "mps"
        return
    with pytest.raises(UserError, match=f"--device {name}: .*--device cpu"):
        choose_device(name)


def test_bf16_is_used_if_native_or_requested() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("auto", cpu) == (torch.bfloat16 if has_native_bf16(cpu) else torch.float32)
    assert choose_dtype("bf16", cpu) == torch.bfloat16
    assert choose_dtype("fp32", cpu) == torch.float32
    about = Path("/proc/cpuinfo")
    if about.exists() and "flags" in (flags := about.read_text()):
        assert has_native_bf16(cpu) == ("avx512_bf16" in flags or "amx_bf16" in flags)


def test_deterministic_kernels_are_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(False)
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(before)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


MEMORY = """
import random, resource, sys, torch
from trainer.base.device import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
torch.set_num_threads(1)
draw, before = random.Random(0), 0
for number in range(12):
    tensors = [torch.ones(draw.choice((50_000, 300_000, 900_000, 3_000_000))) for _ in range(30)]
    del tensors
    if number == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.full
def test_freed_memory_is_reused_for_the_next_tensors() -> None:
    """Measured in page faults: memory returned to the system has to be requested again."""
    faults = [
        int(subprocess.run([sys.executable, "-c", MEMORY, *word], capture_output=True, check=True, cwd=PROJECT).stdout)
        for word in ([], ["keep"])
    ]
    assert faults[1] < faults[0] / 3, faults


@pytest.fixture
def by_default() -> Iterator[None]:
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    yield
    torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.usefixtures("by_default")
def test_fp32_products_stay_exact() -> None:
    multiply_fp32_by_onednn()
    left, right = torch.randn(255, 384), torch.randn(8192, 384)
    exact = left.double() @ right.double().T
    assert (left @ right.T - exact).norm() < 1e-6 * exact.norm()
    has_amx = torch.cpu._is_amx_tile_supported()  # then bf16 would be used, so nothing is changed
    assert torch.backends.mkldnn.matmul.fp32_precision == ("none" if has_amx else "bf16")


@pytest.mark.usefixtures("by_default")
def test_a_cpu_that_would_compute_them_in_bf16_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    product = torch.Tensor.__matmul__

    def as_with_amx(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float64 or torch.backends.mkldnn.matmul.fp32_precision != "bf16":
            return product(left, right)
        return product(left.bfloat16().float(), right.bfloat16().float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", as_with_amx)
    multiply_fp32_by_onednn()
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


@pytest.mark.parametrize("matmul", [None, object()], ids=["no settings", "another name"])
def test_a_torch_without_the_private_setting_computes_the_same(monkeypatch: pytest.MonkeyPatch, matmul: object) -> None:
    left, right = torch.randn(64, 64), torch.randn(64, 64)
    before = left @ right
    monkeypatch.setattr(torch.backends.mkldnn, "matmul", matmul)
    multiply_fp32_by_onednn()
    assert torch.equal(left @ right, before) and torch.backends.mkldnn.matmul is matmul
