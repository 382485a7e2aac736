"""A tiny backdoored classifier, trained in a second, for the tests of defences, evaluation and reports."""

import dataclasses
import functools

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tacfast.attacks import BadNets, poison
from tacfast.data import LabelledImages, split_indices
from tacfast.data.randomness import isolated_randomness
from tacfast.evaluation import Trial

CLASSES, TARGET = 6, 2


def make_data(n=1200):
    """Six noisy prototypes of 4×4 pixels whose last pixel, where the trigger goes, is dark."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(CLASSES, 1, 4, 4, generator=generator)
    labels = torch.arange(n) % CLASSES
    images = prototypes[labels] + 0.15 * torch.randn(n, 1, 4, 4, generator=generator)
    images[..., -1, -1] = 0.0
    return LabelledImages(images, labels)


def make_model():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, CLASSES)
    )


@functools.cache
def make_trial():
    data = make_data()
    splits = split_indices(len(data), clean=0.3, test=0.3, seed=0)
    attack = BadNets(TARGET, size=1)
    train = poison(data.subset(splits.train), attack, 0.1).data
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would only get in one another's way
    try:
        model = train_on(train)
    finally:
        torch.set_num_threads(threads)
    return Trial(model, data, splits, attack)


def train_on(data):
    with isolated_randomness(0):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        for _ in range(60):
            for images, labels in data.loader(48, shuffle=True):
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def loader_of(trial, **options):
    data = TensorDataset(trial.clean.images, trial.clean.labels)
    return DataLoader(data, **({"batch_size": 48, "shuffle": True} | options))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def with_verdict(report, **changes):
    return dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, **changes))
