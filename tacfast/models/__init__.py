"""Build models, read their checkpoints, find the classification head and stream its latents."""

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .backdoorbench import (
        BackdoorBenchResult,
        PoisonedImage,
        read_attack_settings,
        read_backdoorbench,
        write_defense_result,
    )
    from .checkpoint import Checkpoint, load_checkpoint, restore_model, save_checkpoint
    from .head import Head, HeadError, find_head
    from .latents import LatentBatch, Latents, extract_latents, latent_batches
    from .registry import build_model
    from .weights import CheckpointError, load_weights, read_weights
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "BackdoorBenchResult",
    "Checkpoint",
    "CheckpointError",
    "Head",
    "HeadError",
    "LatentBatch",
    "Latents",
    "PoisonedImage",
    "build_model",
    "extract_latents",
    "find_head",
    "latent_batches",
    "load_checkpoint",
    "load_weights",
    "read_attack_settings",
    "read_backdoorbench",
    "read_weights",
    "restore_model",
    "save_checkpoint",
    "write_defense_result",
]
