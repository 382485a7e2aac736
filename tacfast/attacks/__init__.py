"""Backdoor attacks, to test defences with."""

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .badnets import BadNets
    from .base import Attack, PoisonedImages, PoisonedRows, Victim, choose_rows, poison, poison_batch
    from .blended import Blended
    from .input_aware import InputAware
    from .lira import LIRA
    from .registry import ATTACKS, make_attack
    from .sig import SIG
    from .trojannn import TrojanNN
    from .wanet import WaNet
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "ATTACKS",
    "LIRA",
    "SIG",
    "Attack",
    "BadNets",
    "Blended",
    "InputAware",
    "PoisonedImages",
    "PoisonedRows",
    "TrojanNN",
    "Victim",
    "WaNet",
    "choose_rows",
    "make_attack",
    "poison",
    "poison_batch",
]
