"""A backdoored network of digits and clean images of it, as files."""

import torch

# What the command line must be told of the network and of its images.
MODEL = ("--arch", "small_preact_resnet", "--arch-args", '{"in_channels": 1}', "--num-classes", "10")
PIXELS = ("--mean", "0", "--std", "1")


def draw(folder, data, names=str):
    from PIL import Image

    for i, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        path = folder / names(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(path)
    return folder


def write_suspect(folder, trial):
    """``model.pth`` with the state dict, and ``images``."""
    torch.save(trial.model.state_dict(), folder / "model.pth")
    draw(folder / "images", trial.clean)
    return folder
