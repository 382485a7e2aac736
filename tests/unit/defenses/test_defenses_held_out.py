"""Which epoch a repair chooses on held-out samples."""

import copy
import math
from functools import partial

import pytest
import torch
from backdoored import CLASSES, TARGET, loader_of, same, weights
from scipy.stats import binomtest
from torch.utils.data import DataLoader, TensorDataset

import tacfast
from tacfast.defenses import Accuracy
from tacfast.defenses import held_out as rules

repair = partial(tacfast.repair, mode="latent")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def held_out(trial):
    """Clean samples that are not in the clean share: what it holds does not matter to the rule."""
    return trial.data.subset(trial.splits.train[:200])


def accuracy_by_hand(model, data):
    model = copy.deepcopy(model).eval()
    right = model(data.images).argmax(1) == data.labels
    return [int(right[data.labels == k].sum()) for k in range(CLASSES)]


def test_accuracy():
    accuracy = Accuracy((1, 0, 0), (2, 0, 2))
    assert accuracy.overall == 0.25
    assert accuracy.per_class[::2] == (0.5, 0.0)
    assert math.isnan(accuracy.per_class[1])


@pytest.mark.parametrize(
    ("right", "total", "max_drop", "expected"),
    [
        (95, 100, 0.01, 94),
        (95, 199, 0.01, 94),
        (95, 200, 0.01, 93),
        (95, 100, 0.29, 66),  # 0.29 * 100 is less than 29
        (40, 50, 0.01, 40),  # one sample is more than the drop
        (40, 50, 0.0, 40),
        (40, 50, 1.0, -10),
    ],
)
def test_whole_samples_are_compared(right, total, max_drop, expected):
    assert rules.fewest_correct(Accuracy((right, 0), (total, 0)), max_drop) == expected


@pytest.mark.parametrize(("right", "total"), [(128, 135), (135, 135), (400, 500), (9500, 10_000), (0, 20)])
def test_without_a_drop_the_samples_own_uncertainty_is_allowed(right, total):
    low, high = rules.wilson_interval(right / total, total)
    expected = binomtest(right, total).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    enough = rules.fewest_correct(Accuracy((right,), (total,)), None)
    assert enough - 1 < expected.low * total <= enough + 1e-9


class Scripted:
    """Held-out samples on which the model has as many right as its only weight says."""

    def measure(self, model):
        return Accuracy((int(model.weight), 0), (1000, 0))


@pytest.mark.parametrize(
    ("course", "first", "chosen"),
    [
        ([900, 899, 880, 890, 889], 1, 3),
        ([900, 950, 930, 920, 889], 1, 3),  # the last one that is good enough, not the best
        ([900, 800, 889, 700], 1, 0),
        ([900, 890], 1, 1),
        ([900, 899, 895, 880], 3, 0),  # good, but before the rate has fallen
        ([900, 899, 895, 880], 2, 2),
    ],
)
def test_the_last_epoch_within_the_drop_is_chosen(course, first, chosen):
    model = torch.nn.Linear(1, 1)
    model.weight.data.fill_(course[0])
    choice = rules.EpochChoice(model, Scripted(), 0.01, first=first)
    for epoch, right in enumerate(course[1:], start=1):
        model.weight.data.fill_(right)
        assert choice.consider(epoch) == right / 1000
    choice.apply()
    assert choice.epoch == chosen
    assert model.weight.item() == course[chosen] == choice.after.correct[0]
    assert choice.before.correct == (900, 0)


@pytest.mark.parametrize(
    ("trained", "share", "kept"),
    [
        ([896, 890], 0.5, 895.0),  # good enough where it was to be
        ([896, 820], 0.1, 892.0),  # from further back rather than of the epoch before
        ([850, 840], 0.1, 894.0),
        ([850, 700], 0.5, 900.0),  # nowhere: rolled back
    ],
)
def test_a_blend_that_costs_too_much_comes_from_further_back(trained, share, kept):
    model = torch.nn.Linear(1, 1)
    model.weight.data.fill_(900)
    choice = rules.EpochChoice(model, Scripted(), 0.01, first=1, blend=0.5)
    for epoch, right in enumerate(trained, start=1):
        model.weight.data.fill_(right)
        assert choice.consider(epoch) == (900 + right) / 2000
        assert model.weight.item() == right  # the training goes on from where it was
    choice.apply()
    assert model.weight.item() == pytest.approx(kept, abs=0.01)
    assert choice.epoch == (0 if kept == 900 else 2)
    assert choice.share == pytest.approx(share)


def test_a_blend_leaves_what_is_infinite_alone():
    model = torch.nn.Linear(2, 1)
    model.weight.data.copy_(torch.tensor([[-torch.inf, 1.0]]))
    choice = rules.EpochChoice(model, None, None, first=1, blend=0.5)
    model.weight.data[0, 1] = 3.0
    choice.consider(1)
    choice.apply()
    assert model.weight.tolist() == [[-torch.inf, 2.0]]


def test_the_result_is_the_network_of_the_chosen_epoch(trial, report, held_out, monkeypatch):
    """With the accuracies of the third and later epochs spoilt, it is the network that two epochs give."""
    kept = {}
    original = rules.EpochChoice.consider

    def spoil(self, epoch):
        if epoch > 2:
            with torch.no_grad():
                self._model[5].bias.add_(torch.tensor([100.0] + [0.0] * 5))
        accuracy = original(self, epoch)
        kept[epoch] = weights(self._model), accuracy
        return accuracy

    monkeypatch.setattr(rules.EpochChoice, "consider", spoil)
    result = repair(trial.model, loader_of(trial), report, held_out=held_out.loader(), epochs=4, max_drop=0.2)
    assert result.epoch == 2
    assert not result.rolled_back
    assert same(kept[2][0], weights(result.model))
    assert [record.held_out for record in result.history] == [kept[epoch][1] for epoch in (1, 2, 3, 4)]
    assert result.history[3].held_out < 0.5
    assert result.before.total == result.after.total == tuple(torch.bincount(held_out.labels).tolist())
    assert list(result.before.correct) == accuracy_by_hand(trial.model, held_out)
    assert list(result.after.correct) == accuracy_by_hand(result.model, held_out)


def test_where_no_epoch_is_good_enough_the_given_model_comes_back(trial, report):
    x, y = trial.clean.images[:40], trial.clean.labels[:40]
    with torch.no_grad():
        answers = trial.model(x).argmax(1)
    model = copy.deepcopy(trial.model)
    model[2].register_buffer("passes", torch.zeros(()), persistent=False)

    def count(layer, args, out):
        layer.passes += layer.training

    model[2].register_forward_hook(count)
    wrong = [(x, (y + 1) % CLASSES)] * 2  # trains it to be wrong
    result = repair(model, wrong, report, held_out=[(x, answers)], epochs=12, lr=1.0, max_drop=0.0)
    assert (result.epoch, result.rolled_back) == (0, True)
    assert result.after == result.before
    assert len(result.history) == 12
    assert all(record.held_out < 1 for record in result.history)
    assert result.asked == 1.0
    assert result.best == max(record.held_out for record in result.history[3:])  # 30 % of the epochs do not count
    assert same(weights(trial.model), weights(result.model))
    assert result.model[2].passes == 0  # no state dict has it


def test_a_repair_is_kept_by_default_if_it_costs_nothing(trial, report, held_out):
    result = repair(trial.model, loader_of(trial), report, held_out=held_out.loader(), epochs=15)
    assert result.epoch == 15
    assert trial.evaluate(result.model).asr < 0.05


def test_measuring_leaves_no_trace(trial, report, held_out):
    """Shuffled held-out samples, with and without a generator of their own, on a model with dropout and BatchNorm."""
    generator = torch.Generator().manual_seed(7)
    state = generator.get_state()
    data = TensorDataset(held_out.images, held_out.labels)
    settings = {"epochs": 3, "max_drop": 1.0}
    expected = weights(repair(trial.model, loader_of(trial), report, **settings).model)
    for options in ({}, {"generator": generator}):
        loader = DataLoader(data, batch_size=32, shuffle=True, **options)
        result = repair(trial.model, loader_of(trial), report, held_out=loader, **settings)
        assert same(expected, weights(result.model))
    assert torch.equal(generator.get_state(), state)


def test_without_held_out_samples_nothing_is_measured(trial, report):
    result = repair(trial.model, loader_of(trial), report, epochs=2)
    assert (result.mode, result.epoch, result.rolled_back, result.targets) == ("latent", 2, False, (TARGET,))
    assert result.before is result.after is result.history[0].held_out is None
