import importlib.util
import sysconfig
from pathlib import Path

import pytest
import torch

from trainer.compilation import GAIN, SECONDS_TO_COMPILE, compiler_settings, compiling_pays, why_not_compile

CPU = torch.device("cpu")


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton" in why_not_compile(torch.device("cuda:0"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert why_not_compile(torch.device("cuda:0")) == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    other = tmp_path / "c++"  # which torch does not look for
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert "compiler" in why_not_compile(CPU)
    monkeypatch.setenv("CXX", "c++")
    assert why_not_compile(CPU) == ""


def test_missing_headers_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert why_not_compile(CPU) == ""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert "headers" in why_not_compile(CPU)


def test_it_pays_once_a_run_is_long_enough() -> None:
    pays = [compiling_pays(steps, 0.1) for steps in (100, 1_000, 5_000, 10_000, 20_000, 1_000_000)]
    assert pays == sorted(pays) and not pays[0] and pays[-1]
    first = next(steps for steps in range(1, 10**6) if compiling_pays(steps, 0.1))
    assert first == pytest.approx(SECONDS_TO_COMPILE / GAIN / 0.1, abs=1)
    assert compiling_pays(first // 2 + 1, 0.2)  # what counts is the time


@pytest.mark.parametrize("deterministic", [False, True])
def test_nothing_that_is_timed_decides_on_a_kernel_of_a_deterministic_run(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    with compiler_settings(256):
        assert torch._inductor.config.deterministic is deterministic
    assert not torch._inductor.config.deterministic
