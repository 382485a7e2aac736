"""From per-class statistics of a model to a verdict about it."""

from .asymmetry import Asymmetry
from .inner import InnerPerturbation
from .nearness import Nearness
from .outliers import outlier_scores
from .qp_norm import QpNorm
from .rule import (
    FULL,
    MIN_SAMPLES_PER_CLASS,
    QUICK,
    RULE_MARGIN,
    RULE_TRIM,
    Rule,
    detect,
    obstacles_of,
)
from .statistic import MIN_CLASSES, Evidence, Statistic
from .universal import Perturbation, UniversalPerturbation, reconstruct
from .verdict import Finding, Label, Verdict

__all__ = [
    "FULL",
    "MIN_CLASSES",
    "MIN_SAMPLES_PER_CLASS",
    "QUICK",
    "RULE_MARGIN",
    "RULE_TRIM",
    "Asymmetry",
    "Evidence",
    "Finding",
    "InnerPerturbation",
    "Label",
    "Nearness",
    "Perturbation",
    "QpNorm",
    "Rule",
    "Statistic",
    "UniversalPerturbation",
    "Verdict",
    "detect",
    "obstacles_of",
    "outlier_scores",
    "reconstruct",
]
