"""Which device and dtype really work here: found out by trying, not by asking the build."""

import contextlib
import ctypes
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from trainer.errors import UserError

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Of `mallopt` in glibc's malloc.h."""


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` takes the first of cuda, mps, cpu that works.

    Raises:
        UserError: the named device is not there, or fails at its first operation.
    """
    attend_without_cudnn()
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"--device must be auto, cpu, cuda, cuda:N or mps, not {name!r}")
    if name == "auto":
        for candidate in ("cuda", "mps"):
            if not _fault(candidate):
                return torch.device(candidate)
        return torch.device("cpu")
    fault = _fault(name)
    if fault:
        raise UserError(f"--device {name}: {fault}. Use --device cpu, or auto")
    return torch.device(name)


def _fault(name: str) -> str:
    """Why the device can't be used, or nothing. One operation is tried: a build may see a card that it can't run on."""
    kind = name.partition(":")[0]
    if kind == "cuda":
        if not torch.cuda.is_available():
            return "this torch sees no CUDA device" if torch.version.cuda else "this torch is a build without CUDA"
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            return f"there are {torch.cuda.device_count()} CUDA devices, numbered from 0"
    if kind == "mps" and not torch.backends.mps.is_available():
        return "this machine has no MPS device"
    try:
        ones = torch.ones(8, 8, device=name)
        (ones @ ones).sum().item()
    except (RuntimeError, AssertionError) as error:
        return f"it fails at its first operation ({str(error).splitlines()[0]})"
    return ""


def has_native_bf16(device: torch.device) -> bool:
    """True where bf16 products run in hardware; an emulation is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`, `bf16` or `fp32` → the dtype of the weights that compute."""
    if name == "auto":
        return torch.bfloat16 if has_native_bf16(device) else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32


def make_deterministic() -> None:
    """Have torch, for the whole process, take only kernels that give the same bits each time. Before a GPU is used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, with the first product
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module property


def attend_without_cudnn() -> None:
    """Have torch, for the whole process, attend on a GPU by kernels of its own.

    By itself it takes cuDNN's on an H100, which is given a plan of its own for each length that it has not seen: 40 ms
    for every token that is written, when it is written for the first time.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def keep_freed_memory() -> None:
    """Have the C library, for the whole process, keep up to 1 GB of what tensors give back, for the next ones.

    A step asks for the same tensors as the one before. glibc gives the larger ones back to the system each time, which
    must fill their pages with zeros before it lends them again: a quarter of an eager step of `small` on two threads.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for parameter, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20)):
            library.mallopt(parameter, size)


def multiply_fp32_by_onednn() -> None:
    """Have torch, for the whole process, multiply fp32 matrices on a CPU by oneDNN, where that stays as exact.

    By itself torch takes MKL, which takes a fifth longer for a step's products on an AMD CPU. It takes oneDNN, on CPUs
    with AVX-512, only if products may be made in bf16. Without AMX oneDNN computes in fp32 all the same: that is tried
    here, and undone where a product is less exact.

    What it comes to follows from CPU and torch, which are kept with each checkpoint (`provenance.kernels`).
    `torch.get_float32_matmul_precision` raises from then on: it has no word for this.
    """
    setting: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(setting, "fp32_precision"):  # the name may change: torch then keeps its own choice
        return
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    generator = torch.Generator().manual_seed(0)
    # As a step has them: a layer's, one of many outputs, attention's; each with those of both gradients.
    for sizes in (((256, 384), (384, 1152)), ((255, 64), (64, 8192)), ((6, 256, 64), (6, 64, 256))):
        left, right = (torch.randn(size, generator=generator) for size in sizes)
        gradient = torch.randn(*left.shape[:-1], right.shape[-1], generator=generator)
        for one, other in ((left, right), (gradient, right.mT), (left.mT, gradient)):
            exact = one.double() @ other.double()
            if (one @ other - exact).norm() > 1e-5 * exact.norm():  # bf16 is off by 2e-3
                setting.fp32_precision = before
                return


def describe_cpu() -> str:
    """Its model, and the instructions that torch uses of it: both decide which kernels are chosen."""
    model = platform.machine()
    with contextlib.suppress(OSError):  # not on macOS
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        model = found[1] if found else model
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def describe_device(device: torch.device) -> str:
    """What a person calls it: the card's name, or the number of threads used on the CPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. On a CPU torch says so by a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
