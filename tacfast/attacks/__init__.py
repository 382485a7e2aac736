"""Backdoor attacks, to test defences with."""

from .badnets import BadNets
from .base import Attack, PoisonedImages, PoisonedRows, Victim, choose_rows, poison, poison_batch
from .input_aware import InputAware
from .lira import LIRA
from .registry import ATTACKS, make_attack
from .trojannn import TrojanNN

__all__ = [
    "ATTACKS",
    "LIRA",
    "Attack",
    "BadNets",
    "InputAware",
    "PoisonedImages",
    "PoisonedRows",
    "TrojanNN",
    "Victim",
    "choose_rows",
    "make_attack",
    "poison",
    "poison_batch",
]
