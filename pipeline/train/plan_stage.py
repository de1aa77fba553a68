"""What the plan of a training stage is: the settings it is made for, and what they will cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pipeline.train.plan_data import Batches, Rows
    from pipeline.train.plan_machine import Gpu


@dataclass(frozen=True)
class Options:
    """The settings of a training stage that memory and time depend on, as TRL's arguments have them."""

    batch: int
    accumulation: int
    epochs: float
    max_steps: int
    max_length: int | None
    packing: bool
    checkpointing: bool
    optim: str
    quantization: str
    dtype: torch.dtype
    mixed: torch.dtype | None = None


@dataclass(frozen=True)
class StagePlan:
    """What a stage will cost.

    Attributes:
        rows: the data.
        drawn: an epoch as the trainer reads it; padded, dense: as padded batches and packed ones would be.
        apart: why rows cannot stand side by side and are padded; None if they can.
        steps: optimiser steps in all; epochs: passes over the data.
        parameters, trainable: of the model, and those that are trained.
        memory: bytes at the peak of a step, by kind.
        flops: floating-point operations in all, on all GPUs.
        seconds: of training alone, at the assumed share of the GPU's rate.
    """

    name: str
    options: Options
    rows: Rows
    drawn: Batches
    padded: Batches
    dense: Batches
    apart: str | None
    steps: int
    epochs: float
    parameters: int
    trainable: int
    memory: Mapping[str, int]
    flops: float
    seconds: float
    gpu: Gpu

    @property
    def peak(self) -> int:
        """Bytes of all kinds together."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within what the GPU has to give."""
        return self.peak <= self.gpu.usable
