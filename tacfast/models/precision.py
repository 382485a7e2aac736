"""Where a processor computes in bfloat16 natively, training in it takes half the time."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices itself: GPUs of capability 8.0 and up, AVX512-BF16 and AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def bfloat16_autocast(device: torch.device, *, enabled: bool = True) -> AbstractContextManager[Any]:
    """Mixed precision, which may enclose whole trainings: no copy of a weight outlives the step that changes it."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if enabled else nullcontext()
