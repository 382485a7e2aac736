"""Ways to remove a backdoor, behind one interface."""

from .base import Defense, EpochRecord, RepairResult
from .latent import LatentRepair
from .repairing import repair

__all__ = ["Defense", "EpochRecord", "LatentRepair", "RepairResult", "repair"]
