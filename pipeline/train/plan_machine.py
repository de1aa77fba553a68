"""The machines that `gonggam plan` knows (gpus.yaml), and this one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from gonggam.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A machine: memory in GiB, dense half-precision rate in teraflop/s, and whether it has bfloat16."""

    name: str
    memory: float
    tflops: float
    bf16: bool = True

    @property
    def usable(self) -> float:
        """Bytes left for training, after driver and fragmentation."""
        taken = 0.0 if self.name == "cpu" else known()["context"]
        return (self.memory - taken) * (1 - known()["fragmentation"]) * GIB


def gpu_named(name: str) -> Gpu:
    """A machine by name; ``cpu`` is this one, its rate measured by a matrix product.

    Raises:
        UserError: nothing is known of it.
    """
    if name == "cpu":
        return Gpu("cpu", _own_memory() / GIB, _own_rate(), bf16=False)
    machines = known()["gpus"]
    if name not in machines:
        raise UserError(f"unknown GPU {name!r}", f"name one of: {', '.join(machines)}, cpu")
    return Gpu(name, **machines[name])


@cache
def known() -> dict[str, Any]:
    """gpus.yaml."""
    return yaml.safe_load(Path(__file__).with_name("gpus.yaml").read_text("utf-8"))


def _own_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _own_rate() -> float:
    """Teraflop/s of fp32 matrix products on this processor."""
    a = torch.rand(512, 512)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * 512**3 / min(seconds) / 1e12
