"""Rival defences by name."""

from __future__ import annotations

from .anp import AdversarialNeuronPruning
from .base import Rival
from .clp import ChannelLipschitzness
from .fine_pruning import FinePruning
from .fine_tuning import FineTuning
from .fst import FeatureShiftTuning
from .ft_sam import SharpnessAwareTuning
from .i_bau import ImplicitUnlearning
from .neural_cleanse import NeuralCleanse
from .rnp import ReconstructiveNeuronPruning
from .sau import SharedAdversarialUnlearning
from .tsbd import TwoStageDefense

RIVALS: dict[str, type[Rival]] = {
    rival.name: rival
    for rival in (
        FineTuning,
        FeatureShiftTuning,
        SharpnessAwareTuning,
        SharedAdversarialUnlearning,
        ImplicitUnlearning,
        NeuralCleanse,
        FinePruning,
        ChannelLipschitzness,
        AdversarialNeuronPruning,
        ReconstructiveNeuronPruning,
        TwoStageDefense,
    )
}
"""Published defences to compare with, by name."""
