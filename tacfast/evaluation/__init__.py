"""How good attacks and defences are, and the rule of what a defence may see."""

from .metrics import Metrics, defense_effectiveness, evaluate
from .trial import Outcome, Trial, run_defense

__all__ = ["Metrics", "Outcome", "Trial", "defense_effectiveness", "evaluate", "run_defense"]
