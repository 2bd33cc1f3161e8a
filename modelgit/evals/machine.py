"""What durations depend on beside the program: the class of the machine."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

__all__ = ["machine_class"]

_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
)


def machine_class(device: str, surroundings: Mapping[str, str]) -> tuple[str, ...]:
    """Architecture, processor, how many of them this process may use, and the accelerator that `device` names.

    Equal for machines of one kind: neither a host's name nor how busy it is are part of it.  `surroundings` are the
    environment variables that programs are given, of which those on threads and devices count.  torch is loaded for an
    accelerator only.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = tuple(f"{name}={surroundings[name]}" for name in _VARIABLES if name in surroundings)
    return (platform.system(), platform.machine(), _processor(), f"{usable}", *limits, _accelerator(device))


def _processor() -> str:
    """The name of the processor; "" where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()


def _accelerator(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    try:
        return str(torch.cuda.get_device_name(device))
    except (RuntimeError, AssertionError, ValueError):  # there is none, which is told when the model is loaded
        return device
