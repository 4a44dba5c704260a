import importlib.util
import sysconfig
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from trainer.learning.compilation import (
    GAIN,
    SECONDS_TO_COMPILE,
    compile_where_it_pays,
    compiler_settings,
    compiling_pays,
    why_not_compile,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_a_missing_compiler_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert why_not_compile(CPU) == ""
    with monkeypatch.context() as patch:
        patch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        assert "headers" in why_not_compile(CPU)
    for triton, missing in ((None, "triton is not installed"), (object(), "")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=triton: found)
        assert why_not_compile(GPU) == missing
    monkeypatch.setenv("PATH", str(tmp_path))
    other = tmp_path / "c++"  # torch does not look for this name
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert "compiler" in why_not_compile(CPU)
    monkeypatch.setenv("CXX", "c++")
    assert why_not_compile(CPU) == ""


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_compiling_pays_once_a_run_is_long_enough(kind: str) -> None:
    pays = [compiling_pays(steps, 0.1, kind) for steps in (100, 1_000, 5_000, 10_000, 20_000, 1_000_000)]
    assert pays == sorted(pays) and not pays[0] and pays[-1]
    first = next(steps for steps in range(1, 10**6) if compiling_pays(steps, 0.1, kind))
    assert first == pytest.approx(SECONDS_TO_COMPILE[kind] / GAIN[kind] / 0.1, abs=1)
    assert compiling_pays(first // 2 + 1, 0.2, kind)  # the total time decides
    assert not compiling_pays(10**9, 1.0, "mps"), "never measured there"


@pytest.mark.parametrize(("steps", "is_compiled"), [(1_000, False), (10_000, True)])
def test_a_long_run_on_a_gpu_is_compiled(monkeypatch: pytest.MonkeyPatch, steps: int, is_compiled: bool) -> None:
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    calls: list[bool] = []
    found = compile_where_it_pays(
        lambda: calls.append(True), None, GPU, steps=steps, seconds=0.028, say=print, compiling=nullcontext
    )
    assert found == bool(calls) == is_compiled


@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_of_a_deterministic_run_are_not_timed(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    with compiler_settings(256):
        assert torch._inductor.config.deterministic is deterministic
    assert not torch._inductor.config.deterministic
