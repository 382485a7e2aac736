"""How good attacks and defences are, and the rule of what a defence may see."""

from .metrics import Metrics, defense_effectiveness, evaluate
from .reconstruction import Reconstruction, TrueChange, closed_form, true_change
from .relearning import Relearned, relearn
from .trial import Outcome, Trial, run_defense

__all__ = [
    "Metrics",
    "Outcome",
    "Reconstruction",
    "Relearned",
    "Trial",
    "TrueChange",
    "closed_form",
    "defense_effectiveness",
    "evaluate",
    "relearn",
    "run_defense",
    "true_change",
]
