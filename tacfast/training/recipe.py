"""How a classifier is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEDULES = ("one-cycle", "cosine")
PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """SGD with Nesterov momentum on cross-entropy, without label smoothing, on randomly cropped and mirrored images.

    Parameters
    ----------
    epochs : passes over the training images
    batch_size : images per step; an incomplete last batch is left out
    lr : peak learning rate
    schedule : ``"one-cycle"``, which rises over the first 30 % and then falls to almost zero, or ``"cosine"``, which
        falls from ``lr``
    momentum, weight_decay : of SGD
    precision : of the forward and backward passes: ``"auto"`` is bfloat16 where the processor computes in it natively
    seed : of initialisation, order, augmentation and poisoning

    Raises
    ------
    ValueError
        Naming the setting that is out of range.
    """

    epochs: int = 12
    batch_size: int = 128
    lr: float = 0.1
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "epochs": ("an integer >= 1", self.epochs >= 1),
            "batch_size": ("an integer >= 2", self.batch_size >= 2),
            "lr": ("a learning rate > 0", 0 < self.lr < float("inf")),
            "schedule": (f"one of {', '.join(SCHEDULES)}", self.schedule in SCHEDULES),
            "momentum": ("a number in (0, 1)", 0 < self.momentum < 1),
            "weight_decay": ("a number >= 0", 0 <= self.weight_decay < float("inf")),
            "precision": (f"one of {', '.join(PRECISIONS)}", self.precision in PRECISIONS),
            "seed": ("an integer in [0, 2**63)", 0 <= self.seed < 2**63),
        }
        for name, (expected, holds) in rules.items():
            if not holds:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
