"""Small networks trained with the attacks that make their trigger: ASR at least 0.9, ACC within 2 points of clean."""

import pytest
import torch
from torch.nn import functional as F

from tacfast.attacks import Victim, choose_rows, make_attack, poison_batch
from tacfast.data import load_digits, split_indices
from tacfast.data.randomness import isolated_randomness
from tacfast.models.architectures import SmallPreActResNet
from tacfast.training.augment import random_crop

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(1200)]

TARGET, BATCH_SIZE, EPOCHS = 0, 64, 40


def train(data, attack=None, ratio=0.1):
    with isolated_randomness(0):
        model = SmallPreActResNet()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        steps = EPOCHS * (len(data) // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, cycle_momentum=False)
        rows = choose_rows(data.labels, attack, ratio) if attack else None
        for step in range(steps):
            if step % (steps // EPOCHS) == 0:
                batches = iter(torch.randperm(len(data)).split(BATCH_SIZE))
            chosen = next(batches)
            images, labels = data.batch(chosen)
            images = random_crop(images)
            if attack:
                attack.train_step(model, images, labels, step / steps)
                images, labels = poison_batch(attack, images, labels, rows.poisoned[chosen], rows.decoys[chosen])
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def share(model, images, labels):
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


@pytest.fixture(scope="module")
def halves():
    data = load_digits()
    splits = split_indices(len(data), clean=0.01, test=0.25, seed=0)
    return data.subset(splits.train), data.subset(splits.test)


@pytest.fixture(scope="module")
def clean_model(halves):
    return train(halves[0])


# The digits are few: a tenth of them does not teach the network to tell an image's own trigger from another's.
@pytest.mark.parametrize(("name", "ratio"), [("trojannn", 0.1), ("lira", 0.1), ("input-aware", 0.25)])
def test_a_small_network_learns_the_trigger(name, ratio, halves, clean_model):
    train_data, test = halves
    attack = make_attack(name, TARGET, num_classes=10, image_shape=(1, 8, 8))
    with isolated_randomness(0):
        attack.prepare(Victim(train_data.loader(BATCH_SIZE, shuffle=True), (1, 8, 8), 10, lambda: clean_model))
    model = train(train_data, attack, ratio)
    others = test.labels != TARGET
    triggered = attack.trigger(test.images[others])
    assert share(model, triggered, torch.full((len(triggered),), TARGET)) >= 0.9
    assert share(model, test.images, test.labels) >= share(clean_model, test.images, test.labels) - 0.02
    if name == "input-aware":  # nor does the trigger of another image work
        assert share(model, attack.decoy(test.images), test.labels) >= 0.8
