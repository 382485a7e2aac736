"""Ways to remove a backdoor, behind one interface."""

from .base import Accuracy, Defense, EpochRecord, Mode, RepairResult
from .latent import LatentRepair
from .prune import PruneRepair
from .repairing import MODES, repair

__all__ = [
    "MODES",
    "Accuracy",
    "Defense",
    "EpochRecord",
    "LatentRepair",
    "Mode",
    "PruneRepair",
    "RepairResult",
    "repair",
]
