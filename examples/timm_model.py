"""Scan a model of timm with images of your own: python examples/timm_model.py NAME FOLDER [CHECKPOINT].

FOLDER holds one folder per class, as for torchvision's ImageFolder. Without CHECKPOINT, timm downloads the weights it
publishes for NAME.
"""

import sys

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torchvision.datasets import ImageFolder

import tacfast
from tacfast.models import load_weights, read_weights


def main(name: str, folder: str, checkpoint: str | None = None) -> None:
    """Print the verdict, its reasons and the classes that are the easiest to reach."""
    classes = len(ImageFolder(folder).classes)
    model = timm.create_model(name, pretrained=checkpoint is None, num_classes=classes if checkpoint else None)
    if checkpoint:
        load_weights(model, read_weights(checkpoint))
    # The normalisation that timm trained its own weights with; of a checkpoint of yours, put in your own.
    images = ImageFolder(folder, create_transform(**resolve_model_data_config(model), is_training=False))
    report = tacfast.scan(model, torch.utils.data.DataLoader(images, batch_size=64))
    print(f"{name}: {report.verdict.label}, clean accuracy {report.accuracy:.3f}")
    for reason in report.verdict.reasons:
        print(f"  {reason}")
    norms, scores = report.solution.norms.tolist(), report.verdict.scores
    for k in sorted(range(len(norms)), key=norms.__getitem__)[:5]:
        print(f"  {images.classes[k]:20} norm {norms[k]:.4g}, score {scores[k]:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
