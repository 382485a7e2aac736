"""What this installation is and what it finds on this machine; plain values, ready for JSON."""

from __future__ import annotations

import platform
import re
import sys
import warnings
from typing import Any

import numpy as np
import torch

from .solver._compiled import build_info

_SLOW = "The compiled extension is missing: everything is solved in plain torch, much more slowly."
_WITHOUT_CUDA = (
    "This build has no CUDA part: tensors on a GPU are solved there in plain torch. Installing tacfast where the CUDA "
    "compiler (nvcc) is on the PATH builds it."
)


def installation(version: str) -> dict[str, Any]:
    """Versions, code paths and devices of this installation of tacfast ``version``.

    ``messages`` says in sentences what keeps the CUDA part of the build from being used.
    """
    build = build_info()
    devices = torch_devices()
    return {
        "tacfast": version,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.platform()}, {sys.byteorder}-endian",
        "cpu": {"code_path": build.get("cpu_instruction_set"), "threads": torch.get_num_threads()},
        "build": {
            "compiled": bool(build),
            "cuda_archs": build.get("cuda_archs"),
            "cuda_runtime": cuda_version(build.get("cuda_runtime", 0)),
        },
        "driver": cuda_version(build.get("cuda_driver", 0)),
        "devices": devices,
        "messages": explain(build, devices),
    }


def cuda_version(number: int) -> str | None:
    """The version that the CUDA runtime writes as a number: "13.2" for 13020, None for 0."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def torch_devices() -> list[dict[str, Any]]:
    """Name, compute capability and memory of the CUDA devices that torch can use."""
    with warnings.catch_warnings():  # of a driver too old for torch: `explain` has a sentence for it
        warnings.simplefilter("ignore")
        try:
            properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        except (RuntimeError, AssertionError):
            return []
    return [
        {"name": p.name, "compute_capability": f"{p.major}.{p.minor}", "memory_bytes": p.total_memory}
        for p in properties
    ]


def explain(build: dict[str, Any], devices: list[dict[str, Any]]) -> list[str]:
    """Sentences about what is missing; none if the CUDA part of the build can be used."""
    if not build:
        return [_SLOW]
    if "cuda_runtime" not in build:
        return [_WITHOUT_CUDA]
    driver, runtime = build["cuda_driver"], build["cuda_runtime"]
    if not driver:
        return ["There is no NVIDIA driver on this machine: only the CPU is used."]
    if not build["cuda_devices"] and driver // 1000 < runtime // 1000:
        return [
            f"The NVIDIA driver is too old: it supports CUDA {cuda_version(driver)}, and this build needs CUDA "
            f"{runtime // 1000}.0 or later. Update the driver, or build tacfast with an older CUDA compiler."
        ]
    if not build["cuda_devices"]:
        return [f"The NVIDIA driver finds no usable device ({build['cuda_message'] or 'it gives no reason'})."]
    if not devices:
        return [f"There is a device, but torch {torch.__version__} cannot use it: {_why_torch_cannot()}."]
    oldest = min(map(int, re.findall(r"\d+", build["cuda_archs"])), default=0)  # none in all-major
    return [
        f"{device['name']} is too old for this build, which has code for architectures {build['cuda_archs']}."
        for device in devices
        if int(device["compute_capability"].replace(".", "")) < oldest
    ]


def _why_torch_cannot() -> str:
    if torch.version.cuda is None:
        return "it was built without CUDA"
    return f"it was built for CUDA {torch.version.cuda}, which may need a newer driver"
