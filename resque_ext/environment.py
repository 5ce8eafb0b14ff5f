"""Where a measurement is made: versions, the processor, the GPUs."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from resque_ext.ops.backend import build_info

CORE = ("torch", "numpy", "safetensors", "tqdm", "typer", "rich")


def version_of(distribution: str) -> str | None:
    """The installed version, None where it is not there; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of Python, of this package and of what it cannot do without."""
    found = {name: version_of(name) for name in CORE} | {"torch": str(torch.__version__)}
    return {"python": platform.python_version(), "resque_ext": build_info()["version"], **found}


def environment(*more: str) -> dict[str, Any]:
    """What a measurement should say of where it was made; `more` names further distributions."""
    return {
        "platform": platform.platform(),
        "versions": versions() | {name: version_of(name) for name in more},
        "torch_cuda": torch.version.cuda,
        "backend": build_info()["backend"],
        "devices": devices(),
    }


def devices() -> list[dict[str, Any]]:
    """The CPU, then every GPU that torch can use."""
    cpu = {
        "device": "cpu",
        "name": _processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    found: list[dict[str, Any]] = [cpu]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return found


def _processor() -> str | None:
    """The CPU's own name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        return platform.processor() or None
    return names[0] if names else None
