"""Tiny data sets and plans, trained in an instant, for the tests of training and of what is built on it."""

import dataclasses

import torch

from tacfast.attacks import make_attack
from tacfast.data import LabelledImages
from tacfast.data.datasets import ImageDataset
from tacfast.training import Recipe
from tacfast.training.trained import Plan

CLASSES, TARGET = 4, 1
PLAN = Plan(
    data="tiny",
    arch="small_preact_resnet",
    arch_args={"width": 4},
    recipe=Recipe(epochs=3, batch_size=16, lr=0.05, precision="float32", seed=3),
    ratio=0.25,
    target=TARGET,
    clean=0.1,
    held_out=0.1,
)


def make_dataset(n=160, *, flip=False, name="tiny", channels=1):
    """A noisy prototype of 8×8 pixels per class; no two images are the same."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(CLASSES, channels, 8, 8, generator=generator)
    labels = torch.arange(n) % CLASSES
    images = prototypes[labels] + 0.2 * torch.randn(n, channels, 8, 8, generator=generator)
    return ImageDataset(
        name=name,
        data=LabelledImages(images.clamp(0, 1), labels),
        n_train=n,
        class_names=tuple(f"class {k}" for k in range(CLASSES)),
        mean=(0.4,) * channels,
        std=(0.3,) * channels,
        padding=1,
        flip=flip,
    )


def plan_for(attack, **changes):
    recipe = {name: changes.pop(name) for name in list(changes) if name in Recipe.__dataclass_fields__}
    return dataclasses.replace(PLAN, attack=attack, recipe=dataclasses.replace(PLAN.recipe, **recipe), **changes)


def hasten(monkeypatch):
    """Make the attacks that prepare their trigger do so in a few steps."""
    from tacfast.training import trained

    def make(*args, **kwargs):
        attack = make_attack(*args, **kwargs)
        for setting, value in {"steps": 4, "mask_steps": 4}.items():
            if hasattr(attack, setting):
                setattr(attack, setting, value)
        return attack

    monkeypatch.setattr(trained, "make_attack", make)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
