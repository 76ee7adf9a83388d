"""Describe the machine and the packages that rows are measured with."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "lightning", "torchdiffeq", "torchode", "jax", "diffrax", "numpy")


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def machine() -> dict[str, Any]:
    """Return a description of this machine; each row states the load it was measured under."""
    facts = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu()}
    facts |= {"python": platform.python_version()}
    return facts | {package: installed_version(package) for package in PACKAGES}
