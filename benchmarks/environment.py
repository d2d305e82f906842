"""What a benchmark ran on, as its JSON says it."""

import platform
import time
from importlib.metadata import version
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Machine, threads, versions and date."""
    return {
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("aftershock", "torch", "transformers", "numpy")},
        "date": time.strftime("%Y-%m-%d"),
    }
