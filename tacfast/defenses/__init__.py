"""Ways to remove a backdoor, behind one interface."""

from .auto import AutoRepair
from .base import Accuracy, Defense, EpochRecord, Mode, RepairResult
from .confirmation import Confirmation
from .latent import LatentRepair
from .prune import PruneRepair
from .repairing import MODES, repair
from .rivals import RIVALS
from .training import DivergedError
from .universal import UniversalRepair

__all__ = [
    "MODES",
    "RIVALS",
    "Accuracy",
    "AutoRepair",
    "Confirmation",
    "Defense",
    "DivergedError",
    "EpochRecord",
    "LatentRepair",
    "Mode",
    "PruneRepair",
    "RepairResult",
    "UniversalRepair",
    "repair",
]
