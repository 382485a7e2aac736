"""From per-class statistics of a model to a verdict about it."""

from .rule import (
    MAD_SCALE,
    MAX_RATIO,
    MIN_CLASSES,
    MIN_INDEX,
    MIN_SAMPLES_PER_CLASS,
    RULE_MARGIN,
    RULE_TRIM,
    Label,
    Verdict,
    detect,
)

__all__ = [
    "MAD_SCALE",
    "MAX_RATIO",
    "MIN_CLASSES",
    "MIN_INDEX",
    "MIN_SAMPLES_PER_CLASS",
    "RULE_MARGIN",
    "RULE_TRIM",
    "Label",
    "Verdict",
    "detect",
]
