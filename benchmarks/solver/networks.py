"""Keep the heads of trained networks that the bank of networks has not."""

from __future__ import annotations

from pathlib import Path

import torch

from tacfast.data.splits import some_of
from tacfast.models.latents import extract_latents

from ..calibrate.measure import head_arrays, save_arrays
from ..defence.networks import Suspects
from ..defence.profiles import PROFILES
from .problems import RESULTS

SAMPLES = 2000
PROFILE = PROFILES["paper-small"]


def keep_network(name: str, models: Path) -> Path:
    """Write the head of a trained network of the grid, and its logits of some of the clean samples.

    Raises
    ------
    ValueError
        If the grid has no network of that name.
    """
    network = next((each for each in PROFILE.networks if each.name == name), None)
    if network is None:
        raise ValueError(f"name: expected a network of the profile paper-small, got {name!r}")
    suspect = Suspects(PROFILE, models, None, lambda text, count=0: None, torch.device("cpu")).get(network)
    trained = suspect.trained
    images = suspect.dataset.data.batch(trained.splits.clean)[0]
    found = extract_latents(trained.model, images[some_of(len(images), SAMPLES)].split(256))
    path = RESULTS / "solver" / "networks" / f"{name}.npz"
    save_arrays(path, head_arrays(found))
    return path
