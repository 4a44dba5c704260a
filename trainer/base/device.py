"""Choose a device and dtype by trying an operation, and set up torch for it."""

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
"""Parameters of `mallopt`, from glibc's malloc.h."""


def choose_device(name: str) -> torch.device:
    """Return the device that `--device` names; `auto` is the first of cuda, mps and cpu that works.

    Raises:
        UserError: the named device is missing, or a trial operation fails on it.
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
    """Return why the device can't be used, or an empty string. A build may detect a GPU that it can't run on."""
    kind = name.partition(":")[0]
    if kind == "cuda":
        if not torch.cuda.is_available():
            return "torch finds no CUDA device" if torch.version.cuda else "this torch build has no CUDA support"
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            return f"there are {torch.cuda.device_count()} CUDA devices, numbered from 0"
    if kind == "mps" and not torch.backends.mps.is_available():
        return "this machine has no MPS device"
    try:
        ones = torch.ones(8, 8, device=name)
        (ones @ ones).sum().item()
    except (RuntimeError, AssertionError) as error:
        return f"a trial operation failed ({str(error).splitlines()[0]})"
    return ""


def has_native_bf16(device: torch.device) -> bool:
    """Return whether bf16 products run in hardware; emulated ones are slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in for `auto`, `bf16` or `fp32`."""
    if name == "auto":
        return torch.bfloat16 if has_native_bf16(device) else torch.float32
    return torch.bfloat16 if name == "bf16" else torch.float32


def make_deterministic() -> None:
    """Restrict torch to deterministic kernels in this process. Call this before a GPU is used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first product
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module property


def attend_without_cudnn() -> None:
    """Turn off cuDNN's attention kernels in this process.

    torch prefers them on an H100, but cuDNN plans each new sequence length: 40 ms for every generated token at a
    length that has not occurred before.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def keep_freed_memory() -> None:
    """Let the C library keep up to 1 GB of freed memory in this process, for the next tensors.

    Each step allocates tensors of the same sizes. By default glibc returns large ones to the system, which zeroes their
    pages before it hands them out again: a quarter of the time of an eager step of `small` on two threads.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for parameter, size in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20)):
            library.mallopt(parameter, size)


def multiply_fp32_by_onednn() -> None:
    """Let torch multiply fp32 matrices on a CPU with oneDNN in this process, if the results stay as exact.

    By default torch uses MKL, which takes a fifth longer for a step's products on an AMD CPU. On CPUs with AVX-512,
    torch uses oneDNN only if products may be computed in bf16. Without AMX, oneDNN computes in fp32 anyway. This tries
    it, and restores the setting if a product is less exact.

    The outcome follows from the CPU and the torch version, which each checkpoint records (`provenance.kernels`). From
    then on `torch.get_float32_matmul_precision` raises, because it has no name for this setting.
    """
    setting: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(setting, "fp32_precision"):  # the name may change: torch then keeps its own choice
        return
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    generator = torch.Generator().manual_seed(0)
    # The products of a step: of a layer, of the output layer and of attention, each with those of both gradients.
    for sizes in (((256, 384), (384, 1152)), ((255, 64), (64, 8192)), ((6, 256, 64), (6, 64, 256))):
        left, right = (torch.randn(size, generator=generator) for size in sizes)
        gradient = torch.randn(*left.shape[:-1], right.shape[-1], generator=generator)
        for one, other in ((left, right), (gradient, right.mT), (left.mT, gradient)):
            exact = one.double() @ other.double()
            if (one @ other - exact).norm() > 1e-5 * exact.norm():  # bf16 is off by 2e-3
                setting.fp32_precision = before
                return


def describe_cpu() -> str:
    """Return the CPU model and the instruction set that torch uses on it; both determine which kernels are chosen."""
    model = platform.machine()
    with contextlib.suppress(OSError):  # not on macOS
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        model = found[1] if found else model
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def describe_device(device: torch.device) -> str:
    """Return the device with the GPU's name, or with the number of CPU threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed. On a CPU, torch raises a plain RuntimeError for that."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
