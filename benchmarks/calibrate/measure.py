"""What the bank keeps of a network: all that a rule could be made of, in kilobytes."""

from __future__ import annotations

import io
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tacfast._files import write_atomically
from tacfast.data.splits import some_of
from tacfast.detection import InnerPerturbation, UniversalPerturbation
from tacfast.evaluation import evaluate
from tacfast.models.latents import Latents, extract_latents
from tacfast.scanning import evidence_of
from tacfast.solver import GapMatrix

from ..defence.networks import Suspect

# Raised when what is measured changes.
MEASUREMENT = 3
SAMPLES = 500
TEST_IMAGES = 2000
PERTURBATIONS = UniversalPerturbation(), InnerPerturbation()


def measure(suspect: Suspect) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Facts for JSON, and arrays: logits of the clean samples, the head, how the perturbations grew."""
    trained, data = suspect.trained, suspect.dataset.data
    model, network = trained.model, suspect.network
    device = next(model.parameters()).device
    images = data.batch(trained.splits.clean)[0].to(device)
    start = time.perf_counter()
    found = extract_latents(model, images.split(256))
    seconds = {"latents": time.perf_counter() - start}
    head, bias = found.head, found.head.bias
    arrays = head_arrays(found)

    order = some_of(len(images), SAMPLES).to(device)
    evidence, _ = evidence_of(model, head, GapMatrix(head.weight, bias), images[order])
    for perturbation in PERTURBATIONS:
        start = time.perf_counter()
        climb = perturbation.climb(evidence)
        seconds[perturbation.name] = time.perf_counter() - start
        arrays[f"{perturbation.name}.losses"] = climb.losses.float().numpy()
        arrays[f"{perturbation.name}.reached"] = climb.reached.float().numpy()
    test = data.subset(trained.splits.some_test(TEST_IMAGES))
    facts = {
        **{name: getattr(network, name) for name in ("data", "arch", "attack", "ratio", "seed")},
        "target": None if trained.attack is None else trained.attack.target,
        "weights": suspect.weights,
        "measurement": MEASUREMENT,
        "metrics": asdict(evaluate(model, test.loader(), suspect.attack)),
        "settings": {each.name: asdict(each) for each in PERTURBATIONS},
        "seconds": seconds,
    }
    return facts, arrays


def head_arrays(found: Latents) -> dict[str, np.ndarray]:
    """Logits and W in float16, and b, empty where there is none."""
    bias = found.head.bias
    return {
        "logits": found.logits.half().numpy(),
        "W": found.head.weight.half().numpy(force=True),
        "b": np.zeros(0) if bias is None else bias.numpy(force=True),
    }


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write them compressed, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
