import copy

import pytest
import torch
from _backdoored import make_data, make_trial
from torch import nn

from tacfast import scan
from tacfast.attacks import BadNets
from tacfast.data import Splits, split_indices
from tacfast.defenses import LatentRepair, RepairResult
from tacfast.evaluation import Metrics, Trial, defense_effectiveness, evaluate, run_defense


class Table(nn.Module):
    """Answers with the brightness of the first pixel, or with 9 where the last pixel is bright."""

    def forward(self, x):
        answers = torch.where(x[:, 0, -1, -1] > 0.5, 9, x[:, 0, 0, 0].long())
        return nn.functional.one_hot(answers, 10).float()


def test_the_figures_of_a_model_with_known_answers():
    images = torch.zeros(6, 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0, 9.0])
    labels = torch.tensor([0, 1, 2, 4, 9, 9])  # one mistake: 3 instead of 4
    loader = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    assert evaluate(Table(), loader, BadNets(9, size=1)) == Metrics(acc=5 / 6, asr=1.0, ra=0.0)
    # A trigger that is not bright enough: nobody is sent to 9; the mistake counts against RA.
    assert evaluate(Table(), loader, BadNets(9, size=1, value=0.1)) == Metrics(acc=5 / 6, asr=0.0, ra=3 / 4)
    # Images of the target class are left out: with target 0, five images are triggered, none sent to 0.
    assert evaluate(Table(), loader, BadNets(0, size=1, value=0.1)) == Metrics(acc=5 / 6, asr=0.0, ra=4 / 5)


def test_evaluate_leaves_the_model_as_it_was():
    trial = make_trial()
    model = copy.deepcopy(trial.model).train()
    statistics = model[2].running_mean.clone()
    evaluate(model, trial.clean.loader(), trial.attack)
    assert model.training
    assert torch.equal(model[2].running_mean, statistics)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "images of other classes than the target 9, got none"),
        ([(torch.zeros(2, 1, 2, 2), torch.tensor([9, 9]))], "other classes than the target 9"),
        ([torch.zeros(2, 1, 2, 2)], "got batches without labels"),
    ],
)
def test_bad_test_sets(loader, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Table(), loader, BadNets(9, size=1))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.9, 1.0), (0.9, 0.0), 1.0),
        ((0.9, 1.0), (0.8, 0.0), 0.95),
        ((0.9, 1.0), (0.95, 1.0), 0.5),
        ((0.9, 0.5), (0.7, 0.9), 0.4),
    ],
)
def test_defense_effectiveness(before, after, expected):
    assert defense_effectiveness(Metrics(*before, 0.0), Metrics(*after, 0.0)) == pytest.approx(expected)


class Spy:
    """Returns a copy of the model and remembers what it was given."""

    def __init__(self, spoil=False):
        self.spoil = spoil

    def repair(self, model, loader, report, *, on_epoch=None):
        self.seen = torch.cat([x for x, _ in loader])
        if self.spoil:
            next(model.parameters()).data.add_(1.0)
        return RepairResult(copy.deepcopy(model), (), 0.0)


def test_a_defence_sees_the_clean_share_only():
    trial, spy = make_trial(), Spy()
    outcome = run_defense(spy, trial, scan(trial.model, trial.clean.loader()))
    assert outcome.before == outcome.after == trial.evaluate()
    assert outcome.effectiveness == 0.5
    clean = {image.numpy().tobytes() for image in trial.data.images[trial.splits.clean]}
    seen = {image.numpy().tobytes() for image in spy.seen}
    assert seen <= clean
    assert len(spy.seen) > 0.8 * len(trial.splits.clean)
    spy.seen.zero_()
    assert trial.evaluate() == outcome.before


def test_a_defence_must_not_change_the_suspect():
    trial = make_trial()
    copied = Trial(copy.deepcopy(trial.model), trial.data, trial.splits, trial.attack)
    with pytest.raises(RuntimeError, match="the given model was changed"):
        run_defense(Spy(spoil=True), copied, scan(trial.model, trial.clean.loader()))


def test_outcome_of_the_real_defence():
    trial = make_trial()
    outcome = run_defense(LatentRepair(epochs=5), trial, scan(trial.model, trial.clean.loader()))
    assert outcome.effectiveness > 0.9


def test_splits_must_fit_the_data():
    trial = make_trial()
    with pytest.raises(ValueError, match=r"splits: expected indices below 1200, .* got 1200"):
        Trial(trial.model, make_data(), Splits(*(torch.tensor([i]) for i in (0, 1, 1200))), trial.attack)
    assert len(Trial(trial.model, make_data(), split_indices(1200, clean=0.1, test=0.1), trial.attack).clean) == 120
