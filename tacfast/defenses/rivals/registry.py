"""Rival defences by name."""

from __future__ import annotations

from .base import Rival
from .fine_tuning import FineTuning

RIVALS: dict[str, type[Rival]] = {rival.name: rival for rival in (FineTuning,)}
