"""Find the classification head of a model and stream its latents."""

from .head import Head, HeadError, find_head
from .latents import LatentBatch, Latents, extract_latents, latent_batches

__all__ = ["Head", "HeadError", "LatentBatch", "Latents", "extract_latents", "find_head", "latent_batches"]
