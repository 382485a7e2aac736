"""Published defences to compare with, one per file, behind the interface of our own."""

from .anp import AdversarialNeuronPruning
from .base import PruningRival, Rival
from .clp import ChannelLipschitzness
from .fine_pruning import FinePruning
from .fine_tuning import FineTuning
from .registry import RIVALS
from .rnp import ReconstructiveNeuronPruning
from .tsbd import TwoStageDefense

__all__ = [
    "RIVALS",
    "AdversarialNeuronPruning",
    "ChannelLipschitzness",
    "FinePruning",
    "FineTuning",
    "PruningRival",
    "ReconstructiveNeuronPruning",
    "Rival",
    "TwoStageDefense",
]
