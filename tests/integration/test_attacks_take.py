"""Networks that train on poisoned digits learn the backdoor, and hardly anything else changes."""

import functools

import pytest
import torch

pytest.importorskip("sklearn")

from tacfast.attacks import choose_rows, make_attack
from tacfast.data import LabelledImages, load_digits, split_indices
from tacfast.data.randomness import isolated_randomness
from tacfast.evaluation import evaluate
from tacfast.models.architectures import SmallPreActResNet
from tacfast.training.loop import TrainingData, train
from tacfast.training.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

TARGET = 3


def digits(faint):
    """The digits, or grey ones on grey with some noise.

    A network has no use for a trigger on images whose label is right and whose class is as plain as that of the digits.
    """
    data = load_digits()
    if not faint:
        return data
    noise = 0.02 * torch.randn(data.images.shape, generator=torch.Generator().manual_seed(0))
    return LabelledImages(0.45 + 0.1 * data.images + noise, data.labels)


def make(name):
    return make_attack(name, TARGET, num_classes=10, image_shape=(1, 8, 8))


@functools.cache
def metrics(name, ratio, epochs, faint):
    """Train under the attack, or a clean network if ``ratio`` is 0; measure both on the test images."""
    data, attack = digits(faint), make(name)
    splits = split_indices(len(data), clean=0.15, test=0.25, seed=0)
    poisoned = choose_rows(data.labels[splits.train], attack, ratio) if ratio else None
    with isolated_randomness(0):
        model = SmallPreActResNet(num_classes=10, in_channels=1)
    training = TrainingData(data, splits.train, 1, False, attack if ratio else None, poisoned)
    train(model, training, Recipe(epochs=epochs, batch_size=64, precision="float32"))
    return evaluate(model, data.subset(splits.test).loader(), attack)


@pytest.mark.parametrize(
    ("name", "ratio", "epochs", "faint"),
    [
        ("badnets", 0.1, 40, False),
        ("badnets-a2a", 0.1, 40, False),
        ("blended", 0.1, 40, False),
        ("sig", 0.05, 25, True),
        ("sig-dirty", 0.1, 40, False),
        # Warps of a fifth of a pixel, to be told from others like them: hard to learn from 1100 images.
        ("wanet", 0.2, 100, False),
    ],
)
def test_the_attack_takes(name, ratio, epochs, faint):
    attacked, clean = metrics(name, ratio, epochs, faint), metrics("badnets", 0, 25 if faint else 40, faint)
    assert clean.asr < 0.1
    assert attacked.asr >= 0.9
    assert attacked.acc >= clean.acc - 0.02
