"""Our own ways to repair, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from .._lazy import Registry

if TYPE_CHECKING:
    from .auto import AutoRepair
    from .latent import LatentRepair
    from .prune import PruneRepair
    from .universal import UniversalRepair

Ours: TypeAlias = "AutoRepair | LatentRepair | PruneRepair | UniversalRepair"

MODES: Registry[type[Ours]] = Registry(
    __package__,
    {
        "auto": "auto.AutoRepair",
        "latent": "latent.LatentRepair",
        "prune": "prune.PruneRepair",
        "universal": "universal.UniversalRepair",
    },
)
"""Our own ways to repair, by name; each is a `Mode`."""
