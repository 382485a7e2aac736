"""What `repair` refuses, and what it warns of."""

import copy
from functools import partial

import pytest
import torch
from backdoored import CLASSES, loader_of
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import tacfast

repair = partial(tacfast.repair, mode="latent")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_fixed_order_is_warned_of(trial, report):
    with pytest.warns(UserWarning, match="loader: expected shuffled samples") as caught:
        repair(trial.model, loader_of(trial, shuffle=False), report, epochs=1)
    assert caught[0].filename == __file__
    batches = BatchSampler(RandomSampler(trial.clean.labels), 48, drop_last=False)
    loader = DataLoader(TensorDataset(trial.clean.images, trial.clean.labels), batch_sampler=batches)
    repair(trial.model, loader, report, epochs=1)  # no warning, which would be an error here


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mode": "magic"}, ValueError, "mode: expected one of 'auto', 'latent', 'prune', .*'anp'.*, got 'magic'"),
        ({"targets": (1, CLASSES)}, ValueError, "targets: expected classes 0 to 5, got 6"),
        ({"targets": (-1,)}, ValueError, "targets: expected classes 0 to 5, got -1"),
        ({"targets": ()}, ValueError, r"targets: expected one or more classes in a tuple, or None, got \(\)"),
        ({"targets": 1}, ValueError, "targets: expected one or more classes in a tuple, or None, got 1"),
        ({"targets": (1, 1.5)}, ValueError, r"targets: expected one or more classes .*, got \(1, 1.5\)"),
        ({"targets": (3, 1, 3)}, ValueError, r"targets: expected distinct classes, got \(3, 1, 3\)"),
        ({"target": 1}, TypeError, "target"),
        ({"max_drop": -0.1}, ValueError, r"max_drop: expected a share in \[0, 1\], or None, got -0.1"),
        ({"max_drop": 1.5}, ValueError, r"max_drop: expected a share in \[0, 1\], or None, got 1.5"),
        ({"mode": "prune"}, ValueError, "held_out: expected a loader of labelled samples, .* got None"),
        ({"mode": "prune", "lam": 1.0}, TypeError, "lam"),
        ({"epochs": 0}, ValueError, "epochs: expected an integer >= 1, got 0"),
        ({"epochs": 1.5}, ValueError, "epochs: expected an integer >= 1, got 1.5"),
        ({"lr": 0.0}, ValueError, "lr: expected a finite learning rate > 0, got 0"),
        ({"lr": float("inf")}, ValueError, "lr: expected a finite learning rate > 0, got inf"),
        ({"lam": -1.0}, ValueError, "lam: expected a finite weight >= 0, got -1"),
        ({"lam": float("inf")}, ValueError, "lam: expected a finite weight >= 0, got inf"),
        ({"lam": "1"}, ValueError, "lam: expected a finite weight >= 0, got '1'"),
        ({"momentum": 1.0}, ValueError, r"momentum: expected a number in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay: expected a finite number >= 0, got -1.0"),
        ({"trim": 1.0}, ValueError, r"trim: expected a share in \[0, 1\), got 1.0"),
        ({"seed": None}, ValueError, r"seed: expected an integer in \[0, 2\*\*63\), got None"),
        ({"seed": 2**63}, ValueError, "seed: expected an integer"),
        ({"speed": 1}, TypeError, "speed"),
    ],
)
def test_bad_settings(trial, report, change, error, message):
    with pytest.raises(error, match=message):
        repair(trial.model, loader_of(trial), report, **change)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "loader: expected at least one batch of two samples or more, got none"),
        ([torch.rand(4, 1, 4, 4)], ValueError, "loader: repair needs labels"),
        ([(torch.rand(2, 1, 4, 4), torch.tensor([0, 6]))], ValueError, "labels 0 to 5, the classes of the head, got 6"),
        (iter([]), TypeError, "gone through repeatedly, got an iterator"),
    ],
)
def test_bad_loaders(trial, report, batches, error, message):
    with pytest.raises(error, match=message):
        repair(trial.model, batches, report)


@pytest.mark.parametrize("mode", ["latent", "prune", "universal"])
@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "held_out: expected at least one batch, got none"),
        ([torch.rand(4, 1, 4, 4)], ValueError, r"held_out: expected batches \(inputs, labels\), got inputs alone"),
        ([(torch.rand(2, 1, 4, 4), torch.tensor([0, 6]))], ValueError, "held_out: expected labels 0 to 5"),
        ([("a", "b")], TypeError, "held_out: expected batches that are tensors"),
        (iter([]), TypeError, "held_out: expected an iterable that can be gone through repeatedly, got an iterator"),
    ],
)
def test_bad_held_out_samples(trial, report, mode, batches, error, message):
    with pytest.raises(error, match=message):
        repair(trial.model, loader_of(trial), report, mode=mode, held_out=batches)


def test_classes_without_samples_are_warned_of(trial, report):
    some = trial.clean.subset((trial.clean.labels % 2 == 0).nonzero().flatten())
    with pytest.warns(UserWarning, match="every class, got none of 1, 3, 5: a repair may unlearn") as caught:
        repair(trial.model, some.loader(48, shuffle=True), report, epochs=1)
    assert caught[0].filename == __file__


def test_another_model_than_the_scanned_one_is_refused(trial, report):
    for other in (nn.Sequential(nn.Flatten(), nn.Linear(16, 6)), nn.Sequential(*[nn.Identity()] * 5, nn.Linear(16, 6))):
        with pytest.raises(ValueError, match="model: expected the scanned model"):
            repair(other, loader_of(trial), report)
    changed = copy.deepcopy(trial.model)
    changed[5].bias.data[0] += 1e-3
    with pytest.raises(ValueError, match="whose head '5' has other weights than were scanned"):
        repair(changed, loader_of(trial), report)
    assert repair(copy.deepcopy(trial.model), loader_of(trial), report, epochs=1).history


def test_arguments_of_another_type_are_named(trial, report):
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        repair("model", loader_of(trial), report)
    with pytest.raises(TypeError, match=r"report: expected a ScanReport \(from tacfast.scan\), got Verdict"):
        repair(trial.model, loader_of(trial), report.verdict)
