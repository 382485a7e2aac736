"""Ways to remove a backdoor, behind one interface."""

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .auto import AutoRepair
    from .base import Accuracy, Defense, EpochRecord, Mode, RepairResult
    from .confirmation import Confirmation
    from .latent import LatentRepair
    from .modes import MODES
    from .prune import PruneRepair
    from .repairing import repair
    from .rivals import RIVALS
    from .training import DivergedError
    from .universal import UniversalRepair
else:
    __getattr__, __dir__ = lazily(__name__)

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
